"""What every converted layer shares: packed weights, fixed ranges, inference only."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.nn.layer import QuantLayer
from torch_geometric_qlr.nn.packed.scope import backend_scope
from torch_geometric_qlr.nn.packed.weights import PackedWeightAccess

__all__ = ["PackedLayer"]


class PackedLayer(QuantLayer):
    r"""Mixin of all converted layers.

    Where a layer cannot compute on codes it falls back to the quantized layer it is made from, with
    the weights unpacked for the call: :obj:`runs_as` and :obj:`reason` say so.

    Attributes:
        runs_as (str): What computes its result.
        reason (str): Why it is not packed; empty if it is.
    """

    class_prefix: ClassVar[str] = "Packed"
    weight_access = PackedWeightAccess

    path: str = ""
    backend: str = "auto"
    runs_as: str = ""
    reason: str = ""
    #: Set once a result was needed both as floats and as codes, see `deferred.py`.
    keeps_floats: bool = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._check_call(args)
        with backend_scope(self.backend):
            return super().forward(*args, **kwargs)

    def _check_call(self, args: tuple[Any, ...]) -> None:
        where = self.path or type(self).__name__
        if self.training:  # type: ignore[attr-defined]
            raise InputError(
                f"{where}: a converted model is for inference, and this one is in training mode. "
                f"Call model.eval(); to train on, use the quantized model and convert it again."
            )
        first = args[0] if args else None
        for x in first if isinstance(first, (tuple, list)) else (first,):
            if not isinstance(x, Tensor):
                continue
            if x.requires_grad and torch.is_grad_enabled():
                raise InputError(
                    f"{where}: the input requires grad, and codes have no gradient. Pass "
                    f"x.detach(), or call the model under torch.no_grad()."
                )
            if x.is_floating_point() and x.dtype != torch.float32:
                raise InputError(
                    f"{where}: x is {str(x.dtype).removeprefix('torch.')}, this model was "
                    f"converted for float32. Cast it: x.float()."
                )

    def reset_parameters(self) -> None:
        r"""Refused: there is nothing left to initialize."""
        raise InputError(
            f"{self.path or type(self).__name__}: the weights of a converted model are packed "
            f"codes. Reset the float model, quantize and convert it."
        )

    _reset_parameters = reset_parameters

    # Some layers of PyG save their float weight themselves, which is not there any more.
    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        nn.Module._save_to_state_dict(self, *args, **kwargs)  # type: ignore[arg-type]
