"""Packed arithmetic as ``torch.ops.qlr.*``: one schema, a fake kernel and several back ends each.

:mod:`~torch_geometric_qlr.ops.reference` is the definition; on a CPU the C++ kernels answer if they
were built. Every op is listed with its schema in :mod:`~torch_geometric_qlr.ops.schemas`.
"""

from torch_geometric_qlr.ops import reference, registry  # noqa: F401  (registers the ops)
from torch_geometric_qlr.ops.backend import (
    BACKENDS,
    backend_info,
    computes_packed,
    use_backend,
)
from torch_geometric_qlr.ops.layout import PACKED_BITS, RowLayout, row_layout, storage_bits
from torch_geometric_qlr.ops.memory import release_memory
from torch_geometric_qlr.ops.reference import affine_params, dequantize, quantize

__all__ = [
    "BACKENDS",
    "PACKED_BITS",
    "RowLayout",
    "affine_params",
    "backend_info",
    "computes_packed",
    "dequantize",
    "quantize",
    "reference",
    "release_memory",
    "row_layout",
    "storage_bits",
    "use_backend",
]
