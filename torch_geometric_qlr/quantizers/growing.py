"""A range made of evaluation batches: the union of theirs, in whatever order they come."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

from torch_geometric_qlr.quantizers.statistics import Range

__all__ = ["GrowingRange"]

# Batches that are recognised, so that evaluating them again costs no search.
_RECOGNISED = 256


class GrowingRange:
    r"""The union of the ranges of evaluation batches, and of their best clipped ranges.

    With :math:`[\alpha_k, \beta_k]` the range of batch :math:`k` and :math:`\gamma_k` the best
    multiplier for it alone,

    .. math::
        \alpha = \min_k \alpha_k, \quad \beta = \max_k \beta_k, \quad
        \gamma = \max \left( \frac{\min_k \gamma_k \alpha_k}{\alpha},
        \frac{\max_k \gamma_k \beta_k}{\beta} \right),

    the smallest multiplier with which no batch is clipped more than it would be alone. Where every
    batch brings its own range, :math:`\gamma = \max_k \gamma_k`. The skewness is the mean of
    theirs. Nothing depends on the order but rounding.

    Args:
        found (Range): The range of the first batch.
        gamma (torch.Tensor): Its multiplier.
        running (bool): Whether ranges are kept; else only multipliers are.

    Example:
        >>> def batch(hi, gamma):
        ...     return Range(torch.tensor(0.0), torch.tensor(hi), None), torch.tensor(gamma)
        >>> growing = GrowingRange(*batch(10.0, 0.3), running=True)
        >>> growing.add(*batch(5.0, 1.0))
        >>> growing.range.hi, growing.gamma
        (tensor(10.), tensor(0.5000))
    """

    def __init__(self, found: Range, gamma: Tensor, running: bool) -> None:
        self.range, self.gamma, self.running = found, gamma, running
        self._clipped = gamma * found.lo, gamma * found.hi
        self._num_batches = 1
        self._counted: OrderedDict[bytes, None] = OrderedDict()

    def is_new(self, fingerprint: Tensor) -> bool:
        """Whether a batch has not been counted yet. Asking counts it."""
        key = hashlib.blake2b(fingerprint.cpu().numpy().tobytes(), digest_size=16).digest()
        if key in self._counted:
            return False
        self._counted[key] = None
        if len(self._counted) > _RECOGNISED:
            self._counted.popitem(last=False)
        return True

    def add(self, found: Range, gamma: Tensor) -> None:
        """Counts one more batch."""
        if not self.running:
            self.gamma = torch.maximum(self.gamma, gamma)
            return
        device = found.lo.device  # the quantizer may have moved
        lo = torch.minimum(self.range.lo.to(device), found.lo)
        hi = torch.maximum(self.range.hi.to(device), found.hi)
        clip_lo = torch.minimum(self._clipped[0].to(device), gamma * found.lo)
        clip_hi = torch.maximum(self._clipped[1].to(device), gamma * found.hi)
        share = torch.maximum(
            torch.where(lo < 0, clip_lo / lo, 0.0), torch.where(hi > 0, clip_hi / hi, 0.0)
        )
        self.gamma = torch.where(share > 0, share, gamma)
        self._clipped = clip_lo, clip_hi
        skew = self.range.skew
        self._num_batches += 1
        if skew is not None and found.skew is not None:
            skew = skew.to(device)
            change = torch.where(found.skew.isfinite(), found.skew - skew, 0.0)
            skew = skew + change / self._num_batches
        self.range = Range(lo, hi, skew)
