"""Packed low-bit tensors, and the operations of a converted model on them."""

from torch_geometric_qlr.tensor.functional import (
    OutputQuantizer,
    Steps,
    attention,
    edge_codes,
    extremum,
    linear,
    propagate,
    smp,
    sparse_linear,
    spmm,
)
from torch_geometric_qlr.tensor.packed import PackedTensor

__all__ = [
    "OutputQuantizer",
    "PackedTensor",
    "Steps",
    "attention",
    "edge_codes",
    "extremum",
    "linear",
    "propagate",
    "smp",
    "sparse_linear",
    "spmm",
]
