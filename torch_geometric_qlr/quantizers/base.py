"""What a quantizer with a range is: it makes codes, wherever its range comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.ops.reference import affine_params, truncation_step
from torch_geometric_qlr.quantizers.functional import fake_quantize, floored_multiplier
from torch_geometric_qlr.quantizers.signature import SignedState
from torch_geometric_qlr.quantizers.sparse_values import entries, with_values
from torch_geometric_qlr.quantizers.statistics import (
    Batch,
    Grid,
    Groups,
    Range,
    skewness,
    value_range,
)
from torch_geometric_qlr.quantizers.torch_state import is_abstract
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor

__all__ = ["RangeQuantizer", "RangeState"]

_MIN_SCALE = 1e-20

CodeParams = tuple[Tensor, Tensor, Tensor | None]


class RangeState:
    r"""What :obj:`calibrated` holds.

    Attributes:
        MISSING (int): No data has been seen.
        GROWING (int): Only evaluation batches have been; each further one counts.
        FIXED (int): Made in training, loaded, or declared final: evaluation does not move it.
    """

    MISSING, GROWING, FIXED = 0, 1, 2
    NAMES = ("missing", "growing", "fixed")


class RangeQuantizer(SignedState):
    r"""Base class of quantizers with a range :math:`[\alpha, \beta] \ni 0` and a multiplier
    :math:`\gamma`, see :class:`~torch_geometric_qlr.quantizers.LearnedRangeQuant`.

    A subclass registers :obj:`gamma` and, where statistics are running, :obj:`lo`, :obj:`hi` and
    for BT* :obj:`skew`: numbers, or vectors with one entry per group.

    Args:
        config (QuantizerConfig): Width, truncation, granularity, statistics.
        groups (Groups): What shares a range.
        path (str): Where it sits, ``"convs.0.source"`` say, for error messages.
    """

    gamma: Tensor
    lo: Tensor
    hi: Tensor
    skew: Tensor
    calibrated: Tensor

    def __init__(self, config: QuantizerConfig, groups: Groups, path: str = "") -> None:
        super().__init__()
        self.config, self.groups, self.path = config, groups, path
        #: Brevitas sets this to look at statistics without quantizing.
        self.observer_only = False

    # What the codes are ###########################################################################

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.config.bits

    @property
    def is_static(self) -> bool:
        """Whether the range is known before the data."""
        return self.config.statistics == "running"

    @property
    def range_state(self) -> int:
        """How the range came about, see :class:`RangeState`."""
        return RangeState.MISSING if is_abstract(self.calibrated) else int(self.calibrated)

    @property
    def _follows_skewness(self) -> bool:
        return self.config.truncates and self.config.truncation == "bt*"

    @property
    def _name(self) -> str:
        return self.path or "quantizer"

    def code_params(
        self, x: Tensor, *, exact_zero: bool = False, skew: Tensor | None = None
    ) -> CodeParams:
        r"""The :math:`(s, z, k)` with which :func:`torch_geometric_qlr.ops.quantize` makes codes.

        Args:
            x (torch.Tensor): The tensor, as a matrix; only looked at where the range is taken from
                it (weights, rows).
            exact_zero (bool): Make 0 a level, as a sparse tensor needs. (default: :obj:`False`)
            skew (torch.Tensor, optional): Skewness of the tensor, where the matrix does not show
                it. (default: that of :obj:`x`)
        """
        found = self._range_for(Batch(x.detach(), skew))
        return self._code_params(found, x.numel(), exact_zero)

    def _params_for(self, batch: Batch, exact_zero: bool = False) -> CodeParams:
        """The same for data that passes; a quantizer that learns looks at it here."""
        return self.code_params(batch.seen, exact_zero=exact_zero, skew=batch.skew)

    def _range_for(self, batch: Batch) -> Range:
        """What a batch is quantized with: the running range, or its own."""
        return self._kept_range() if self.is_static else self._range_of(batch)

    @torch.no_grad()
    def _range_of(self, batch: Batch) -> Range:
        """The batch's own range."""
        return self._measured(batch)

    def _measured(self, batch: Batch) -> Range:
        skew = batch.skew
        if self._follows_skewness and skew is None:
            skew = skewness(batch.seen)
        return Range(*value_range(batch.seen, self.groups.axis), skew)

    def _kept_range(self) -> Range:
        """The running range."""
        kept: Any = self._buffers  # `nn.Module` looks for every attribute in three places
        lo, hi = self.groups.beside(kept["lo"]), self.groups.beside(kept["hi"])
        return Range(lo, hi, self.skew if self._follows_skewness else None)

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

    # Values #######################################################################################

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""Returns values, scale, zero point and bit width, as Brevitas expects."""
        matrix = self._checked(x)
        width = torch.full((), float(self.bits), device=x.device)
        if x.numel() == 0 and not self.is_static:  # nothing to observe and nothing to round
            return x, *self._empty_params(matrix), width
        value, scale, zero_point = self._quantized(matrix)
        if self.observer_only:
            value = x
        elif matrix is not x:
            value = value.view_as(x)
        affine = affine_params(scale, zero_point, self.bits, self.config.truncates)
        return value, *affine, width

    def _quantized(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The values that codes stand for, with the scale and zero point that made them."""
        scale, zero_point, skew = self._params_for(Batch(x.detach()))
        truncate = self.config.truncates
        value = fake_quantize(x, scale, zero_point, self.bits, truncate=truncate, skew=skew)
        return value, scale, zero_point

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
                f"{self._name}: the input is sparse, which needs one range per tensor or per "
                f"node. Set granularity={{'input': 'node'}}, or x.to_dense()."
            )
        values = x.values()
        if values.numel() == 0:
            return values
        batch = self._batch_of_stored(x)
        scale, zero_point, skew = self._params_for(batch, exact_zero=True)
        if batch.row is not None:  # each value is a row of its own
            scale, zero_point = scale[batch.row], zero_point[batch.row]
        out = fake_quantize(
            *(values.view(-1, 1), scale, zero_point, self.bits),
            truncate=self.config.truncates,
            skew=skew,
        )
        return out.view(-1)

    def _batch_of_stored(self, x: Tensor) -> Batch:
        values = x.values().detach()
        # The zeros that are not stored count, so that the form of the matrix makes no difference.
        skew = skewness(values, numel=x.shape.numel()) if self._follows_skewness else None
        if self.config.granularity != "node":
            return Batch(values, skew, values.view(-1, 1))
        row, zero = entries(x)[0], values.new_zeros(x.size(0))
        lo, hi = (zero.scatter_reduce(0, row, values, reduce) for reduce in ("amin", "amax"))
        return Batch(torch.stack([lo, hi], dim=1), skew, values.view(-1, 1), row)

    # Codes ########################################################################################

    def pack(self, x: Tensor) -> PackedTensor:
        r"""The codes that :meth:`forward` gives the values of, packed.

        Args:
            x (torch.Tensor): A tensor of two dimensions or more. Row :math:`r` of the codes is
                :obj:`x.reshape(-1, x.size(-1))[r]`, with a range of its own per node; of a weight
                with ranges per channel of its first dimension :obj:`x.reshape(x.size(0), -1)[r]`.

        Raises:
            InputError: If it holds what no code stands for.

        Example:
            >>> from torch_geometric_qlr.quantizers import LearnedRangeQuant
            >>> quantizer = LearnedRangeQuant(QuantizerConfig(bits=2, search=False))
            >>> x = torch.tensor([[-1.0, 0.0, 0.9, 2.0]])
            >>> quantizer.pack(x).dequantize().equal(quantizer(x)[0])
            True
        """
        if not torch.is_grad_enabled():  # to enter no_grad takes as long as a small op
            return self._packed(x)
        with torch.no_grad():
            return self._packed(x)

    def _packed(self, x: Tensor) -> PackedTensor:
        matrix = self._checked(x.detach())
        rows = matrix if matrix.dim() == 2 else matrix.reshape(-1, x.size(-1) if x.dim() else 1)
        if x.numel() > 0:
            scale, zero_point, skew = self._params_for(Batch(matrix))
        else:  # a part of the model that no data reaches may well get none here, too
            (scale, zero_point), skew = self._empty_params(rows), None
        truncate = self.config.truncates
        try:
            return PackedTensor.from_float(
                rows, scale, zero_point, self.bits, truncate=truncate, skew=skew, check=False
            )
        except InputError as error:
            raise InputError(f"{self._name}: {error}") from None

    def output(self, *, growing: bool = False) -> OutputQuantizer | None:
        r"""For a kernel that quantizes its own result; :obj:`None` if the range needs the data.

        Args:
            growing (bool): Whether a range that is still growing will do, as far as it has come.
                (default: :obj:`False`)
        """
        least = RangeState.GROWING if growing else RangeState.FIXED
        if not self.is_static or self.range_state < least:
            return None
        return self._output_quantizer()

    @torch.no_grad()
    def _output_quantizer(self) -> OutputQuantizer:
        scale, zero_point, skew = self.code_params(self.gamma)
        return OutputQuantizer(scale, zero_point, self.bits, self.config.truncates, skew)

    # What it takes ################################################################################

    def _checked(self, x: Tensor) -> Tensor:
        """The input as a matrix."""
        if not x.is_floating_point():
            raise InputError(
                f"{self._name}: the input is {x.dtype}; quantization starts from floating point "
                f"values. Cast it: x.float()."
            )
        matrix, gamma = self.groups.matrix(x), self.gamma
        if gamma.dim() and matrix.size(self.groups.axis) != gamma.numel():
            raise InputError(
                f"{self._name}: the tensor has {matrix.size(self.groups.axis)} groups of values, "
                f"this quantizer has ranges for {gamma.numel()}. Choose granularity 'tensor' or "
                f"'node' for it."
            )
        return matrix

    def _empty_params(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.groups.shape(x.size(self.groups.axis)) if self.groups.axis != -1 else ()
        return x.new_ones(shape, dtype=torch.float32), x.new_zeros(shape, dtype=torch.float32)

    # What a module goes through ###################################################################

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RangeQuantizer:
        # Ranges stay in float32 under .half(), .bfloat16() and .double(): codes are defined there.
        def keep_dtype(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            return out if out.dtype == tensor.dtype else tensor.to(out.device)

        super()._apply(keep_dtype, recurse)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        own = {k: v for k, v in state_dict.items() if k.startswith(prefix)}
        for name, target in [*self._parameters.items(), *self._buffers.items()]:
            value = own.get(prefix + name)
            if not isinstance(value, Tensor) or target is None:
                continue
            if name == "calibrated":  # what has been saved is final
                own[prefix + name] = value.ne(0).long() * RangeState.FIXED
            elif value.dim() == 2 and value.numel() == target.numel():  # of an older version
                own[prefix + name] = value.reshape(target.shape)
        super()._load_from_state_dict(own, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        c = self.config
        truncation = f", truncation={c.truncation!r}" if c.truncates else ""
        state = RangeState.NAMES[min(max(self.range_state, 0), RangeState.FIXED)]
        return f"bits={c.bits}, granularity={c.granularity!r}{truncation}, range={state!r}"
