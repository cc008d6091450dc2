"""The grid that a range is cut into."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.ops.reference import truncation_step

__all__ = ["range_grid"]

_MIN_SCALE = 1e-20


def range_grid(
    lo: Tensor, hi: Tensor, bits: int, *, truncate: bool, aligned: bool, own: bool
) -> tuple[Tensor, Tensor]:
    r"""Scale at a multiplier of one, and zero point. That of one bit is not rounded.

    Args:
        lo, hi (torch.Tensor): The range.
        bits (int): Width of a code.
        truncate (bool): Cut the grid of 8 bits.
        aligned (bool): Round the zero point to a level of the truncated codes.
        own (bool): Whether the range is that of the values themselves. Where its width is not
            finite there is no scale then, so that values that have none stay without.

    Example:
        >>> lo, hi = torch.tensor(-1.0), torch.tensor(2.0)
        >>> range_grid(lo, hi, 2, truncate=False, aligned=False, own=True)
        (tensor(1.), tensor(1.))
    """
    width = hi - lo
    levels = torch.full((), 2 ** (8 if truncate else bits) - 1.0, device=lo.device)
    scale = (width / levels).clamp_min(_MIN_SCALE)
    if own:
        scale = scale + 0.0 * width
    zero_point = -lo / scale
    if truncate and aligned:
        step = torch.full((), truncation_step(bits), device=lo.device)
        zero_point = torch.round(zero_point / step) * step
    elif truncate or bits > 1:
        zero_point = torch.round(zero_point)
    return scale, zero_point
