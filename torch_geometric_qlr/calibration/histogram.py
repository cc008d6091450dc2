"""How often values occur, in bins that depend on their range alone and not on their order."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Histogram"]

#: The narrowest bin is two to this power: a float may not be smaller.
_LEAST_EXPONENT = -126
#: Values whose bins are in memory together.
_AT_ONCE = 1 << 22


class Histogram:
    r"""Counts of values, for each group in bins :math:`[2^k a, 2^k (a + 1))` of one width.

    :math:`k` is the least exponent with which the bins cover the range of all values and zero. Bins
    of a larger exponent are pairs of those of a smaller one, so wherever a range grows counts are
    added up, and the same values give the same histogram in whatever batches they come. What a
    histogram says of a value is true to the width of a bin, at most the range over half of the
    number of bins. Values that are zero are counted apart.

    Args:
        num_groups (int): Columns that are counted each for itself.
        num_bins (int): For each group. (default: :obj:`2048`)
        device (torch.device, optional): Where the counts are.

    Example:
        >>> histogram = Histogram(1)
        >>> histogram.add(torch.tensor([[0.5], [0.0]])), histogram.add(torch.tensor([[-1.5]]))
        (None, None)
        >>> histogram.lo.item(), histogram.hi.item(), histogram.num_values
        (-1.5, 0.5, 3)
        >>> histogram.counts.sum().item()
        2
    """

    def __init__(
        self, num_groups: int, num_bins: int = 2048, device: torch.device | None = None
    ) -> None:
        self.num_values = 0
        self.lo = torch.zeros(num_groups, device=device)
        self.hi = torch.zeros(num_groups, device=device)
        self.counts = torch.zeros(num_groups, num_bins, dtype=torch.long, device=device)
        self._exponent = torch.full((num_groups,), _LEAST_EXPONENT, device=device)
        self._first = torch.zeros(num_groups, dtype=torch.long, device=device)

    def add(self, x: Tensor) -> None:
        r"""Counts values.

        Args:
            x (torch.Tensor): Finite ones, :math:`[N, G]`.
        """
        if x.numel() == 0:
            return
        x = x.float()
        self.num_values += x.size(0)
        self.cover(torch.minimum(self.lo, x.amin(0)), torch.maximum(self.hi, x.amax(0)))
        groups, bins = self.counts.shape
        before = torch.arange(groups, device=x.device) * bins
        for part in x.split(max(1, _AT_ONCE // groups)):
            at = torch.ldexp(part, -self._exponent).floor().long() - self._first
            at = at.clamp_(0, bins - 1).add_(before)[part != 0]
            self.counts += torch.bincount(at, minlength=groups * bins).view(groups, bins)

    def centers(self) -> Tensor:
        """The middle of each bin, as far as values reach, :math:`[G, B]`."""
        bins = torch.arange(self.counts.size(1), device=self.lo.device)
        middle = self._first.view(-1, 1) + bins + 0.5
        values = torch.ldexp(middle.float(), self._exponent.view(-1, 1))
        return values.clamp(self.lo.view(-1, 1), self.hi.view(-1, 1))

    def between(self, share: float) -> tuple[Tensor, Tensor]:
        r"""The ends of the range that is left if at each end half of what is above a share of the
        values goes. Zero stays within.

        Args:
            share (float): From 0 to 1.

        Example:
            >>> histogram = Histogram(1)
            >>> histogram.add(torch.arange(1000.0).view(-1, 1))
            >>> [round(end.item(), -1) for end in histogram.between(0.9)]
            [50.0, 950.0]
        """
        counts = self.counts.double()
        zeros = self.num_values - counts.sum(1, keepdim=True)
        bins = torch.arange(counts.size(1), device=counts.device)
        reached = (counts + zeros * (self._first.view(-1, 1) + bins == 0)).cumsum(1)
        least, centers = (1 - share) / 2 * self.num_values, self.centers()
        low, high = (
            before.sum(1, keepdim=True).clamp_max(counts.size(1) - 1)
            for before in (reached <= least, reached < self.num_values - least)
        )
        return centers.gather(1, low).flatten(), centers.gather(1, high).flatten()

    def cover(self, lo: Tensor, hi: Tensor) -> None:
        r"""Widens the bins until they reach from one value to another.

        Args:
            lo, hi (torch.Tensor): One for each group, beyond all that was added.
        """
        bins = self.counts.size(1)
        exponent = self._least_exponent(lo, hi, bins)
        first = torch.ldexp(lo, -exponent).floor().long()
        if not (torch.equal(exponent, self._exponent) and torch.equal(first, self._first)):
            old = self._first.view(-1, 1) + torch.arange(bins, device=lo.device)
            new = (old >> (exponent - self._exponent).view(-1, 1)) - first.view(-1, 1)
            moved = torch.zeros_like(self.counts)
            self.counts = moved.scatter_add_(1, new.clamp_(0, bins - 1), self.counts)
        self.lo, self.hi, self._exponent, self._first = lo, hi, exponent, first

    @staticmethod
    def _least_exponent(lo: Tensor, hi: Tensor, bins: int) -> Tensor:
        width = (hi.double() - lo.double()) / bins
        exponent = width.log2().floor().sub_(1).clamp_min_(_LEAST_EXPONENT).long()
        while True:
            first, last = (torch.ldexp(end.double(), -exponent).floor() for end in (lo, hi))
            short = last - first >= bins
            if not bool(short.any()):
                return exponent
            exponent = exponent + short.long()
