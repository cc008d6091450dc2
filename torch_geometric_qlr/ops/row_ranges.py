"""Codes with a range of its own for each row, made in one pass over the values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.ops.checks import FLOATS, Check
from torch_geometric_qlr.ops.layout import row_layout, storage_bits
from torch_geometric_qlr.ops.range_grid import range_grid
from torch_geometric_qlr.ops.reference import affine_params, quantize_pack

__all__ = ["check", "fake", "quantize_rows"]


def quantize_rows(
    x: Tensor,
    multiplier: Tensor,
    bits: int,
    truncate: bool = False,
    aligned: bool = False,
    skew: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Quantizes and packs each row with the range of its own values, and with them zero.

    .. math::
        s_i = \gamma \max \left( \frac{\beta_i - \alpha_i}{2^b - 1}, 10^{-20} \right), \quad
        z_i = \left\lfloor -\alpha_i \frac{\gamma}{s_i} \right\rceil, \quad
        \alpha_i = \min(0, \min_f x_{if}), \quad \beta_i = \max(0, \max_f x_{if})

    with 8 for :math:`b` if codes are truncated; the zero point of one bit is not rounded.

    Args:
        x (torch.Tensor): A float matrix :math:`[N, F]`.
        multiplier (torch.Tensor): :math:`\gamma`, one number.
        bits (int): :math:`b`, from 1 to 8.
        truncate (bool): Quantize to 8 bits and keep the top :math:`b` (BT, BT*).
        aligned (bool): Round the zero point to a level of the truncated codes.
        skew (torch.Tensor, optional): Shift of the thresholds in 8-bit codes (BT*).

    Returns:
        tuple: Packed codes, and the :math:`(S, Z)` of each row with which they are read back,
        :math:`[N, 1]`.

    Example:
        >>> x = torch.tensor([[0.0, 3.0], [-2.0, 4.0]])
        >>> packed, scale, zero_point = quantize_rows(x, torch.tensor(1.0), bits=2)
        >>> scale.tolist(), zero_point.tolist()
        ([[1.0], [2.0]], [[-0.0], [1.0]])
    """
    values = x.float()
    if x.size(1):
        lo, hi = (f(values, dim=1, keepdim=True) for f in (torch.amin, torch.amax))
    else:
        lo = hi = values.sum(dim=1, keepdim=True)
    lo, hi = lo.clamp_max(0.0), hi.clamp_min(0.0)
    scale, zero_point = range_grid(lo, hi, bits, truncate=truncate, aligned=aligned, own=True)
    scale = multiplier.float().reshape(()) * scale
    packed = quantize_pack(x, scale, zero_point, bits, truncate=truncate, skew=skew)
    return packed, *affine_params(scale, zero_point, bits, truncate)


def check(
    check: Check, x: Tensor, multiplier: Tensor, bits: int, skew: Tensor | None = None, **_: Any
) -> None:
    """What is checked of its arguments."""
    storage_bits(bits)
    check.matrix("x", x, FLOATS, "floating point")
    check.columns(x.size(1))
    check.dtype("multiplier", multiplier, FLOATS, "floating point")
    check.numbers("multiplier", multiplier, 1)
    check.skew("skew", skew)


def fake(x: Tensor, bits: int, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes of its results."""
    stride = row_layout(x.size(1), storage_bits(bits)).stride
    packed = x.new_empty((x.size(0), stride), dtype=torch.uint8)
    scale = x.new_empty((x.size(0), 1), dtype=torch.float32)
    return packed, scale, torch.empty_like(scale)
