"""Ranges that have stopped learning: fixed numbers, made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_geometric_qlr.errors import ConfigError, InputError
from torch_geometric_qlr.ops import affine_params, storage_bits
from torch_geometric_qlr.quantizers.base import CodeParams, RangeQuantizer, RangeState
from torch_geometric_qlr.quantizers.functional import floored_multiplier
from torch_geometric_qlr.quantizers.statistics import skewness
from torch_geometric_qlr.quantizers.torch_state import is_abstract, is_transformed
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor

__all__ = ["FrozenRange", "freeze_ranges"]


class _Known(NamedTuple):
    """What a static range needs to make codes, all of it known beforehand."""

    scale: Tensor
    zero_point: Tensor
    skew: Tensor | None
    #: How the codes are read back.
    read_back: tuple[Tensor, Tensor]
    storage: int


class FrozenRange(RangeQuantizer):
    r"""What a quantizer has learned, without what learns.

    Same state, same codes. Scale, zero point and shift of a range per tensor or per feature are
    computed once; a range per node is still taken from each row.

    Example:
        >>> from torch_geometric_qlr.config import QuantizerConfig
        >>> from torch_geometric_qlr.quantizers import LearnedRangeQuant
        >>> quantizer = LearnedRangeQuant(QuantizerConfig(bits=2)).eval()
        >>> _ = quantizer(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        >>> FrozenRange.of(quantizer)
        FrozenRange(bits=2, granularity='tensor', range='fixed')
    """

    @classmethod
    def of(cls, quantizer: RangeQuantizer) -> FrozenRange:
        r"""Freezes a quantizer; growing ends. They share no state.

        Args:
            quantizer (RangeQuantizer): The quantizer; it stays as it is.
        """
        frozen = cls(quantizer.config, quantizer.groups, quantizer.path)
        for name in ("gamma", "lo", "hi", "skew"):
            tensor = getattr(quantizer, name, None)
            if tensor is not None:
                frozen.register_buffer(name, tensor.detach().clone())
        frozen.register_buffer("calibrated", quantizer.calibrated.ne(0).long() * RangeState.FIXED)
        frozen._renew()
        return frozen.eval()

    def _forget(self) -> None:
        """After a change of what is computed once."""
        self._static: CodeParams | None = None
        self._output: OutputQuantizer | None = None
        self._known: _Known | None = None
        self._multiplier: Tensor | None = None
        self._made_from: list[tuple[str, Tensor, int]] = []
        self._usable = is_abstract(self.calibrated) or self.range_state != RangeState.MISSING

    def _renew(self) -> None:
        """After all of it is new: while a model is traced nothing can be computed once."""
        self._forget()
        if self.is_static and self._usable and not is_abstract(self.gamma):
            self.code_params(self.gamma)
            self.output()
        elif self._usable and not is_abstract(self.gamma):
            self._multiplier_for(0)

    def code_params(
        self, x: Tensor, *, exact_zero: bool = False, skew: Tensor | None = None
    ) -> CodeParams:
        if not self._usable:
            raise ConfigError(
                f"{self._name} has never seen data, so it has no range. Run the quantized model "
                f"on data that reaches this layer before you convert it."
            )
        if exact_zero or not self.is_static or is_transformed():
            return super().code_params(x, exact_zero=exact_zero, skew=skew)
        if torch.compiler.is_compiling():
            return self._static or super().code_params(x)
        self._check_made()
        static = self._static
        if static is None:
            with torch.inference_mode(False), torch.no_grad():
                static = self._static = super().code_params(x)
        return static

    def output(self, *, growing: bool = False) -> OutputQuantizer | None:
        if not self.is_static or not self._usable:
            return None
        if torch.compiler.is_compiling():
            return self._output or self._output_quantizer()
        self._check_made()
        output = self._output
        if output is None:
            output = self._output = self._output_quantizer()
        return output

    def _packed(self, x: Tensor) -> PackedTensor:
        if not self._usable or is_transformed() or not x.numel() > 0:
            return super()._packed(x)
        if self.is_static:
            if torch.compiler.is_compiling() or x.dim() != 2:
                return super()._packed(x)
            made = self._packed_by_range
        elif self.config.granularity == "node":
            made = self._packed_by_row
        else:
            return super()._packed(x)
        try:
            return made(x if self._takes(x) else self._checked(x))
        except InputError as error:
            raise InputError(f"{self._name}: {error}") from None

    def _takes(self, x: Tensor) -> bool:
        """Whether a tensor is as nearly always, so that there is nothing to check."""
        return x.dtype == torch.float32 and x.dim() == 2 and self.gamma.dim() == 0

    def _packed_by_range(self, x: Tensor) -> PackedTensor:
        """Codes in the range that is known."""
        self._check_made()
        known = self._known
        if known is None:
            scale, zero_point, skew = self.code_params(x)
            back = affine_params(scale, zero_point, self.bits, self.config.truncates)
            known = _Known(scale, zero_point, skew, back, storage_bits(self.bits))
            self._known = known
        config = self.config
        how = (known.scale, known.zero_point, config.bits, config.truncates, known.skew)
        data = torch.ops.qlr.quantize_pack(x, *how)
        return PackedTensor.unchecked(data, x.size(1), known.storage, *known.read_back)

    def _packed_by_row(self, x: Tensor) -> PackedTensor:
        """Codes with the range of each row."""
        skew = self._shift(skewness(x)) if self._follows_skewness else None
        config, multiplier = self.config, self._multiplier_for(x.numel())
        how = (multiplier, self.bits, config.truncates, config.zero_aligned, skew)
        data, *read_back = torch.ops.qlr.quantize_rows(x, *how)
        return PackedTensor.unchecked(data, x.size(1), storage_bits(self.bits), *read_back)

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

    def _check_made(self) -> None:
        """Numbers that have been replaced or written to make what was computed from them stale."""
        for name, then, version in self._made_from:
            now = self._buffers[name]
            if now is not then or (version >= 0 and now._version != version):
                break
        else:
            if self._made_from:
                return
        self._forget()
        self._made_from = [(n, t, _version(t)) for n, t in self._buffers.items() if t is not None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenRange:
        super()._apply(fn, recurse)
        self._renew()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._renew()


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def freeze_ranges(quantizers: nn.Module) -> None:
    r"""Puts a :class:`FrozenRange` in the place of every quantizer inside of a module.

    Args:
        quantizers (torch.nn.Module): A :class:`torch.nn.ModuleDict` or the like.
    """
    for name, child in list(quantizers.named_children()):
        if isinstance(child, RangeQuantizer):
            quantizers.register_module(name, FrozenRange.of(child))
        else:
            freeze_ranges(child)
