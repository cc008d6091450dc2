"""Packed low-bit tensors, and the operations of a converted model on them."""

from torch_geometric_qlr.tensor.functional import (
    OutputQuantizer,
    attention,
    extremum,
    linear,
    sparse_linear,
    spmm,
)
from torch_geometric_qlr.tensor.packed import PackedTensor

__all__ = [
    "OutputQuantizer",
    "PackedTensor",
    "attention",
    "extremum",
    "linear",
    "sparse_linear",
    "spmm",
]
