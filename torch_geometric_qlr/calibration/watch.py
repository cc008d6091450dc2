"""What one quantizer is shown, and the range that follows from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr.calibration.histogram import Histogram
from torch_geometric_qlr.ops import QParams
from torch_geometric_qlr.ops.reference import fake_quantize
from torch_geometric_qlr.quantizers import Quantizer
from torch_geometric_qlr.quantizers.statistics import power_sums, skewness_of

__all__ = ["ESTIMATORS", "Found", "Watch"]

_CANDIDATES = 100


class Found(NamedTuple):
    r"""A range and what it is multiplied by.

    Args:
        lo, hi (torch.Tensor): Its ends, one per group.
        gamma (torch.Tensor): The multiplier, one per group.
    """

    lo: Tensor
    hi: Tensor
    gamma: Tensor


class Watch:
    r"""Looks at what passes a quantizer.

    Args:
        quantizer (Quantizer): One that takes a range.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        self.histogram = Histogram(quantizer.num_groups, device=quantizer.device)
        #: Sums of the powers of the values, from which the skewness follows.
        self.powers = torch.zeros(4, dtype=torch.double, device=quantizer.device)

    def copy(self) -> Watch:
        """Another one that has seen the same."""
        new = Watch(self.quantizer)
        new.histogram, new.powers = copy.deepcopy(self.histogram), self.powers.clone()
        return new

    @property
    def has_seen(self) -> bool:
        """Whether anything has passed."""
        return self.histogram.num_values > 0

    def __call__(self, x: Tensor, zeros: int = 0) -> None:
        r"""Counts what passes.

        Args:
            x (torch.Tensor): The matrix, or a vector of stored values.
            zeros (int): How many zeros belong to it that are not stored.
        """
        if x.numel() == 0:
            return
        q = self.quantizer
        x = x.detach().float()
        q.check_finite(*(end.cpu() for end in x.aminmax()))  # nobody trains, so this may wait
        by_column = q.groups.axis == 1
        self.histogram.add(x if by_column else x.reshape(-1, 1))
        self.histogram.num_values += zeros
        if q.follows_skewness:
            self.powers += power_sums(x, zeros)

    def skewness(self) -> Tensor | None:
        """Of all that has passed, if the quantizer asks for it."""
        if not self.quantizer.follows_skewness:
            return None
        return skewness_of(self.powers)


def _whole(watch: Watch, share: float) -> Found:
    """All that was seen."""
    seen = watch.histogram
    return Found(seen.lo, seen.hi, torch.ones_like(seen.lo))


def _percentile(watch: Watch, share: float) -> Found:
    """A share of what was seen."""
    lo, hi = watch.histogram.between(share)
    return Found(lo.clamp_max(0.0), hi.clamp_min(0.0), torch.ones_like(lo))


def _least_error(watch: Watch, share: float) -> Found:
    """The multiplier with the least squared error, and thus the largest SQNR."""
    seen, q = watch.histogram, watch.quantizer
    lo, hi, _ = _whole(watch, share)
    grid = q.grid_of(lo, hi, watch.skewness())
    centers, counts = seen.centers().t(), seen.counts.t().double()
    best, least = torch.ones_like(lo), torch.full_like(lo, torch.inf, dtype=torch.double)
    for candidate in range(_CANDIDATES, 0, -1):
        gamma = candidate / _CANDIDATES
        how = QParams(grid.scale * gamma, grid.zero_point, q.bits, q.config.truncates, grid.shift)
        rounded, _ = fake_quantize(centers, how)
        error = (counts * (rounded - centers).double().square()).sum(0)
        best = torch.where(error < least, gamma, best)
        least = torch.minimum(error, least)
    return Found(lo, hi, best)


#: How a range follows from what was seen.
ESTIMATORS: dict[str, Callable[[Watch, float], Found]] = {
    "minmax": _whole,
    "percentile": _percentile,
    "mse": _least_error,
}
