"""Launches: values to packed codes and back."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.definitions.codes import finite_values
from torch_geometric_qlr.ops.fakes import float_rows, packed_rows
from torch_geometric_qlr.ops.groups import QParams
from torch_geometric_qlr.ops.layout import storage_bits
from torch_geometric_qlr.ops.triton.kernels.quantize import (
    quantize_pack_kernel,
    quantize_rows_kernel,
    unpack_kernel,
)
from torch_geometric_qlr.ops.triton.launch import (
    cdiv,
    dense,
    ending,
    on_device,
    out_of,
    power_of_two,
    rows_of,
    vector,
)

__all__ = ["pack_values", "quantize_pack", "quantize_rows", "unpack"]

_WARPS = 4
#: Values of a program, and bytes of a row that it makes at once.
_VALUES, _MOST_BYTES = 2048, 128


def _sizes(stride: int, bits: int) -> tuple[int, int]:
    """Rows and bytes of a program."""
    width = min(_MOST_BYTES, power_of_two(stride))
    return max(1, _VALUES // (width * (8 // bits))), width


def pack_values(x: Tensor, how: QParams) -> Tensor:
    r"""As :func:`~torch_geometric_qlr.ops.reference.quantize_pack`.

    Args:
        x (torch.Tensor): Values, on a device where nobody looks for a NaN.
        how (QParams): The quantizer.
    """
    n, cols = x.shape
    rows = rows_of(n, cols, storage_bits(how.bits))
    packed = packed_rows(x, n, cols, how.bits)
    if n == 0:
        return packed
    height, width = _sizes(rows.stride, rows.bits)
    out = out_of(packed, how)
    grid = (cdiv(n, height), cdiv(rows.stride, width))
    with on_device(x):
        quantize_pack_kernel[grid](
            dense(x),
            out.scale,
            out.zero,
            out.skew,
            packed,
            n,
            ROWS=rows,
            END=ending(n, cols, -1, output=how),
            HEIGHT=height,
            WIDTH=width,
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )
    return packed


def quantize_pack(a: Arguments) -> Tensor:
    """The kernel of the op."""
    return pack_values(finite_values(a.x), a.quantizer)


def quantize_rows(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of the op."""
    x: Tensor = finite_values(a.x)
    n, cols = x.shape
    rows = rows_of(n, cols, storage_bits(a.bits))
    packed, scale = packed_rows(x, n, cols, a.bits), float_rows(x, n, 1)
    zero_point = torch.empty_like(scale)
    if n == 0:
        return packed, scale, zero_point
    height, width = _sizes(rows.stride, rows.bits)
    how = QParams(a.multiplier, a.multiplier, a.bits, a.truncate)
    with on_device(x):
        quantize_rows_kernel[(cdiv(n, height),)](
            dense(x),
            vector(a.multiplier),
            vector(a.skew),
            packed,
            scale,
            zero_point,
            n,
            ROWS=rows,
            END=ending(n, cols, -1, output=how),
            ALIGNED=a.aligned,
            HEIGHT=height,
            WIDTH=width,
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )
    return packed, scale, zero_point


def unpack_codes(packed: Tensor, num_cols: int, bits: int) -> Tensor:
    r"""As :func:`~torch_geometric_qlr.ops.reference.unpack`.

    Args:
        packed (torch.Tensor): Packed rows.
        num_cols (int): Codes in a row.
        bits (int): 1, 2, 4 or 8.
    """
    n = packed.size(0)
    rows = rows_of(n, num_cols, bits)
    codes = packed.new_empty((n, num_cols))
    if codes.numel() == 0:
        return codes
    height, width = _sizes(rows.stride, bits)
    with on_device(packed):
        unpack_kernel[(cdiv(n, height), cdiv(rows.stride, width))](
            dense(packed),
            codes,
            n,
            ROWS=rows,
            HEIGHT=height,
            WIDTH=width,
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )
    return codes


def unpack(a: Arguments) -> Tensor:
    """The kernel of the op."""
    return unpack_codes(a.packed, a.num_cols, a.bits)
