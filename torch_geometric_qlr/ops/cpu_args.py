"""From tensors to the C structures of one call: checked, contiguous, and kept alive.

The kernels read raw memory, so every size is checked here, also for direct calls of an op.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.errors import BackendError, ConfigError, InputError
from torch_geometric_qlr.ops.layout import row_layout, storage_bits
from torch_geometric_qlr.ops.library import Epilogue, Graph, Packed, Quantizer, load_library
from torch_geometric_qlr.ops.memory import empty

__all__ = ["Arguments", "Unsupported", "call_library"]

_UNSUPPORTED = 4
_MESSAGES = {
    1: "rowptr must ascend from 0 to the number of edges",
    2: "an index is out of range: every col (or row index) must be at least 0 and below the number "
    "of source rows",
    3: "out of memory",
}


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
    if status in (1, 2):
        raise InputError(f"{name.removeprefix('qlr_')}: {_MESSAGES[status]}")
    if status:
        raise BackendError(f"{name}: {_MESSAGES.get(status, f'status {status}')}")


def _axis(param: Tensor, rows: int, cols: int) -> int:
    """-1, 0 or 1 for a parameter per tensor, row or column."""
    if param.numel() == 1:
        return -1
    if tuple(param.shape) == (rows, 1):
        return 0
    if tuple(param.shape) == (1, cols):
        return 1
    raise Unsupported("ranges that are neither per tensor, per row nor per column")


class Arguments:
    """Builds the C structures of one call and keeps alive what they point to."""

    def __init__(self) -> None:
        self._alive: list[Any] = []

    def floats(self, tensor: Tensor | None, numel: int, name: str) -> int | None:
        """The address of a contiguous float32 version with this many elements."""
        if tensor is None:
            return None
        if tensor.numel() != numel:
            raise InputError(
                f"packed op: {name} has {tensor.numel()} elements (shape {tuple(tensor.shape)}), "
                f"expected {numel}"
            )
        return self.address(tensor.to(torch.float32))

    def address(self, tensor: Tensor) -> int:
        """The address of a contiguous version."""
        if tensor.device.type != "cpu":
            raise InputError(f"packed op: a tensor is on {tensor.device}, the others on the CPU")
        tensor = tensor.detach().contiguous()
        self._alive.append(tensor)
        return tensor.data_ptr()

    def affine(self, scale: Tensor, zero: Tensor, rows: int, cols: int) -> tuple[int, int, int]:
        """Axis and addresses of a scale and a zero point, brought to one shape."""
        if scale.shape != zero.shape:
            scale, zero = torch.broadcast_tensors(scale, zero)
        axis = _axis(scale, rows, cols)
        count = scale.numel()
        return (
            axis,
            self.floats(scale, count, "scale") or 0,
            self.floats(zero, count, "zero_point") or 0,
        )

    def check_packed(self, data: Tensor, cols: int, bits: int) -> None:
        """Whether the tensor is what the layout of this many codes needs."""
        stride = row_layout(cols, bits).stride
        if data.dtype != torch.uint8 or data.dim() != 2 or data.size(1) != stride:
            raise InputError(
                f"packed op: rows of {cols} codes at {bits} bits are uint8 of shape [N, {stride}], "
                f"got {data.dtype} of shape {list(data.shape)}"
            )

    def packed(self, data: Tensor, cols: int, bits: int, scale: Tensor, zero: Tensor) -> Packed:
        rows = data.size(0)
        self.check_packed(data, cols, bits)
        axis, scale_at, zero_at = self.affine(scale, zero, rows, cols)
        return Packed(self.address(data), rows, cols, bits, axis, scale_at, zero_at)

    def quantizer(
        self,
        scale: Tensor,
        zero: Tensor,
        bits: int,
        truncate: bool,
        skew: Tensor | None,
        rows: int,
        cols: int,
    ) -> Quantizer:
        if not 1 <= bits <= 8:
            raise ConfigError(f"quantize: bits must be from 1 to 8, got {bits}")
        axis, scale_at, zero_at = self.affine(scale, zero, rows, cols)
        shift = float(skew) if skew is not None else 0.0
        return Quantizer(scale_at, zero_at, axis, bits, truncate, shift)

    def steps(
        self, scale: Tensor, zero: Tensor, bits: int, truncate: bool, skew: Tensor | None
    ) -> list[Quantizer]:
        """One quantizer per tensor for every entry of the vectors."""
        if scale.dim() != 1 or scale.shape != zero.shape or not 1 <= bits <= 8:
            raise InputError(
                f"packed op: step_scale and step_zero_point are vectors of one length and "
                f"step_bits is from 1 to 8, got {list(scale.shape)}, {list(zero.shape)} and {bits}"
            )
        shifts = [0.0] * scale.numel() if skew is None else skew.tolist()
        scale_at = self.address(scale.to(torch.float32))
        zero_at = self.address(zero.to(torch.float32))
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
        if rowptr.dim() != 1 or rowptr.numel() == 0 or col.dim() != 1:
            raise InputError(
                "packed op: rowptr and col are vectors and rowptr has at least one entry, got "
                f"shapes {list(rowptr.shape)} and {list(col.shape)}"
            )
        if col.dtype != torch.int32:
            # A 64-bit index that wraps into range would pass the kernel's own check.
            if col.numel() and (col.min() < 0 or col.max() >= sources):
                raise InputError(f"packed op: {_MESSAGES[2]}")
            col = col.to(torch.int32)
        return Graph(
            self.address(rowptr.to(torch.int64)),
            self.address(col),
            rowptr.numel() - 1,
            col.numel(),
            self.floats(edge_weight, col.numel(), "edge_weight"),
            self.floats(source_weight, sources, "source_weight"),
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
        if reduce not in ("sum", "mean"):
            raise ConfigError(f"packed op: reduce must be 'sum' or 'mean', got {reduce!r}")
        epilogue = Epilogue(
            self.floats(row_scale, rows, "row_scale"),
            self.floats(bias, cols, "bias"),
            self.floats(addend, rows * cols, "addend"),
            addend_scale,
            reduce == "mean",
            relu,
        )
        if out_scale is None:
            out = empty((rows, cols), torch.float32)
            epilogue.out = out.data_ptr()
            return epilogue, out
        if out_zero_point is None:
            raise InputError("out_scale needs an out_zero_point")
        quantizer = self.quantizer(
            out_scale, out_zero_point, out_bits, out_truncate, out_skew, -1, cols
        )
        if quantizer.axis == 0:
            raise Unsupported
        self._alive.append(quantizer)
        out = empty((rows, row_layout(cols, storage_bits(out_bits)).stride), torch.uint8)
        epilogue.packed, epilogue.quantizer = out.data_ptr(), ctypes.pointer(quantizer)
        return epilogue, out
