"""Quantizers whose grid is that of a range: the range times a multiplier, cut into codes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.ops.reference import truncation_step
from torch_geometric_qlr.quantizers.base import CodeParams, Quantizer
from torch_geometric_qlr.quantizers.frozen import Frozen, Made, RowGrid
from torch_geometric_qlr.quantizers.functional import floored_multiplier
from torch_geometric_qlr.quantizers.observing import RangeState
from torch_geometric_qlr.quantizers.statistics import (
    Batch,
    Grid,
    Range,
    skewness,
    value_range,
)

__all__ = ["FrozenRange", "RangeQuantizer"]

_MIN_SCALE = 1e-20


class RangeQuantizer(Quantizer):
    r"""Base class of quantizers with a range :math:`[\alpha, \beta] \ni 0` and a multiplier
    :math:`\gamma`, see :class:`~torch_geometric_qlr.quantizers.LearnedRangeQuant`.

    A subclass registers :obj:`gamma`, and moves :obj:`lo`, :obj:`hi` and for BT* :obj:`skew` where
    statistics are running: numbers, or vectors with one entry per group.

    Args:
        config (QuantizerConfig): Width, truncation, granularity, statistics.
        num_groups (int): Ranges with a multiplier of their own. (default: :obj:`1`)
        channel_dim (int): Dimension of the output channels, 0 or -1. (default: :obj:`0`)
        int_quant (torch.nn.Module, optional): Brevitas' view of the integer grid.
    """

    gamma: Tensor
    lo: Tensor
    hi: Tensor
    skew: Tensor

    def register_numbers(self) -> None:
        super().register_numbers()
        if self.is_static:
            self.register_buffer("lo", torch.zeros(self.shape))
            self.register_buffer("hi", torch.zeros(self.shape))
            if self.follows_skewness:
                self.register_buffer("skew", torch.zeros(()))
        # Last in the state, as it has always been.
        self.register_buffer("calibrated", self._buffers.pop("calibrated"))

    def code_params(
        self, x: Tensor, *, exact_zero: bool = False, skew: Tensor | None = None
    ) -> CodeParams:
        found = self._range_for(Batch(x.detach(), skew))
        return self._code_params(found, x.numel(), exact_zero)

    def freeze(self) -> Quantizer:
        return FrozenRange.of(self)

    @property
    def takes_range(self) -> bool:
        return self.is_static and not self.is_frozen

    def grid_of(self, lo: Tensor, hi: Tensor, skew: Tensor | None) -> Grid:
        r"""The grid of a range at a multiplier of one.

        Args:
            lo, hi (torch.Tensor): Its ends, one per group.
            skew (torch.Tensor, optional): The skewness, for BT*.
        """
        return self._grid(Range(self.groups.beside(lo), self.groups.beside(hi), skew))

    @torch.no_grad()
    def take_range(self, lo: Tensor, hi: Tensor, gamma: Tensor, skew: Tensor | None) -> None:
        r"""Takes a range that was found elsewhere, and fixes it.

        Args:
            lo, hi (torch.Tensor): Its ends, one per group.
            gamma (torch.Tensor): What it is multiplied by, likewise.
            skew (torch.Tensor, optional): The skewness, for BT*.

        Example:
            >>> from torch_geometric_qlr.config import QuantizerConfig
            >>> from torch_geometric_qlr.quantizers import build_quantizer
            >>> quantizer = build_quantizer(QuantizerConfig(bits=2)).eval()
            >>> ends = torch.tensor([0.0]), torch.tensor([6.0])
            >>> quantizer.take_range(*ends, torch.tensor([0.5]), None)
            >>> quantizer(torch.tensor([0.9, 5.0]))[0].tolist()
            [1.0, 3.0]
        """
        for kept, new in ((self.lo, lo), (self.hi, hi), (self.gamma, gamma)):
            kept.copy_(new.view(kept.shape))
        if skew is not None:
            self.skew.copy_(skew)
        self._set_state(RangeState.FIXED)

    def _range_for(self, batch: Batch) -> Range:
        """What a batch is quantized with: the running range, or its own."""
        return self._kept_range() if self.is_static else self._range_of(batch)

    @torch.no_grad()
    def _range_of(self, batch: Batch) -> Range:
        """The batch's own range."""
        return self._measured(batch)

    def _measured(self, batch: Batch) -> Range:
        skew = batch.skew
        if self.follows_skewness and skew is None:
            skew = skewness(batch.seen)
        return Range(*value_range(batch.seen, self.groups.axis), skew)

    def _kept_range(self) -> Range:
        """The running range."""
        kept: Any = self._buffers  # `nn.Module` looks for every attribute in three places
        lo, hi = self.groups.beside(kept["lo"]), self.groups.beside(kept["hi"])
        return Range(lo, hi, self.skew if self.follows_skewness else None)

    def _code_params(self, found: Range, numel: int, exact_zero: bool = False) -> CodeParams:
        scale0, zero_point, shift = self._grid(found, exact_zero)
        gamma = self.groups.beside(self.gamma)
        return floored_multiplier(gamma, self._gradient_factor(numel)) * scale0, zero_point, shift

    def _gradient_factor(self, numel: int) -> float:
        """What the gradient of the multiplier is scaled by, for a tensor of this size."""
        if not self.config.gradient_scaling:
            return 1.0
        per_group = max(1, numel // max(1, self.gamma.numel()))
        return 1.0 / math.sqrt(per_group * (2**self.bits - 1))

    def _grid(self, found: Range, exact_zero: bool = False) -> Grid:
        """Scale at a multiplier of one, zero point, and shift of the thresholds."""
        width = found.hi - found.lo
        scale0 = (width / (2**self.config.code_bits - 1)).clamp_min(_MIN_SCALE)
        if not self.is_static:
            # NaN for what has no range, so that it stays none.
            scale0 = torch.add(scale0, width, alpha=0.0)
        zero_point = -found.lo / scale0
        if self.config.truncates and (self.config.zero_aligned or exact_zero):
            step = truncation_step(self.bits)
            zero_point = torch.round(zero_point / step) * step
        elif self.config.code_bits > 1 or exact_zero:
            zero_point = torch.round(zero_point)
        return Grid(scale0, zero_point, self._shift(found.skew))

    def _shift(self, skew: Tensor | None) -> Tensor | None:
        if skew is None:
            return None
        shift = skew * truncation_step(self.bits) if self.config.skewness_unit == "step" else skew
        return torch.round(shift) if self.config.skewness_rounding else shift


class FrozenRange(Frozen, RangeQuantizer):
    r"""What a quantizer with a range has learned, without what learns.

    Same state, same codes. Scale, zero point and shift of a range per tensor or per feature are
    computed once; a range per node is still taken from each row.

    Example:
        >>> from torch_geometric_qlr.config import QuantizerConfig
        >>> from torch_geometric_qlr.quantizers import LearnedRangeQuant
        >>> quantizer = LearnedRangeQuant(QuantizerConfig(bits=2)).eval()
        >>> _ = quantizer(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        >>> quantizer.freeze()
        FrozenRange(bits=2, granularity='tensor', range='fixed')
    """

    @classmethod
    def of(cls, quantizer: RangeQuantizer) -> FrozenRange:
        r"""Freezes a quantizer; growing ends. They share no state.

        Args:
            quantizer (RangeQuantizer): The quantizer; it stays as it is.
        """
        numbers = {n: getattr(quantizer, n, None) for n in ("gamma", "lo", "hi", "skew")}
        return cls._holding({n: t for n, t in numbers.items() if t is not None}, quantizer)

    def _forget(self) -> None:
        super()._forget()
        self._multiplier: Tensor | None = None

    def _make(self) -> None:
        if self.is_static:
            super()._make()
        else:
            self._multiplier_for(0)

    def _found(self, x: Tensor, exact_zero: bool = False, skew: Tensor | None = None) -> CodeParams:
        return RangeQuantizer.code_params(self, x, exact_zero=exact_zero, skew=skew)

    def _codes(self, x: Tensor) -> Made | None:
        return self._codes_by_row(x) if self.config.granularity == "node" else super()._codes(x)

    def _codes_by_row(self, x: Tensor) -> Made:
        """Codes with the range of each row, and how they are read back."""
        multiplier, _, *how = self._grid_by_row(x)
        packed, *params = torch.ops.qlr.quantize_rows(x, multiplier, *how)
        return packed, x.size(1), params

    def _row_grid(self, x: Tensor) -> RowGrid | None:
        by_row = self.config.granularity == "node"
        return self._grid_by_row(x) if by_row else super()._row_grid(x)

    def _grid_by_row(self, x: Tensor) -> RowGrid:
        skew = self._shift(skewness(x)) if self.follows_skewness else None
        config, multiplier = self.config, self._multiplier_for(x.numel())
        return RowGrid(multiplier, None, config.bits, config.truncates, config.zero_aligned, skew)

    def _is_lasting(self) -> bool:
        by_row = self.config.granularity == "node"
        scales = self.follows_skewness or self.config.gradient_scaling
        return not scales if by_row else super()._is_lasting()

    def _multiplier_for(self, numel: int) -> Tensor:
        """What the scale of a row is multiplied by, in a tensor of this size."""
        factor = self._gradient_factor(numel)
        if factor != 1.0:
            return floored_multiplier(self.gamma, factor)
        if torch.compiler.is_compiling():
            known = self._multiplier
            return floored_multiplier(self.gamma, factor) if known is None else known
        self._check_made()
        if self._multiplier is None:
            with torch.inference_mode(False), torch.no_grad():
                self._multiplier = floored_multiplier(self.gamma, factor)
        return self._multiplier
