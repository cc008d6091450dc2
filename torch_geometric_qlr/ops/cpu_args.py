"""From tensors to the C structures of one call: contiguous, of one dtype, and kept alive.

The kernels read raw memory; `checks.py` has seen to all sizes before.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.errors import BackendError
from torch_geometric_qlr.ops.checks import BAD_INDEX, BAD_ROWPTR, NotFinite, Refused
from torch_geometric_qlr.ops.layout import row_layout, storage_bits
from torch_geometric_qlr.ops.library import Epilogue, Graph, Packed, Quantizer, load_library
from torch_geometric_qlr.ops.memory import empty

__all__ = ["Arguments", "Unsupported", "call_library"]

_NO_MEMORY, _UNSUPPORTED, _NOT_FINITE, _BAD_CODE = 3, 4, 5, 6
_REFUSED = {1: BAD_ROWPTR, 2: BAD_INDEX, _BAD_CODE: "a code is too large"}

_NO_KERNEL = {
    "qlr_packed_linear": "an input or a weight with a range per column, or over 32,768 columns",
    "qlr_packed_extremum": "source rows with a range of their own each, whose codes do not compare",
}


class Unsupported(Exception):
    """No kernel takes this combination of arguments, for a reason that is worth telling; without
    one the reference is what is meant to answer."""


def call_library(name: str, *arguments: Any) -> None:
    library, reason = load_library()
    if library is None:
        raise BackendError(reason)
    status = getattr(library, name)(*arguments)
    if status == _UNSUPPORTED:
        raise Unsupported(_NO_KERNEL.get(name, "this combination of widths and ranges"))
    if status == _NOT_FINITE:
        raise NotFinite
    if status in _REFUSED:
        raise Refused(_REFUSED[status])
    if status:
        raise BackendError(f"{name}: {'out of memory' if status == _NO_MEMORY else status}")


def _axis(param: Tensor, rows: int) -> int:
    """-1, 0 or 1 for a parameter per tensor, row or column."""
    if param.numel() == 1:
        return -1
    return 0 if param.size(1) == 1 and param.size(0) == rows else 1


class Arguments:
    """Builds the C structures of one call and keeps alive what they point to."""

    def __init__(self) -> None:
        self._alive: list[Any] = []

    def floats(self, tensor: Tensor) -> int:
        """The address of a contiguous float32 version."""
        return self.address(tensor.to(torch.float32))

    def optional(self, tensor: Tensor | None) -> int | None:
        """The same of what may be left out."""
        return None if tensor is None else self.floats(tensor)

    def address(self, tensor: Tensor) -> int:
        """The address of a contiguous version."""
        tensor = tensor.detach().contiguous()
        self._alive.append(tensor)
        return tensor.data_ptr()

    def affine(self, scale: Tensor, zero: Tensor, rows: int) -> tuple[int, int, int]:
        """Axis and addresses of a scale and a zero point, brought to one shape."""
        if scale.shape != zero.shape:
            scale, zero = torch.broadcast_tensors(scale, zero)
        return _axis(scale, rows), self.floats(scale), self.floats(zero)

    def packed(self, data: Tensor, cols: int, bits: int, scale: Tensor, zero: Tensor) -> Packed:
        rows = data.size(0)
        axis, scale_at, zero_at = self.affine(scale, zero, rows)
        return Packed(self.address(data), rows, cols, bits, axis, scale_at, zero_at)

    def quantizer(
        self,
        scale: Tensor,
        zero: Tensor,
        bits: int,
        truncate: bool,
        skew: Tensor | None,
        rows: int,
    ) -> Quantizer:
        axis, scale_at, zero_at = self.affine(scale, zero, rows)
        shift = float(skew) if skew is not None else 0.0
        return Quantizer(scale_at, zero_at, axis, bits, truncate, shift)

    def steps(
        self, scale: Tensor, zero: Tensor, bits: int, truncate: bool, skew: Tensor | None
    ) -> list[Quantizer]:
        """One quantizer per tensor for every entry of the vectors."""
        shifts = [0.0] * scale.numel() if skew is None else skew.tolist()
        scale_at, zero_at = self.floats(scale), self.floats(zero)
        return [
            Quantizer(scale_at + 4 * k, zero_at + 4 * k, -1, bits, truncate, shift)
            for k, shift in enumerate(shifts)
        ]

    def graph(
        self,
        rowptr: Tensor,
        col: Tensor,
        sources: int,
        edge_weight: Tensor | None = None,
        source_weight: Tensor | None = None,
    ) -> Graph:
        if sources >= 2**31:
            raise Unsupported("2^31 source rows or more")
        if col.dtype != torch.int32:
            # A 64-bit index that wraps into range would pass the kernel's own check.
            if col.numel() and (col.min() < 0 or col.max() >= sources):
                raise Refused(BAD_INDEX)
            col = col.to(torch.int32)
        return Graph(
            self.address(rowptr.to(torch.int64)),
            self.address(col),
            rowptr.numel() - 1,
            col.numel(),
            self.optional(edge_weight),
            self.optional(source_weight),
        )

    def epilogue(
        self,
        rows: int,
        cols: int,
        *,
        row_scale: Tensor | None = None,
        bias: Tensor | None = None,
        addend: Tensor | None = None,
        addend_scale: float = 1.0,
        reduce: str = "sum",
        relu: bool = False,
        out_scale: Tensor | None = None,
        out_zero_point: Tensor | None = None,
        out_bits: int = 8,
        out_truncate: bool = False,
        out_skew: Tensor | None = None,
    ) -> tuple[Epilogue, Tensor]:
        """The structure, and the output it will fill."""
        epilogue = Epilogue(
            self.optional(row_scale),
            self.optional(bias),
            self.optional(addend),
            addend_scale,
            reduce == "mean",
            relu,
        )
        if out_scale is None or out_zero_point is None:
            out = empty((rows, cols), torch.float32)
            epilogue.out = out.data_ptr()
            return epilogue, out
        quantizer = self.quantizer(
            out_scale, out_zero_point, out_bits, out_truncate, out_skew, rows
        )
        if quantizer.axis == 0:
            raise Unsupported
        self._alive.append(quantizer)
        out = empty((rows, row_layout(cols, storage_bits(out_bits)).stride), torch.uint8)
        epilogue.packed, epilogue.quantizer = out.data_ptr(), ctypes.pointer(quantizer)
        return epilogue, out
