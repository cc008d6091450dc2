"""Converted layers: the quantized ones, re-classed once more. Packed weights, fixed ranges,
inference only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torch_geometric_qlr.codes.mode import backend_scope
from torch_geometric_qlr.codes.repeated import (
    is_plain_call,
    repeated_forward,
    repeated_product,
    repeated_sum,
)
from torch_geometric_qlr.codes.weight_access import refuse_write
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.layers.layer_spec import facts_of
from torch_geometric_qlr.layers.running import running_model
from torch_geometric_qlr.layers.state import state_of, where_is
from torch_geometric_qlr.nn.layer import QuantLayer
from torch_geometric_qlr.nn.linear import QuantLinearLayer, QuantWeightLayer
from torch_geometric_qlr.nn.message_passing import QuantMessagePassing

__all__ = ["PackedLayer", "PackedLinearLayer", "PackedMessagePassing", "PackedWeightLayer"]


class PackedLayer(QuantLayer):
    r"""Mixin of all converted layers.

    A layer that cannot compute on codes computes as the quantized layer does, with the weights
    unpacked for the call; :func:`torch_geometric_qlr.report` says why.
    """

    _qlr_prefix: ClassVar[str] = "Packed"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        _check_call(self, (*args, *kwargs.values()))
        if self._qlr.backend == "auto":
            return super().forward(*args, **kwargs)
        with backend_scope(self._qlr.backend):
            return super().forward(*args, **kwargs)

    def reset_parameters(self) -> None:
        r"""Refused: there is nothing left to initialize."""
        raise InputError(
            f"{where_is(self)}: the weights of a converted model are packed codes. Reset the float "
            f"model, quantize and convert it."
        )

    _reset_parameters = reset_parameters

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        r"""As in the float layer, except in place of a packed weight."""
        refuse_write(self, name)  # type: ignore[arg-type]
        super().register_parameter(name, param)  # type: ignore[misc]

    # Some layers of PyG save their float weight themselves, which is not there any more.
    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        nn.Module._save_to_state_dict(self, *args, **kwargs)  # type: ignore[arg-type]


class PackedMessagePassing(PackedLayer, QuantMessagePassing):
    r"""A conv whose messages are integer codes, gathered from packed rows along a CSR that is built
    once per graph."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not (len(args) == 2 and isinstance(args[1], Tensor) and is_plain_call(self, args[0])):
            return super().forward(*args, **kwargs)
        facts = facts_of(self).forward
        if not facts.runs_as_it_is:
            return super().forward(*args, **kwargs)
        state = state_of(self)
        outer = state.begin((args, kwargs))
        try:
            if facts.own_term is not None and not kwargs:
                out = repeated_forward(self, facts.own_term, *args)
                if out is not None:
                    return getattr(self, facts.own_term.then)(out)
            return super(QuantLayer, self).forward(*args, **kwargs)
        finally:
            state.end(outer)

    def propagate(self, edge_index: Any, *args: Any, **kwargs: Any) -> Any:
        out = None if args else repeated_sum(self, edge_index, kwargs)
        return super().propagate(edge_index, *args, **kwargs) if out is None else out


class PackedLinearLayer(PackedLayer, QuantLinearLayer):
    r"""A Linear that multiplies integer codes. It takes float features, a
    :class:`~torch_geometric_qlr.tensor.PackedTensor`, whose codes are used as they are, and
    :obj:`torch.sparse` features, of which it reads the stored values only."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and is_plain_call(self, args[0]):
            out = repeated_product(self, args[0])
            if out is not None:
                return out
        return super().forward(*args, **kwargs)


class PackedWeightLayer(PackedLayer, QuantWeightLayer):
    r"""A layer whose weights are stored as packed codes and unpacked while it computes; an
    embedding looks up packed rows and unpacks only those."""


def _check_call(layer: Any, values: tuple[Any, ...]) -> None:
    if layer.training:
        raise InputError(
            f"{where_is(layer)}: a converted model is for inference, and this one is in training "
            f"mode. Call model.eval(); to train on, use the quantized model and convert it again."
        )
    if torch.is_grad_enabled():
        _check_gradient(layer, values)
    if values:
        _check_dtype(layer, values[0])


def _check_gradient(layer: Any, value: Any) -> None:
    if isinstance(value, (tuple, list)):
        for v in value:
            _check_gradient(layer, v)
    elif isinstance(value, Tensor) and value.requires_grad:
        raise InputError(
            f"{where_is(layer)}: an input requires grad, and codes have no gradient. Pass it "
            f"detached, call the model under torch.no_grad(), or take gradients of the quantized "
            f"model in eval()."
        )


def _check_dtype(layer: Any, features: Any) -> None:
    own = _other_dtype(layer._parameters.values()) if layer._parameters else None
    if own is None and type(features) is Tensor and features.dtype == torch.float32:
        return
    given = features if isinstance(features, (tuple, list)) else (features,)
    if own is None and _other_dtype(given) is None:
        return
    for x in given:
        if own is None and _other_dtype([x]) is not None:
            running = running_model()
            own = _other_dtype((layer if running is None else running.model).parameters())
            if own is not None:
                break
            raise InputError(
                f"{where_is(layer)}: x is {_name(x.dtype)}, this model was converted for float32. "
                f"Cast it: x.float()."
            )
    if own is not None:
        raise InputError(
            f"{where_is(layer)}: the converted model was cast to {_name(own)}, and packed layers "
            f"compute in float32. Cast the model back with model.float(), and x with x.float()."
        )


def _other_dtype(values: Iterable[Any]) -> torch.dtype | None:
    """The first floating type among tensors that is not float32."""
    for value in values:
        if isinstance(value, Tensor) and value.dtype != torch.float32 and value.is_floating_point():
            return value.dtype
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
