"""The quantizer: an observed range times a learned multiplier, then plain or truncated codes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.quantizers.agreement import agreement
from torch_geometric_qlr.quantizers.base import CodeParams
from torch_geometric_qlr.quantizers.growing import GrowingRange
from torch_geometric_qlr.quantizers.learned_step import (
    Observer,
    quantize_learned,
    quantize_observed,
)
from torch_geometric_qlr.quantizers.observing import GROWTH, Observing, RangeState
from torch_geometric_qlr.quantizers.recomputation import RecentRanges
from torch_geometric_qlr.quantizers.searched_range import SearchedRange
from torch_geometric_qlr.quantizers.statistics import Batch, Range, fingerprint
from torch_geometric_qlr.quantizers.torch_state import (
    REAL,
    below_autograd,
    is_recomputing,
    may_be_recomputed,
    outside_of_transforms,
    runs_plainly,
)

__all__ = ["LearnedRangeQuant"]

_LOGGER = logging.getLogger("torch_geometric_qlr")
_TOLD: set[str] = set()
# Of a quantizer whose range is that of the values.
_OWN = (None, None, None)


class LearnedRangeQuant(SearchedRange):
    r"""Quantization with learnable ranges (QLR) from the `"Low-bit Quantization for Deep Graph
    Neural Networks with Smoothness-aware Message Propagation" <https://arxiv.org/abs/2308.14949>`_
    paper.

    The observed range :math:`[\alpha, \beta]`, which always contains 0, is multiplied by a learned
    :math:`\gamma > 0`:

    .. math::
        s_0 = \frac{\beta - \alpha}{2^b - 1}, \quad s = \gamma s_0, \quad
        z = \lfloor -\alpha / s_0 \rceil, \quad
        \hat x = s \left( \mathrm{clamp}(\lfloor x / s + z \rceil, 0, 2^b - 1) - z \right)

    With truncation (BT, BT*) the same at 8 bits, of which the top :math:`b` are kept, see
    :func:`torch_geometric_qlr.ops.quantize`. At 1 bit the zero point is not rounded: an
    integer one would leave a signed tensor with only one sign.

    It meets the contract of a Brevitas :obj:`tensor_quant`, so it works inside
    :class:`brevitas.nn.QuantLinear` and :class:`brevitas.nn.QuantIdentity` through the injectors of
    :mod:`torch_geometric_qlr.quantizers`. The arithmetic and all of its state are float32 whatever
    the dtype of the model; the result has the dtype of the input.

    **Where a range comes from.** Training batches move running statistics, and the first one starts
    the multiplier. Before any training, evaluation batches count, each of them: the range is the
    union of theirs, as :class:`~torch_geometric_qlr.quantizers.growing.GrowingRange` says, whatever
    their order, and a batch that has been counted changes nothing. Training goes on from there.
    After a training batch, a load or :meth:`fix` evaluation moves nothing. :attr:`range_state` and
    the printed module say which it is.

    **What observes nothing.** A forward that autograd computes again in its backward pass
    (checkpointing, invertible layers): it is given the range of the first time, found by the data
    among the last 32 such training batches of the quantizer; of batches that are equal the latest
    counts. Forwards under :func:`torch.func.vmap`, and with tensors without values (meta, fake).
    Compiled code counts the first evaluation batch only.

    The multipliers are parameters, one per group and thus vectors: an initializer for matrices
    leaves them alone. One that draws *all* parameters ruins them;
    :func:`torch_geometric_qlr.quant_parameters` lists them, and :meth:`reset_parameters` starts
    anew.

    Args:
        config (QuantizerConfig): Width, truncation, granularity, statistics.
        num_groups (int): Ranges with a multiplier of their own: output channels or features. Not
            used per tensor or per node. (default: :obj:`1`)
        channel_dim (int): Dimension of the output channels, 0 or -1. (default: :obj:`0`)
        int_quant (torch.nn.Module, optional): Brevitas' view of the integer grid.

    Shapes:
        - **input:** :math:`(*)`, or :math:`(*, F)` per feature and per node, :math:`(C, *)` per
          channel
        - **output:** values in the shape of the input, scale and zero point of shape :math:`()`,
          :math:`(G, 1)` or :math:`(1, G)`, and the bit width

    Raises:
        InputError: If the input is not floating point, or holds NaN or Inf while the range is
            observed on a CPU. On other devices such a batch leaves the range as it is, since
            looking would stall the device. With a fixed range in eval, what is not a number stays
            none; where a row or channel brings its own range, all of it.

    Example:
        >>> from torch_geometric_qlr.config import QuantizerConfig
        >>> quantizer = LearnedRangeQuant(QuantizerConfig(bits=2, search=False))
        >>> value, scale, zero_point, bits = quantizer(torch.tensor([-1.0, 0.0, 0.9, 2.0]))
        >>> value.tolist(), zero_point.item()
        ([-1.0, 0.0, 1.0, 2.0], 1.0)
    """

    gamma: nn.Parameter

    def register_numbers(self) -> None:
        super().register_numbers()
        self.gamma = nn.Parameter(torch.ones(self.shape))
        self._growing: GrowingRange | None = None
        self._recent = RecentRanges()

    def _set_state(self, state: int) -> None:
        super()._set_state(state)
        if state != RangeState.GROWING:
            self._growing = None

    def take_back(self, earlier: Observing) -> None:
        super().take_back(earlier)
        assert isinstance(earlier, LearnedRangeQuant)
        self._growing = earlier._growing

    # Looking at data ##############################################################################

    def _quantized(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not runs_plainly():
            return super()._quantized(x)
        if self._learns_at_once(x):
            try:
                return quantize_observed(x, self.gamma, self._observer(x))
            except InputError:
                pass  # what is wrong with it is said below
        with below_autograd():
            grid = self._grid(self._range_of_passing(Batch(x.detach())))
        factor, truncate = self._gradient_factor(x.numel()), self.config.truncates
        value, scale = quantize_learned(x, self.gamma, grid, self.bits, truncate, factor)
        return value, scale, grid.zero_point

    def _learns_at_once(self, x: Tensor) -> bool:
        """Whether this is a training step like most, which one op computes from range to values.
        The skewness is a sum, whose rounding depends on who takes it."""
        return (
            self.training
            and type(x) in REAL
            and x.dtype == torch.float32
            and not x.is_meta
            and x.numel() > 0
            and not self.follows_skewness
            and not (self.is_static and agreement() is not None)
            and self.range_state == RangeState.FIXED
            and not may_be_recomputed()
            and not is_recomputing()
        )

    def _observer(self, x: Tensor) -> Observer:
        """What the op is told of this quantizer."""
        config, (lo, hi, _) = self.config, self._kept_range() if self.is_static else _OWN
        return Observer(
            *(lo, hi, self.groups.axis, config.bits, config.truncates, config.zero_aligned),
            *(config.momentum, self._gradient_factor(x.numel())),
        )

    def _params_for(self, batch: Batch, exact_zero: bool = False) -> CodeParams:
        return self._code_params(self._range_of_passing(batch), batch.seen.numel(), exact_zero)

    def _range_of_passing(self, batch: Batch) -> Range:
        """The range to quantize a batch with, after looking at it if that is due."""
        if not self._looks(batch):
            return self._range_for(batch)
        seen, state = self._shown(batch), self.range_state
        if seen is None:
            return self._range_for(batch)
        if is_recomputing() and state != RangeState.MISSING:
            return self._range_of_first_time(batch)
        if seen is batch.seen:
            own = self._look(batch, state, may_be_recomputed())
        else:
            with outside_of_transforms():
                own = self._look(batch._replace(seen=seen), state)
        return self._kept_range() if self.is_static else own

    def _range_of_first_time(self, batch: Batch) -> Range:
        before = None
        if self.is_static and self.training:
            before = self._recent.find(fingerprint(batch.seen, self._range_of(batch)))
        return self._range_for(batch) if before is None else before

    def _look(self, batch: Batch, state: int, remembers: bool = False) -> Range:
        """Observes a batch, and returns its own range."""
        seen = self._measured(batch)
        self.check_finite(seen.lo, seen.hi)
        if self.training:
            self._train_on(batch, seen, state, remembers)
        elif torch.compiler.is_compiling():
            if state == RangeState.MISSING:
                self._start(batch, seen)
                self._set_state(RangeState.GROWING)
        else:
            with GROWTH:
                self._grow(batch, seen)
        return seen

    # In training ##################################################################################

    def _train_on(self, batch: Batch, seen: Range, state: int, remembers: bool) -> None:
        joint = agreement()
        if joint is not None and joint.opens(self):
            self._meet(joint, batch, seen, state)
            state = RangeState.FIXED
        elif state == RangeState.MISSING:
            self._start(batch, seen)
        elif self.is_static:
            self._follow(seen if joint is None else self._see_together(joint, batch, seen))
        if state != RangeState.FIXED:
            self._take_first()
            self._set_state(RangeState.FIXED)
        if remembers and self.is_static:
            self._recent.add(fingerprint(batch.seen, seen), self._own_range().clone())

    @torch.no_grad()
    def _start(self, batch: Batch, seen: Range) -> None:
        """Takes the range and the multiplier of a batch."""
        if self.config.search:
            self._own(self.gamma).copy_(self._search(batch, seen).view(self.gamma.shape))
        if self.is_static:
            for kept, new in zip(self._own_range(), seen, strict=True):
                if kept is not None and new is not None:
                    kept.copy_(torch.where(new.isfinite(), new, 0.0))

    # In evaluation, before any training ###########################################################

    @torch.no_grad()
    def _grow(self, batch: Batch, seen: Range) -> None:
        state = self.range_state  # another thread may have been here
        if state == RangeState.FIXED or not bool((seen.lo.sum() + seen.hi.sum()).isfinite()):
            return
        mark = fingerprint(batch.seen, seen)
        if state == RangeState.MISSING:
            self._start(batch, seen)
            self._growing = GrowingRange(seen, self._multiplier(), self.is_static)
            self._growing.is_new(mark)
            self._set_state(RangeState.GROWING)
            self._tell()
            return
        growing = self._growing
        if growing is None:  # a copy through buffers
            kept = self._own_range().clone() if self.is_static else seen
            growing = self._growing = GrowingRange(kept, self._multiplier(), self.is_static)
        elif not torch.equal(growing.gamma.to(self.gamma.device), self._multiplier()):
            self.fix()  # somebody learns it in eval, as in fine-tuning with fixed statistics
            return
        if growing.is_new(mark):
            gamma = self._search(batch, seen) if self.config.search else self._multiplier()
            growing.add(seen, gamma)
            self._take(growing)

    def _take(self, growing: GrowingRange) -> None:
        """Copies what has changed, and only that: other threads may be reading."""
        pairs: list[tuple[Tensor | None, Tensor | None]] = []
        if self.config.search:
            pairs.append((self.groups.beside(self._own(self.gamma)), growing.gamma))
        else:
            growing.gamma = self._multiplier()
        if self.is_static:
            pairs += zip(self._own_range(), growing.range, strict=True)
        for kept, new in pairs:
            if kept is not None and new is not None and not torch.equal(kept, new):
                kept.copy_(new)

    def _tell(self) -> None:
        if self.is_static and "growing" not in _TOLD:
            _TOLD.add("growing")
            _LOGGER.info(
                "%s has a range from an evaluation batch, and so have all quantizers that see "
                "their first batch in eval: each further evaluation batch counts, until the model "
                "is trained, converted or loaded, or quantizer.fix() is called. (Said once.)",
                self._name,
            )

    # Changes reach the tensors themselves, also where a transform follows them.

    def _multiplier(self) -> Tensor:
        return self.groups.beside(self._own(self.gamma)).detach().clone()

    # What a module goes through ###################################################################

    def reset_parameters(self) -> None:
        r"""Forgets the range and the multiplier; the next batch starts them anew."""
        with torch.no_grad():
            self.gamma.fill_(1.0)
            for name in ("lo", "hi", "skew"):
                if name in self._buffers:
                    self.get_buffer(name).zero_()
        super().reset_parameters()
        self._recent.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LearnedRangeQuant:
        super()._apply(fn, recurse)
        self._recent.clear()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._growing = None
        self._recent.clear()
