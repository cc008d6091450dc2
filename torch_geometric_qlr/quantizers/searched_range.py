"""Ranges whose multiplier starts at the best of a grid: for one process, and for several."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr.quantizers.agreement import Agreement, Conversation
from torch_geometric_qlr.quantizers.functional import fake_quantize
from torch_geometric_qlr.quantizers.grid_search import (
    best_candidate,
    candidate_errors,
    search_multiplier,
)
from torch_geometric_qlr.quantizers.observing import RangeState
from torch_geometric_qlr.quantizers.ranges import RangeQuantizer
from torch_geometric_qlr.quantizers.statistics import Batch, Range, power_sums, skewness_of
from torch_geometric_qlr.quantizers.torch_state import is_transformed

__all__ = ["SearchedRange"]

# Sums and means of codes lie on a lattice, and so does the range that is observed on them. At a
# multiplier of the search's grid a large share of such values would fall exactly between two codes,
# where the order of a float sum decides which one is next. A factor near one that no ratio of small
# integers is takes them a hundred rounding errors away from there.
_OFF_LATTICE = 1.0 + math.sqrt(2) / 4096
_EXACT = 1e-6


#: A conversation with a result.
_Searched = Generator[Tensor, Tensor, Tensor]


class _First(NamedTuple):
    """What the first batch has shown: itself, its range, and the multiplier of evaluation."""

    batch: Batch
    seen: Range
    grown: Tensor | None


@dataclasses.dataclass
class _Moves:
    """How a forward has moved a range: the skewness before, how often, and the sums since."""

    skew: Tensor | None
    count: int = 0
    powers: Tensor | None = None


class SearchedRange(RangeQuantizer):
    r"""Base class of quantizers that search the multiplier of their range, and that agree on both
    with the other processes that train the model.

    The first batches of all processes start both as one batch would. Afterwards a range moves to
    what all processes see at the place; if their batches have led them there in another order, to
    what some see, until at the end of the forward all take the least :math:`\alpha` and the largest
    :math:`\beta` that any has come to. A step of a running range grows with the end that it moves
    to, so either way this is, bit for bit, what one process would have come to with what has
    passed in all of them. (Of a forward that passes here several times, the first time.) A process
    that has not been here says nothing.
    """

    # Alone ########################################################################################

    def _follow(self, seen: Range) -> None:
        kept, momentum = self._own_range(), self.config.momentum
        if not self._may_read(seen.lo):  # nobody has looked, so numbers that are none are left out
            lo = torch.where(seen.lo.isfinite(), seen.lo, kept.lo)
            hi = torch.where(seen.hi.isfinite(), seen.hi, kept.hi)
            seen = Range(lo, hi, seen.skew)
        kept.lo.lerp_(seen.lo, momentum)
        kept.hi.lerp_(seen.hi, momentum)
        if kept.skew is not None and seen.skew is not None:
            kept.skew.lerp_(torch.where(seen.skew.isfinite(), seen.skew, kept.skew), momentum)

    # Changes reach the tensors themselves, also where a transform follows them.

    def _own_range(self) -> Range:
        if not is_transformed():
            return self._kept_range()
        skew = self._own(self.skew) if self.follows_skewness else None
        lo, hi = (self.groups.beside(self._own(t)) for t in (self.lo, self.hi))
        return Range(lo, hi, skew)

    def _search(self, batch: Batch, seen: Range) -> Tensor:
        """The best multiplier for a batch with its own range."""
        scale, zero_point, shift = self._grid(seen)
        axis = self._search_axis
        gamma = search_multiplier(batch.seen, scale, zero_point, shift, self.config, axis)
        if not self._may_be_exact:
            return gamma * self._off_lattice(None)
        return gamma * self._off_lattice(self._residual(batch, seen, gamma))

    @property
    def _search_axis(self) -> int:
        return self.groups.axis if self.gamma.dim() else -1

    @property
    def _may_be_exact(self) -> bool:
        """Whether the range of a row may represent it exactly, as it does in bags of words."""
        return not self.is_static and self.config.granularity == "node"

    def _residual(self, batch: Batch, seen: Range, gamma: Tensor) -> Tensor:
        """The largest error, and the largest value."""
        scale, zero_point, shift = self._grid(seen)
        x = batch.values
        if batch.row is not None:  # of a sparse matrix the ranges of its rows have been seen only
            scale, zero_point = scale[batch.row], zero_point[batch.row]
        truncate = self.config.truncates
        x_hat = fake_quantize(
            x, scale * gamma, zero_point, self.bits, truncate=truncate, skew=shift
        )
        return torch.stack([(x_hat - x).abs().max(), x.abs().max()])

    def _off_lattice(self, residual: Tensor | None) -> Tensor | float:
        """The factor that takes what could be sums of codes off the boundaries between codes. Rows
        that their own range represents exactly stay exact."""
        if self.is_static:
            return _OFF_LATTICE
        if residual is None:  # a weight
            return 1.0
        return torch.where(residual[0] <= _EXACT * residual[1], 1.0, _OFF_LATTICE)

    # With others ##################################################################################

    def _meet(self, joint: Agreement, batch: Batch, seen: Range, state: int) -> None:
        """The first training batch, of this process and of the others."""
        grown = None
        if state == RangeState.GROWING:
            grown = self.gamma.detach().clone()
            if self.is_static:
                self._follow(seen)
                seen = self._own_range().clone()
        joint.meet(self, _First(batch, seen, grown))

    def start_together(self, noted: _First | None) -> Conversation:
        size, groups, skews = self.gamma.numel(), self.num_groups, 4 * self.follows_skewness
        told = torch.zeros(size + 2 * groups + skews, dtype=torch.double, device=self.device)
        if noted is not None:
            if noted.grown is not None:
                told[:size] = noted.grown.reshape(-1)
            if self.is_static:
                ends = torch.cat([-noted.seen.lo.reshape(-1), noted.seen.hi.reshape(-1)])
                told[size : size + 2 * groups] = ends.nan_to_num(0.0, 0.0, 0.0)
            if skews:
                told[-4:] = power_sums(noted.batch.values, noted.batch.zeros)
        rows = yield told
        most = rows[:, : size + 2 * groups].amax(0).float()
        grown, hi = most[:size].view_as(self.gamma), most[size + groups :]
        if self.is_static:
            skew = skewness_of(rows[:, -skews:].sum(0)) if skews else hi
            new = (-most[size : size + groups], hi, skew)
            for kept, value in zip(self._own_range(), new, strict=True):
                if kept is not None:
                    kept.copy_(value.view_as(kept))
        gamma = torch.ones_like(self.gamma)
        if self.config.search:
            gamma = yield from self._search_together(noted)
        # Without a trace: autograd may keep it for a loss that is still to be followed back.
        self._own(self.gamma).data.copy_(torch.where(grown > 0, grown, gamma.view_as(grown)))
        self._set_state(RangeState.FIXED)

    def _search_together(self, noted: _First | None) -> _Searched:
        """The multiplier with the least error over the values of all processes."""
        candidates, size = self.config.search_candidates, self.gamma.numel()
        told = torch.zeros(candidates * size + 1, dtype=torch.double, device=self.device)
        residual = told.new_zeros(2)
        if noted is not None:
            seen = self._own_range() if self.is_static else noted.seen
            batch, grid = noted.batch, self._grid(seen)
            errors = candidate_errors(batch.seen, *grid, self.config, self._search_axis)
            # A mean over all values is that over groups, each as often as it has values.
            told[:-1] = errors.double().reshape(-1) * batch.seen.numel()
            told[-1] = batch.seen.numel()
        sums = (yield told).sum(0)
        gamma = best_candidate((sums[:-1] / sums[-1]).view(candidates, *self.gamma.shape)).float()
        if not self._may_be_exact:
            return gamma * self._off_lattice(None)
        if noted is not None:
            residual = self._residual(noted.batch, noted.seen, gamma)
        return gamma * self._off_lattice((yield residual).amax(0).float())

    @property
    def num_exchanged(self) -> int:
        return (2 * self.num_groups + 4 * self.follows_skewness) if self.is_static else 0

    def _see_together(self, joint: Agreement, batch: Batch, seen: Range) -> Range:
        """The range that all processes see, as far as they are here."""
        moves: _Moves | None = joint.noted(self)
        told = torch.cat([seen.lo.reshape(-1), -seen.hi.reshape(-1)]).double()
        if self.follows_skewness:
            told = torch.cat([told, power_sums(batch.values, batch.zeros)])
        rows, here = joint.exchange(self, told)
        if moves is None:
            moves = _Moves(self.skew.clone() if self.follows_skewness else None)
            joint.note(self, moves)
        moves.count += 1
        ends, sums = rows.split([2 * self.num_groups, told.numel() - 2 * self.num_groups], dim=1)
        least = torch.where(here.view(-1, 1), ends, torch.inf).amin(0).float()
        lo, hi = (
            end.view_as(seen.lo) for end in (least[: self.num_groups], -least[self.num_groups :])
        )
        if not self.follows_skewness:
            return Range(lo, hi, seen.skew)
        own = told[-4:]
        moves.powers = own if moves.powers is None else moves.powers + own
        return Range(lo, hi, skewness_of((sums * here.view(-1, 1)).sum(0)))

    def move_together(self, joint: Agreement) -> Conversation:
        if not self.is_static:
            return
        moves: _Moves | None = joint.noted(self)
        kept, groups = self._kept_range(), self.num_groups
        ends = torch.cat([kept.lo.reshape(-1), -kept.hi.reshape(-1)]).double()
        told = [ends if moves else torch.full_like(ends, torch.inf)]
        if self.follows_skewness:
            sums = moves.powers if moves and moves.powers is not None else ends.new_zeros(4)
            told += [ends.new_full((1,), moves.count if moves else 0), sums]
        rows = yield torch.cat(told)
        least = rows[:, : 2 * groups].amin(0).float()
        for end, new in ((kept.lo, least[:groups]), (kept.hi, -least[groups:])):
            end.copy_(torch.where(new.isfinite(), new, end.reshape(-1)).view_as(end))
        if kept.skew is not None:
            count, sums = rows[:, -5].amax(), rows[:, -4:].sum(0)
            before = moves.skew if moves and moves.skew is not None else kept.skew.clone()
            share = 1.0 - (1.0 - self.config.momentum) ** count.float()
            moved = torch.lerp(before, skewness_of(sums), share)
            kept.skew.copy_(torch.where(moved.isfinite(), moved, before))
