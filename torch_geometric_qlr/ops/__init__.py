"""Packed arithmetic as ``torch.ops.qlr.*``: one schema and one definition each, and back ends.

On a CPU the C++ kernels answer if they were built. A schema is a line of
:mod:`~torch_geometric_qlr.ops.schemas`, a definition a class in a file of `definitions/`, and a
back end a folder beside it.
"""

from torch_geometric_qlr.ops import reference, registry  # noqa: F401  (registers the ops)
from torch_geometric_qlr.ops.cpu.memory import release_memory
from torch_geometric_qlr.ops.dispatch import (
    available_on,
    backend_info,
    backend_names,
    computes_packed,
    kernels_on,
    use_backend,
)
from torch_geometric_qlr.ops.groups import QParams, Steps
from torch_geometric_qlr.ops.layout import PACKED_BITS, RowLayout, row_layout, storage_bits
from torch_geometric_qlr.ops.reference import affine_params, dequantize, quantize

__all__ = [
    "PACKED_BITS",
    "QParams",
    "RowLayout",
    "Steps",
    "affine_params",
    "available_on",
    "backend_info",
    "backend_names",
    "computes_packed",
    "dequantize",
    "kernels_on",
    "quantize",
    "reference",
    "release_memory",
    "row_layout",
    "storage_bits",
    "use_backend",
]
