"""Launches: the product of two packed matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.backend import NoKernel
from torch_geometric_qlr.ops.fakes import result_rows
from torch_geometric_qlr.ops.groups import PackedMatrix
from torch_geometric_qlr.ops.triton.forms import Rows
from torch_geometric_qlr.ops.triton.kernels.linear import linear_kernel, signed_kernel
from torch_geometric_qlr.ops.triton.launch import (
    affine_of,
    after_of,
    axis_of,
    cdiv,
    ending,
    on_device,
    out_of,
    power_of_two,
    sources_of,
)
from torch_geometric_qlr.ops.triton.memo import Memo

__all__ = ["packed_linear"]

_WARPS = 8
_HEIGHT = 64
#: Bytes of a row that a program multiplies at once.
_DEEP = 32
#: Columns of a program: as many as its registers have accumulators for.
_MOST_WIDE = 128
#: Products of codes of that many columns add up within 31 bits, with what zero points add.
_MOST_DEEP = 1 << 14

#: int8 codes of weights, and the sum of each row of them.
_SIGNED: Memo[tuple[Tensor, Tensor]] = Memo(most=256)


def _signed(weight: PackedMatrix, other: Rows, height: int) -> tuple[Tensor, Tensor]:
    """Weights as the tensor cores take them, padded with rows of zeros; made once."""

    def make() -> tuple[Tensor, Tensor]:
        data, rows = sources_of(weight)
        wide = cdiv(other.stride, _DEEP) * _DEEP * (8 // other.bits)
        codes = data.new_zeros((height, wide), dtype=torch.int8)
        sums = data.new_zeros(height, dtype=torch.int32)
        signed_kernel[(data.size(0),)](
            data,
            codes,
            sums,
            ROWS=rows,
            OTHER=other._replace(wide=False),
            WIDTH=power_of_two(wide),
            STRIDE=wide,
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )
        return codes, sums

    key = (weight.num_cols, weight.bits, other.bits, height)
    return _SIGNED.get(weight.data, key, make)


def packed_linear(a: Arguments) -> Tensor:
    """The kernel of the op."""
    x, weight, output = a.matrix, a.factor_matrix, a.output
    n, cols = x.data.size(0), weight.data.size(0)
    axis, weight_axis = axis_of(*x[3:]), axis_of(*weight[3:])
    if axis == 1 or weight_axis == 1:
        raise NoKernel("scales that differ along the columns that a product adds up")
    if x.num_cols > _MOST_DEEP:
        raise NoKernel(f"products of more than {_MOST_DEEP} columns")
    y = result_rows(x.data, n, cols, output)
    if n == 0 or cols == 0:
        return y.zero_()
    end = ending(n, cols, axis, a.epilogue, output)
    packed, rows = sources_of(x)
    width = max(16, end.unit * (8 // end.bits)) if end.bits else 16
    width = max(width, min(_MOST_WIDE, power_of_two(cols)))
    with on_device(packed):
        codes, sums = _signed(weight, rows, cdiv(cols, width) * width)
        linear_kernel[(cdiv(n, _HEIGHT), cdiv(cols, width))](
            packed,
            affine_of(*x[3:]),
            codes,
            sums,
            affine_of(*weight[3:]),
            after_of(a.epilogue),
            out_of(y, output),
            n,
            ROWS=rows,
            END=end,
            WEIGHT_AXIS=-1 if weight_axis == -1 else 1,
            WEIGHT_BITS=weight.bits,
            HEIGHT=_HEIGHT,
            WIDTH=width,
            STRIDE=codes.size(1),
            num_warps=_WARPS,
            enable_fp_fusion=False,
        )
    return y
