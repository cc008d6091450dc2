"""Learned step size: the scale itself is a parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.quantizers.agreement import Conversation
from torch_geometric_qlr.quantizers.base import CodeParams, Quantizer
from torch_geometric_qlr.quantizers.frozen import FrozenGrid
from torch_geometric_qlr.quantizers.functional import floor
from torch_geometric_qlr.quantizers.observing import RangeState
from torch_geometric_qlr.quantizers.statistics import Batch

__all__ = ["LearnedStepQuant"]

_MIN_STEP = 1e-8


class LearnedStepQuant(Quantizer):
    r"""Learned step size quantization (LSQ) from the `"Learned Step Size Quantization"
    <https://arxiv.org/abs/1902.08153>`_ paper

    .. math::
        \hat x = s \left( \mathrm{clamp}(\lfloor x / s \rceil, -Q_N, Q_P) \right), \qquad
        \frac{\partial \hat x}{\partial s} = g \cdot \begin{cases}
            \lfloor x / s \rceil - x / s & \text{if } -Q_N \le \lfloor x / s \rceil \le Q_P \\
            -Q_N \text{ or } Q_P & \text{beyond}
        \end{cases}

    with :math:`Q_N = 2^{b-1}`, :math:`Q_P = 2^{b-1} - 1` for weights and for features some of which
    are negative, and :math:`Q_N = 0`, :math:`Q_P = 2^b - 1` for others. The step :math:`s` is
    learned, one per group, and :math:`g = 1 / \sqrt{n Q_P}` with the number :math:`n` of weights in
    the group, or of features. (The paper draws the line between the two cases at the ends
    themselves, half a step further in.)

    The first batch starts the step at :math:`2 \langle |x| \rangle / \sqrt{Q_P}`. The mean is that
    of the values other than 0, which any step represents: so a sparse matrix and a dense one start
    alike. Further evaluation batches before any training can only raise it.

    Select it with :obj:`method="lsq"`. It knows its steps before the data, so it has none per node,
    which is what the default configuration asks for at the input: the preset :obj:`"lsq"` asks for
    one per tensor.

    Args:
        config (QuantizerConfig): Width, granularity, statistics.
        num_groups (int): Output channels or features with a step of their own. (default: :obj:`1`)
        channel_dim (int): Dimension of the output channels, 0 or -1. (default: :obj:`0`)
        int_quant (torch.nn.Module, optional): Brevitas' view of the integer grid.

    Shapes:
        - **input:** :math:`(*)`, or :math:`(*, F)` per feature, :math:`(C, *)` per channel
        - **output:** values in the shape of the input, scale and zero point of shape :math:`()`,
          :math:`(C, 1)` or :math:`(1, F)`, and the bit width

    Raises:
        InputError: If the input is not floating point, or holds NaN or Inf while the step starts.

    Example:
        >>> quantizer = LearnedStepQuant(QuantizerConfig(bits=2))
        >>> value, scale, zero_point, bits = quantizer(torch.tensor([-0.6, 0.25, 0.75, 0.4]))
        >>> value.tolist(), scale.item()
        ([-1.0, 0.0, 1.0, 0.0], 1.0)
    """

    step: Tensor
    offset: Tensor

    def register_numbers(self) -> None:
        super().register_numbers()
        self.step = nn.Parameter(torch.ones(self.shape))
        self.register_buffer("offset", torch.zeros(self.shape))

    @classmethod
    def refusal(cls, config: QuantizerConfig) -> str:
        if config.granularity == "node":
            return (
                "knows its steps before the data, so it has none per node. Use preset='lsq', or "
                "set granularity={'input': 'tensor'} and likewise where else it is 'node'."
            )
        if config.truncates:
            return "does not truncate. Leave out truncation, or take method='learned_range'."
        if config.bits == 1:
            return "needs 2 bits or more. Raise the bits, or take method='learned_range'."
        return ""

    @property
    def is_static(self) -> bool:
        return True

    def code_params(
        self, x: Tensor, *, exact_zero: bool = False, skew: Tensor | None = None
    ) -> CodeParams:
        step, offset = self.groups.beside(self.step), self.groups.beside(self.offset)
        scaled = step * self._gradient_factor(x)
        # Added to a difference of zero, so that the size of a tensor makes no difference to codes.
        step = step.detach() + (scaled - scaled.detach())
        return floor(step, _MIN_STEP), offset, None

    def freeze(self) -> FrozenGrid:
        return FrozenGrid.of(self)

    @torch.no_grad()
    def _gradient_factor(self, x: Tensor) -> Tensor:
        """:math:`g`, for a tensor of this size."""
        is_weight = self.config.statistics == "current"
        size = x.numel() // self.num_groups if is_weight else x.size(-1) if x.dim() else 1
        if self.config.granularity == "feature":
            size = 1
        return (max(1, size) * self._highest(self.groups.beside(self.offset))).rsqrt()

    def _highest(self, offset: Tensor) -> Tensor:
        """:math:`Q_P`."""
        return 2**self.bits - 1 - offset

    def observe(self, batch: Batch) -> None:
        if self.training and self.has_range:
            return  # from here on it learns
        step, offset = self._own(self.step), self._own(self.offset)
        signed = self._first_offset(batch.seen)
        if self.has_range:  # one more evaluation batch
            signed = torch.maximum(signed, offset)
            smaller = step * (self._highest(offset) / self._highest(signed)).sqrt()
            step.copy_(torch.maximum(smaller, self._first_step(batch, signed)))
        else:
            step.copy_(self._first_step(batch, signed))
        offset.copy_(signed)

    def _first_offset(self, x: Tensor) -> Tensor:
        """The code of zero, which is :math:`Q_N`."""
        half = torch.full_like(self.offset, 2 ** (self.bits - 1))
        if self.config.statistics == "current":  # a weight, whose sign may change
            return half
        return torch.where((x < 0).any(), half, 0.0)

    def _first_step(self, batch: Batch, offset: Tensor) -> Tensor:
        total, count = self._sizes(batch)
        self.check_finite(total)
        return self._step_for(total, count, offset)

    def _sizes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the absolute values of each group, and how many are not zero."""
        sizes = batch.seen.float().abs()
        dims = [] if self.groups.axis == -1 else [1 - self.groups.axis]
        return sizes.sum(dims), sizes.count_nonzero(dims or None)

    def _step_for(self, total: Tensor, count: Tensor, offset: Tensor) -> Tensor:
        mean = (total / count.clamp_min(1)).view(self.shape)
        start = 2 * mean / self._highest(offset).sqrt()
        return torch.where(start.isfinite() & (start > 0), start, 1.0)

    def start_together(self, noted: tuple[Batch, int] | None) -> Conversation:
        rows = yield self._told(noted)
        offset, grown = rows.amax(0).float().view(4, *self.shape)[:2]
        total, count = rows.sum(0).float().view(4, *self.shape)[2:]
        start = self._step_for(total, count, offset)
        # Without a trace, for what was computed from the parameter before is still right.
        self.step.data.copy_(torch.where(grown > 0, grown, start))
        self.offset.data.copy_(offset)
        self._set_state(RangeState.FIXED)

    def _told(self, noted: tuple[Batch, int] | None) -> Tensor:
        """Offset and step that evaluation has left, or what a first step follows from."""
        told = torch.zeros(4, *self.shape, dtype=torch.double, device=self.device)
        if noted is not None:
            batch, state = noted
            if state == RangeState.GROWING:
                told[0], told[1] = self.offset, self.step
            else:
                total, count = self._sizes(batch)
                told[0] = self._first_offset(batch.seen)
                told[2], told[3] = total.view(self.shape), count.view(self.shape)
        return told.reshape(-1)
