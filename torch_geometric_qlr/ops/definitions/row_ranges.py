"""Codes with a range of its own for each row, made in one pass over the values."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.checks import FLOATS, Check, place_not_finite
from torch_geometric_qlr.ops.definition import Call, Definition
from torch_geometric_qlr.ops.definitions.codes import finite_values
from torch_geometric_qlr.ops.fakes import float_rows, packed_rows
from torch_geometric_qlr.ops.layout import storage_bits
from torch_geometric_qlr.ops.range_grid import range_grid
from torch_geometric_qlr.ops.reference import affine_params

__all__ = ["QuantizeRows"]


class QuantizeRows(Definition, op="quantize_rows"):
    r"""Quantizes and packs each row with the range of its own values, and with them zero.

    .. math::
        s_i = \gamma \max \left( \frac{\beta_i - \alpha_i}{2^b - 1}, 10^{-20} \right), \quad
        z_i = \left\lfloor -\alpha_i \frac{\gamma}{s_i} \right\rceil, \quad
        \alpha_i = \min(0, \min_f x_{if}), \quad \beta_i = \max(0, \max_f x_{if})

    with :math:`\gamma` the multiplier, and 8 for :math:`b` if codes are truncated; an aligned zero
    point is rounded to a level of the truncated codes, and that of one bit is not rounded. Gives
    packed codes, and the :math:`(S, Z)` of each row with which they are read back, :math:`[N, 1]`.

    Example:
        >>> x = torch.tensor([[0.0, 3.0], [-2.0, 4.0]])
        >>> packed, scale, zero_point = torch.ops.qlr.quantize_rows(x, torch.tensor(1.0), bits=2)
        >>> scale.tolist(), zero_point.abs().tolist()
        ([[1.0], [2.0]], [[0.0], [1.0]])
    """

    def check(self, check: Check, a: Arguments) -> None:
        storage_bits(a.bits)
        check.matrix("x", a.x, FLOATS, "floating point")
        check.columns(a.x.size(1))
        check.dtype("multiplier", a.multiplier, FLOATS, "floating point")
        check.numbers("multiplier", a.multiplier, 1)
        check.skew("skew", a.skew)

    def fake(self, a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
        rows = a.x.size(0)
        scale = float_rows(a.x, rows, 1)
        return packed_rows(a.x, rows, a.x.size(1), a.bits), scale, torch.empty_like(scale)

    def compute(self, a: Arguments, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        values = finite_values(a.x).float()
        if values.size(1):
            lo, hi = (f(values, dim=1, keepdim=True) for f in (torch.amin, torch.amax))
        else:
            lo = hi = values.sum(dim=1, keepdim=True)
        lo, hi = lo.clamp_max(0.0), hi.clamp_min(0.0)
        scale, zero_point = range_grid(
            lo, hi, a.bits, truncate=a.truncate, aligned=a.aligned, own=True
        )
        scale = a.multiplier.float().reshape(()) * scale
        packed = call("quantize_pack", a.x, scale, zero_point, a.bits, a.truncate, a.skew)
        return packed, *affine_params(scale, zero_point, a.bits, a.truncate)

    def not_finite(self, a: Arguments) -> str:
        return place_not_finite(a.x)
