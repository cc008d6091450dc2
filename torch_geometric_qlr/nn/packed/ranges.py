"""Activation ranges that have stopped learning: fixed numbers, made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.quantizers import LearnedRangeQuant
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor

__all__ = ["FrozenRange"]


class FrozenRange(LearnedRangeQuant):
    r"""A calibrated :class:`~torch_geometric_qlr.quantizers.LearnedRangeQuant`, re-classed.

    Same state, same codes. A range per tensor or per feature is static: scale, zero point and shift
    are computed once. A range per node is still taken from each row.
    """

    _static: tuple[Tensor, Tensor, Tensor | None] | None
    _output: OutputQuantizer | None
    _usable: bool

    @classmethod
    def freeze(cls, quantizer: LearnedRangeQuant) -> FrozenRange:
        """Re-classes a quantizer in place."""
        quantizer.__class__ = cls
        assert isinstance(quantizer, FrozenRange)
        quantizer.eval().requires_grad_(False)
        quantizer._refresh()
        return quantizer

    def _refresh(self) -> None:
        self._static = self._output = None
        self._usable = bool(self.calibrated)

    @property
    def is_static(self) -> bool:
        """Whether the range is known before the data."""
        return self.config.statistics == "running"

    def code_params(
        self, x: Tensor, *, exact_zero: bool = False, skew: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if not self._usable:
            raise ConfigError(
                f"{self.path or 'quantizer'} has never seen data, so it has no range. Run the "
                f"quantized model on data that reaches this layer before you convert it."
            )
        if exact_zero or not self.is_static:
            return super().code_params(x, exact_zero=exact_zero, skew=skew)
        if self._static is None:
            with torch.inference_mode(False), torch.no_grad():
                self._static = super().code_params(x)
        return self._static

    def output(self) -> OutputQuantizer | None:
        """For a kernel that quantizes its own result; :obj:`None` if the range needs the data."""
        if not self.is_static or not self._usable:
            return None
        if self._output is None:
            scale, zero_point, skew = self.code_params(self.gamma)
            truncates = self.config.truncates
            self._output = OutputQuantizer(scale, zero_point, self.bits, truncates, skew)
        return self._output

    def pack(self, x: Tensor) -> PackedTensor:
        r"""The codes of a float matrix, packed.

        Args:
            x (torch.Tensor): Features :math:`(N, F)`.
        """
        if x.numel() > 0:
            scale, zero_point, skew = self.code_params(x)
        else:  # a part of the model that no data reaches may well get none here, too
            (scale, zero_point), skew = self._empty_params(x), None
        return PackedTensor.from_float(
            x.detach(),
            scale,
            zero_point,
            self.bits,
            truncate=self.config.truncates,
            skew=skew,
            check=False,
        )

    # Both change what `code_params` reads.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenRange:
        super()._apply(fn, recurse)
        self._static = self._output = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._refresh()
