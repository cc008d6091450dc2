"""The quantizer: an observed range times a learned multiplier, then plain or truncated codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.ops.reference import affine_params, truncation_step
from torch_geometric_qlr.quantizers.functional import fake_quantize, floor, scale_gradient
from torch_geometric_qlr.quantizers.grid_search import search_multiplier
from torch_geometric_qlr.quantizers.signature import SignedState
from torch_geometric_qlr.quantizers.statistics import Groups, skewness, value_range
from torch_geometric_qlr.quantizers.stored import entries, with_values

__all__ = ["LearnedRangeQuant"]

_MIN_MULTIPLIER = 1e-3
_MIN_SCALE = 1e-20
# Sums and means of codes lie on a lattice, and so does the range that is observed on them. At a
# multiplier of the search's grid a large share of such values would fall exactly between two codes,
# where the order of a float sum decides which one is next. A factor near one that no ratio of small
# integers is takes them a hundred rounding errors away from there.
_OFF_LATTICE = 1.0 + math.sqrt(2) / 4096


class LearnedRangeQuant(SignedState):
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
            looking would stall the device.

    Example:
        >>> quantizer = LearnedRangeQuant(QuantizerConfig(bits=2, search=False))
        >>> value, scale, zero_point, bits = quantizer(torch.tensor([-1.0, 0.0, 0.9, 2.0]))
        >>> value.tolist(), zero_point.item()
        ([-1.0, 0.0, 1.0, 2.0], 1.0)
    """

    gamma: nn.Parameter
    lo: Tensor
    hi: Tensor
    skew: Tensor
    calibrated: Tensor
    _bit_width: Tensor

    def __init__(
        self,
        config: QuantizerConfig,
        num_groups: int = 1,
        channel_dim: int = 0,
        int_quant: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.groups = Groups(config.granularity, channel_dim)
        #: Where this quantizer sits, ``"convs.0.source"`` say, for error messages.
        self.path = ""
        #: Brevitas sets this to look at statistics without quantizing.
        self.observer_only = False
        #: Whether the last strict load was of a float checkpoint, without ranges.
        self.loaded_fresh = False
        self.int_quant = int_quant
        per_node = config.granularity == "node"
        shape = () if per_node else self.groups.shape(num_groups)
        self.gamma = nn.Parameter(torch.ones(shape))
        if config.statistics == "running":
            self.register_buffer("lo", torch.zeros(shape))
            self.register_buffer("hi", torch.zeros(shape))
            if self._follows_skewness:
                self.register_buffer("skew", torch.zeros(()))
        self.register_buffer("calibrated", torch.tensor(False))
        self._ready = False
        self.register_buffer("_bit_width", torch.tensor(float(config.bits)), persistent=False)

    # What the codes are ###########################################################################

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.config.bits

    @property
    def _follows_skewness(self) -> bool:
        return self.config.truncates and self.config.truncation == "bt*"

    def code_params(
        self, x: Tensor, *, exact_zero: bool = False, skew: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        r"""The :math:`(s, z, k)` with which :func:`torch_geometric_qlr.ops.quantize` makes codes.

        Args:
            x (torch.Tensor): The tensor, as a matrix; only looked at where the range is taken from
                it (weights, rows).
            exact_zero (bool): Make 0 a level, as a sparse tensor needs. (default: :obj:`False`)
            skew (torch.Tensor, optional): Skewness of the tensor, where the matrix does not show
                it. (default: that of :obj:`x`)
        """
        lo, hi, skew = self._observed(x, skew)
        scale0 = ((hi - lo) / (2**self.config.code_bits - 1)).clamp_min(_MIN_SCALE)
        zero_point = -lo / scale0
        if self.config.truncates and (self.config.zero_aligned or exact_zero):
            step = truncation_step(self.bits)
            zero_point = torch.round(zero_point / step) * step
        elif self.config.code_bits > 1 or exact_zero:
            zero_point = torch.round(zero_point)
        gamma: Tensor = self.gamma
        if self.config.gradient_scaling:
            gamma = scale_gradient(gamma, self._lsq_factor(x))
        return floor(gamma, _MIN_MULTIPLIER) * scale0, zero_point, self._shift(skew)

    def _lsq_factor(self, x: Tensor) -> float:
        per_group = max(1, x.numel() // max(1, self.gamma.numel()))
        return 1.0 / math.sqrt(per_group * (2**self.bits - 1))

    def _shift(self, skew: Tensor | None) -> Tensor | None:
        if skew is None:
            return None
        shift = skew * truncation_step(self.bits) if self.config.skewness_unit == "step" else skew
        return torch.round(shift) if self.config.skewness_rounding else shift

    def _observed(self, x: Tensor, skew: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.config.statistics == "running":
            return self.lo, self.hi, self.skew if self._follows_skewness else None
        with torch.no_grad():
            lo, hi = value_range(x.detach(), self.groups.axis)
            self._check_finite(lo, hi)
            if self._follows_skewness and skew is None:
                skew = skewness(x.detach())
            return lo, hi, skew

    # Forward ######################################################################################

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""Returns values, scale, zero point and bit width, as Brevitas expects."""
        if not x.is_floating_point():
            raise InputError(
                f"{self.path or 'quantizer'}: the input is {x.dtype}; quantization starts from "
                f"floating point values. Cast it: x.float()."
            )
        matrix = self.groups.matrix(x)
        self._check_groups(matrix)
        if x.numel() > 0:  # an empty graph has nothing to observe and nothing to round
            self._observe(matrix.detach())
        elif self.config.statistics == "current":
            return x, *self._empty_params(matrix), self._bit_width
        scale, zero_point, skew = self.code_params(matrix)
        value = x
        if not self.observer_only:
            value = fake_quantize(
                matrix, scale, zero_point, self.bits, truncate=self.config.truncates, skew=skew
            ).view_as(x)
        return (
            value,
            *affine_params(scale, zero_point, self.bits, self.config.truncates),
            self._bit_width,
        )

    def quantize_sparse(self, x: Tensor) -> Tensor:
        r"""Quantizes the stored values of a :obj:`torch.sparse` matrix; its zeros stay zero.

        For that the zero point is a level, as with :obj:`zero_aligned`. Where nothing is negative,
        as in bags of words, it is one anyway.

        Args:
            x (torch.Tensor): A matrix in COO, CSR or CSC layout.

        Raises:
            InputError: If ranges are per feature, for which the pattern has no order.
        """
        x = x.coalesce() if x.layout == torch.sparse_coo else x
        return with_values(x, self.quantize_stored(x))

    def quantize_stored(self, x: Tensor) -> Tensor:
        r"""What :meth:`quantize_sparse` stores, as a vector.

        Args:
            x (torch.Tensor): A matrix in coalesced COO, CSR or CSC layout.

        Raises:
            InputError: If ranges are per feature, for which the pattern has no order.
        """
        if self.config.granularity == "feature":
            raise InputError(
                f"{self.path or 'quantizer'}: the input is sparse, which needs one range per "
                f"tensor or per node. Set granularity={{'input': 'node'}}, or x.to_dense()."
            )
        values = x.values()
        if values.numel() == 0:
            return values
        seen, per_node = values.detach(), self.config.granularity == "node"
        # The zeros that are not stored count, so that the form of the matrix makes no difference.
        skew = skewness(seen, numel=x.shape.numel()) if self._follows_skewness else None
        row = entries(x)[0] if per_node else None
        if row is not None:  # one range per row of the matrix; then each value is its own row
            zero = values.new_zeros(x.size(0))
            lo, hi = (zero.scatter_reduce(0, row, seen, reduce) for reduce in ("amin", "amax"))
            seen = torch.stack([lo, hi], dim=1)
        self._observe(seen, skew, stored=(values.detach().view(-1, 1), row))
        scale, zero_point, skew = self.code_params(seen, exact_zero=True, skew=skew)
        out = fake_quantize(
            values.view(-1, 1),
            scale if row is None else scale[row],
            zero_point if row is None else zero_point[row],
            self.bits,
            truncate=self.config.truncates,
            skew=skew,
        )
        return out.view(-1)

    def _empty_params(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.groups.shape(x.size(self.groups.axis)) if self.groups.axis != -1 else ()
        return x.new_ones(shape, dtype=torch.float32), x.new_zeros(shape, dtype=torch.float32)

    # Statistics ###################################################################################

    @torch.no_grad()
    def _observe(
        self,
        x: Tensor,
        skew: Tensor | None = None,
        stored: tuple[Tensor, Tensor | None] | None = None,
    ) -> None:
        started = self._is_started()
        running = self.config.statistics == "running"
        if running and (self.training or not started):
            self._update_statistics(x, skew)
        if not started:
            self._start(x, skew, stored)

    def _is_started(self) -> bool:
        # The Python flag spares the device a stall per step. The buffer is asked only until it is
        # set, because copies (EMA, DDP) and checkpoints arrive through it.
        if not self._ready and not torch.compiler.is_compiling():
            self._ready = bool(self.calibrated)
        return self._ready

    def _update_statistics(self, x: Tensor, skew: Tensor | None) -> None:
        lo, hi = value_range(x, self.groups.axis)
        self._check_finite(lo, hi)
        momentum = torch.where(self.calibrated, self.config.momentum, 1.0)
        self.lo.lerp_(torch.where(lo.isfinite(), lo, self.lo), momentum)
        self.hi.lerp_(torch.where(hi.isfinite(), hi, self.hi), momentum)
        if self._follows_skewness:
            skew = skewness(x) if skew is None else skew
            self.skew.lerp_(torch.where(skew.isfinite(), skew, self.skew), momentum)

    def _start(
        self, x: Tensor, skew: Tensor | None, stored: tuple[Tensor, Tensor | None] | None
    ) -> None:
        if self.config.search:
            scale, zero_point, skew = self.code_params(x, skew=skew)
            scale = scale / floor(self.gamma, _MIN_MULTIPLIER)
            axis = self.groups.axis if self.gamma.dim() else -1
            gamma = search_multiplier(x, scale, zero_point, skew, self.config, axis)
            # Of a sparse matrix `x` may hold the ranges of the rows only.
            values, row = (x, None) if stored is None else stored
            if row is not None:
                scale, zero_point = scale[row], zero_point[row]
            self.gamma.copy_(gamma * self._off_lattice(values, scale * gamma, zero_point, skew))
            self._agree()
        self.calibrated.fill_(True)
        self._ready = True

    def _off_lattice(
        self, x: Tensor, scale: Tensor, zero_point: Tensor, skew: Tensor | None
    ) -> Tensor | float:
        """The factor that takes what could be sums of codes off the boundaries between codes. Rows
        that their own range represents exactly, as those of bags of words, stay exact."""
        if self.config.statistics == "running":
            return _OFF_LATTICE
        if self.config.granularity != "node":  # a weight
            return 1.0
        truncate = self.config.truncates
        x_hat = fake_quantize(x, scale, zero_point, self.bits, truncate=truncate, skew=skew)
        exact = (x_hat - x).abs().max() <= 1e-6 * x.abs().max()
        return torch.where(exact, 1.0, _OFF_LATTICE)

    def _agree(self) -> None:
        # Every process searched on its own first batch; they train one and the same multiplier.
        if (
            torch.distributed.is_available()
            and torch.distributed.is_initialized()
            and self.training
        ):
            torch.distributed.broadcast(self.gamma, src=0)

    def _check_groups(self, matrix: Tensor) -> None:
        groups = self.gamma.numel()
        if self.gamma.dim() == 2 and matrix.size(self.groups.axis) != groups:
            raise InputError(
                f"{self.path or 'quantizer'}: the tensor has {matrix.size(self.groups.axis)} "
                f"groups of values, this quantizer has ranges for {groups}. Choose granularity "
                f"'tensor' or 'node' for it."
            )

    def _check_finite(self, lo: Tensor, hi: Tensor) -> None:
        if lo.device.type != "cpu" or torch.compiler.is_compiling():
            return
        if not bool(torch.isfinite(lo.sum() + hi.sum())):
            raise InputError(
                f"{self.path or 'quantizer'}: the tensor to quantize holds NaN or Inf, so it has "
                f"no range. Look for a diverged loss or a division by zero before this layer; "
                f"torch.nan_to_num(x) replaces such values."
            )

    # What a module goes through ###################################################################

    def reset_parameters(self) -> None:
        r"""Forgets the range and the multiplier; the next batch starts them anew."""
        with torch.no_grad():
            self.gamma.fill_(1.0)
            self.calibrated.fill_(False)
        self._ready = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LearnedRangeQuant:
        # Ranges stay in float32 under .half(), .bfloat16() and .double(): codes are defined there.
        def keep_dtype(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            return out if out.dtype == tensor.dtype else tensor.to(out.device)

        super()._apply(keep_dtype, recurse)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = [*self._parameters, *(n for n in self._buffers if n != "_bit_width")]
        if strict and not any(prefix + name in state_dict for name in own):
            # A float checkpoint: its weights load, and ranges start from the next batch.
            self.reset_parameters()
            self.loaded_fresh = True
            return
        self.loaded_fresh = False
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._ready = bool(self.calibrated)

    def extra_repr(self) -> str:
        c = self.config
        truncation = f", truncation={c.truncation!r}" if c.truncates else ""
        return f"bits={c.bits}, granularity={c.granularity!r}{truncation}"
