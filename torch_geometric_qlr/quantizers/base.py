"""What a quantizer is: it makes codes of values, however it knows the grid that they lie on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.ops.reference import affine_params
from torch_geometric_qlr.quantizers.dropout import kept_share
from torch_geometric_qlr.quantizers.functional import fake_quantize
from torch_geometric_qlr.quantizers.observing import Observing, RangeState
from torch_geometric_qlr.quantizers.sparse_values import entries, with_values
from torch_geometric_qlr.quantizers.statistics import Batch, Grid, Groups, skewness
from torch_geometric_qlr.quantizers.torch_state import is_recomputing
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor

__all__ = ["CodeParams", "Quantizer"]

#: Scale, zero point and, for BT*, the shift of the thresholds.
CodeParams = tuple[Tensor, Tensor, Tensor | None]


class Quantizer(Observing, ABC):
    r"""Base class of quantizers. A method that makes codes is a subclass in a file of its own and a
    row of :data:`torch_geometric_qlr.quantizers.methods.METHODS`; nothing else knows its name.

    **What a method says.** :meth:`register_numbers`, what it keeps; :meth:`code_params`, the scale,
    zero point and shift of the thresholds with which :func:`torch_geometric_qlr.ops.quantize` makes
    codes; :meth:`observe`, what it learns from data that passes; :meth:`freeze`, what is left of it
    in a converted model; and :meth:`refusal`, what it cannot do. Its parameters are what learns,
    its buffers what is remembered, all of them numbers or vectors with one entry per group, in
    float32. Both make up its state, beside :obj:`calibrated` and the signature of its settings.

    **What follows from that.** Values with gradients, packed codes, sparse features, epilogues of
    kernels, checkpoints, files, and the life of a range: see :class:`RangeState`.

    Args:
        config (QuantizerConfig): Width, truncation, granularity, statistics.
        num_groups (int): Output channels or features with numbers of their own. Not used per tensor
            or per node. (default: :obj:`1`)
        channel_dim (int): Dimension of the output channels, 0 or -1. (default: :obj:`0`)
        int_quant (torch.nn.Module, optional): Brevitas' view of the integer grid.

    Attributes:
        num_groups (int): How many groups have numbers of their own.
        observer_only (bool): Brevitas sets this to look at statistics without quantizing.
        watch (callable, optional): Is shown the matrix of what passes, or stored values and the
            number of zeros beside them; then nothing is rounded.
    """

    observer_only = False
    watch: Callable[..., None] | None = None

    def __init__(
        self,
        config: QuantizerConfig,
        num_groups: int = 1,
        channel_dim: int = 0,
        int_quant: nn.Module | None = None,
    ) -> None:
        super().__init__(config, Groups(config.granularity, channel_dim))
        one_for_all = config.granularity in ("tensor", "node")
        #: Shape of a parameter or buffer with a number per group.
        self.shape: tuple[int, ...] = () if one_for_all else (num_groups,)
        self.num_groups = 1 if one_for_all else num_groups
        self.int_quant = int_quant
        self.register_numbers()

    @property
    def channel_dim(self) -> int:
        """Dimension of the output channels, 0 or -1."""
        return 0 if self.groups.rows_first else -1

    # What a method says ###########################################################################

    @classmethod
    def refusal(cls, config: QuantizerConfig) -> str:
        r"""Why the method cannot do what a config asks for, with the remedy; empty if it can.

        Args:
            config (QuantizerConfig): What is asked for.
        """
        return ""

    @property
    def is_static(self) -> bool:
        """Whether the grid is known before the data."""
        return self.config.statistics == "running"

    def register_numbers(self) -> None:
        r"""Registers what the method keeps: its parameters and buffers, each of :attr:`shape`."""
        return None

    @abstractmethod
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

    @abstractmethod
    def freeze(self) -> Quantizer:
        r"""What makes the same codes and no longer learns: a module of its own, which shares no
        state with this one. Growing ends."""

    def _params_for(self, batch: Batch, exact_zero: bool = False) -> CodeParams:
        """:meth:`code_params` for data that passes: a quantizer that learns looks at it here."""
        if self._looks(batch) and not (is_recomputing() and self.has_range):
            seen = self._shown(batch)
            if seen is not None:
                self._see(batch._replace(seen=seen))
        return self.code_params(batch.seen, exact_zero=exact_zero, skew=batch.skew)

    # A range that is found elsewhere ##############################################################

    @property
    def takes_range(self) -> bool:
        """Whether :meth:`grid_of` and :meth:`take_range` are there."""
        return False

    def grid_of(self, lo: Tensor, hi: Tensor, skew: Tensor | None) -> Grid:
        r"""The grid of a range, for a method that has ranges.

        Args:
            lo, hi (torch.Tensor): Its ends, one per group.
            skew (torch.Tensor, optional): The skewness, for BT*.
        """
        raise NotImplementedError

    def take_range(self, lo: Tensor, hi: Tensor, gamma: Tensor, skew: Tensor | None) -> None:
        r"""Takes a range, and fixes it, likewise.

        Args:
            lo, hi (torch.Tensor): Its ends, one per group.
            gamma (torch.Tensor): What it is multiplied by, likewise.
            skew (torch.Tensor, optional): The skewness, for BT*.
        """
        raise NotImplementedError

    # Values #######################################################################################

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.config.bits

    @property
    def follows_skewness(self) -> bool:
        """Whether the skewness of its values moves thresholds."""
        return self.config.truncates and self.config.truncation == "bt*"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""Returns values, scale, zero point and bit width, as Brevitas expects."""
        matrix = self._checked(x)
        if self.watch is not None:
            return self._watched(x, matrix)
        width = torch.full((), float(self.bits), device=x.device)
        if x.numel() == 0 and not self.is_static:  # nothing to observe and nothing to round
            return x, *self._empty_params(matrix), width
        kept = kept_share(x) if self.training and self.is_static and not self.is_frozen else None
        if kept is None:
            value, scale, zero_point = self._quantized(matrix)
        else:
            value, scale, zero_point = self._quantized(matrix * kept)
            value, scale = value / kept, scale / kept
        if self.observer_only:
            value = x
        elif matrix is not x:
            value = value.view_as(x)
        affine = affine_params(scale, zero_point, self.bits, self.config.truncates)
        return value, *affine, width

    def _watched(self, x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What passes, as it is."""
        assert self.watch is not None
        self.watch(matrix)
        scale, zero_point = self._empty_params(matrix)
        return x, scale, zero_point, torch.full((), float(self.bits), device=x.device)

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
        if self.watch is not None:
            self.watch(values, zeros=x.shape.numel() - values.numel())
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
        skew = skewness(values, numel=x.shape.numel()) if self.follows_skewness else None
        zeros = x.shape.numel() - values.numel()
        if self.config.granularity != "node":
            return Batch(values, skew, values.view(-1, 1), zeros=zeros)
        row, zero = entries(x)[0], values.new_zeros(x.size(0))
        lo, hi = (zero.scatter_reduce(0, row, values, reduce) for reduce in ("amin", "amax"))
        return Batch(torch.stack([lo, hi], dim=1), skew, values.view(-1, 1), row, zeros)

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
        scale, zero_point, skew = self.code_params(self.calibrated)
        return OutputQuantizer(scale, zero_point, self.bits, self.config.truncates, skew)

    # What it takes ################################################################################

    def _checked(self, x: Tensor) -> Tensor:
        """The input as a matrix."""
        if not x.is_floating_point():
            raise InputError(
                f"{self._name}: the input is {x.dtype}; quantization starts from floating point "
                f"values. Cast it: x.float()."
            )
        matrix = self.groups.matrix(x)
        if self.shape and matrix.size(self.groups.axis) != self.num_groups:
            raise InputError(
                f"{self._name}: the tensor has {matrix.size(self.groups.axis)} groups of values, "
                f"this quantizer has ranges for {self.num_groups}. Choose granularity 'tensor' or "
                f"'node' for it."
            )
        return matrix

    def _empty_params(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.groups.shape(x.size(self.groups.axis)) if self.groups.axis != -1 else ()
        return x.new_ones(shape, dtype=torch.float32), x.new_zeros(shape, dtype=torch.float32)

    # What a module goes through ###################################################################

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantizer:
        # Ranges stay in float32 under .half(), .bfloat16() and .double(): codes are defined there.
        def keep_dtype(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            return out if out.dtype == tensor.dtype else tensor.to(out.device)

        super()._apply(keep_dtype, recurse)
        return self

    def extra_repr(self) -> str:
        c = self.config
        truncation = f", truncation={c.truncation!r}" if c.truncates else ""
        state = RangeState.NAMES[min(max(self.range_state, 0), RangeState.FIXED)]
        return f"bits={c.bits}, granularity={c.granularity!r}{truncation}, range={state!r}"
