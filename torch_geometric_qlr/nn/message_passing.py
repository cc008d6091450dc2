"""Quantized message passing: sources once per node, or messages once per edge."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from torch_geometric_qlr.codes.chains import plain, with_promise
from torch_geometric_qlr.codes.coefficients import edge_coefficients
from torch_geometric_qlr.codes.edge_weights import round_weights
from torch_geometric_qlr.codes.edges import ReadyFlag, released, with_ready_edges
from torch_geometric_qlr.codes.gather import gather
from torch_geometric_qlr.codes.hops import all_hops, is_observing
from torch_geometric_qlr.codes.mode import computes_on_codes
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.layers.layer_spec import facts_of
from torch_geometric_qlr.layers.pyg import PROPAGATE_NAMES, has_own_propagate, uncompiled_propagate
from torch_geometric_qlr.layers.state import float_class, where_is
from torch_geometric_qlr.nn.layer import QuantLayer
from torch_geometric_qlr.nn.registry import class_facts

__all__ = ["QuantMessagePassing"]

_signature = functools.cache(inspect.signature)


@functools.cache
def _parameters(forward: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names that a forward takes, in order, and those that may be left out."""
    own = list(_signature(forward).parameters.values())[1:]
    defaults = {p.name: p.default for p in own if p.default is not p.empty}
    return tuple(p.name for p in own), defaults


def _by_name(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward by name, with defaults for those that were left out."""
    forward = float_class(layer).forward
    names, defaults = _parameters(forward)
    given = dict(zip(names, args, strict=False))
    arguments = {**defaults, **given, **kwargs}
    twice = len(args) > len(names) or any(name in given for name in kwargs)
    if twice or len(arguments) != len(names) or any(name not in arguments for name in names):
        _signature(forward).bind(layer, *args, **kwargs)  # says what is wrong
    return arguments


class QuantMessagePassing(QuantLayer, MessagePassing):
    r"""A :class:`~torch_geometric.nn.MessagePassing` layer whose messages are quantized.

    Layers that send (weighted or attended) copies of source features quantize those features once
    per *node*, which is what a packed kernel gathers:

    .. math::
        \mathbf{x}^{\prime}_i = \bigoplus_{j \in \mathcal{N}(i)} w_{ij} \, \hat{\mathbf{x}}_j

    Layers that compute a message per edge quantize it per *edge*:

    .. math::
        \mathbf{x}^{\prime}_i = \bigoplus_{j \in \mathcal{N}(i)}
        Q(\phi(\mathbf{x}_i, \mathbf{x}_j, \mathbf{e}_{ij}))

    Layers that propagate several times hold one quantizer per hop.

    In evaluation without gradients the messages are integer codes, gathered from packed rows,

    .. math::
        \mathbf{x}^{\prime}_i = S \sum_{j \in \mathcal{N}(i)} w_{ij} \, (\mathbf{c}_j - Z),

    by the operations that the converted layer runs.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.nn import GCNConv
        >>> conv = qlr.nn.QuantGCNConv(4, 2, bits=2)
        >>> isinstance(conv, GCNConv), isinstance(conv, qlr.nn.QuantMessagePassing)
        (True, True)
        >>> conv(torch.rand(3, 4), torch.tensor([[0, 1], [1, 2]])).shape
        torch.Size([3, 2])
    """

    def _qlr_forward(self, *args: Any, **kwargs: Any) -> Any:
        facts, call = facts_of(self), self._qlr.call
        if facts.expects_features:
            _check_features(self, args[0] if args else kwargs.get("x"))
        if facts.forward.kinds is not None and call is not None:
            call.kinds = facts.forward.kinds(self, *args, **kwargs)
        if not computes_on_codes(self, args, kwargs) or "forward" in self._qlr.replaced:
            return super()._qlr_forward(*args, **kwargs)
        args = tuple(with_promise(value) for value in args)
        if is_observing(self):
            # Before any training evaluation makes the ranges. What several hops share is known when
            # the last one has been seen; then all of them are computed.
            out = super()._qlr_forward(*args, **kwargs)
            if call is None or call.hop <= 1:
                return out
            self._qlr.restart()
        if facts.forward.runs_as_it_is:
            return super()._qlr_forward(*args, **kwargs)
        arguments = _by_name(self, args, kwargs)
        done = all_hops(self, arguments)
        if done is not None:
            return done
        if not with_ready_edges(self, arguments):
            return super()._qlr_forward(*args, **kwargs)
        return released(super()._qlr_forward(**arguments), arguments)

    def propagate(self, edge_index: Any, *args: Any, **kwargs: Any) -> Any:
        state = self._qlr
        if state.is_inside("propagate"):
            return super().propagate(edge_index, *args, **kwargs)
        if computes_on_codes(self, kwargs, edge_index):
            size = args[0] if args else kwargs.pop("size", None)
            out = gather(self, edge_index, size, kwargs)
            if out is None:
                kwargs = {name: plain(value) for name, value in kwargs.items()}
                out = self._qlr_propagate(edge_index, size=size, **kwargs)
            else:
                out = state.quantize_at("aggregate", out)
        else:
            out = self._qlr_propagate(edge_index, *args, **kwargs)
        if state.call is not None:
            state.call.hop += 1
        return out

    def _qlr_propagate(self, edge_index: Any, *args: Any, **kwargs: Any) -> Any:
        """In floating point, with sources that are rounded."""
        state = self._qlr
        for name, key in state.source_keys.items():
            if name not in kwargs:
                continue
            kwargs[name], scale = _quantize_source(self, key, kwargs[name])
            if scale is not None and "edge_weight" in state:
                size = args[0] if args else kwargs.get("size")
                edge_index = round_weights(self, edge_index, size, kwargs, name, scale)
        if "propagate" in self._qlr.replaced:
            return self._qlr.method("propagate", super().propagate)(edge_index, *args, **kwargs)
        if _goes_uncompiled(self):
            return uncompiled_propagate()(self, edge_index, *args, **kwargs)
        return super().propagate(edge_index, *args, **kwargs)

    def message(self, *args: Any, **kwargs: Any) -> Any:
        if self._qlr.is_inside("message"):
            return super().message(*args, **kwargs)
        message = self._qlr.method("message", super().message)
        return self._qlr.quantize_at("message", message(*args, **kwargs))

    def aggregate(self, *args: Any, **kwargs: Any) -> Any:
        return self._qlr.quantize_at("aggregate", super().aggregate(*args, **kwargs))

    def message_and_aggregate(self, *args: Any, **kwargs: Any) -> Any:
        return self._qlr.quantize_at("aggregate", super().message_and_aggregate(*args, **kwargs))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Whichever of them PyG calls is the quantizing one.
        own = dict.fromkeys(PROPAGATE_NAMES, cls.propagate)
        for name, method in {**own, "edge_updater": cls.edge_updater}.items():
            if name not in vars(cls):
                setattr(cls, name, method)

    @classmethod
    def _qlr_namespace(cls, base: Any) -> dict[str, Any]:
        facts = class_facts(base)
        flag = facts.forward.edges.flag if facts.forward.edges is not None else ""
        own: dict[str, Any] = {flag: ReadyFlag(flag)} if flag else {}

        def edge_updater(self: Any, edge_index: Any, *args: Any, **kwargs: Any) -> Any:
            if facts.edge_update.logits and computes_on_codes(self, kwargs, edge_index):
                alpha = edge_coefficients(self, edge_index, kwargs)
                if alpha is not None:
                    return alpha
            # PyG writes the one of a class when its first object is made.
            return base.edge_updater(self, edge_index, *args, **kwargs)

        return {**own, "_qlr_facts": facts, "edge_updater": edge_updater}


def _goes_uncompiled(layer: Any) -> bool:
    """Whether PyG would leave its generated code for the method that explains and decomposes."""
    special = layer.explain or layer.decomposed_layers > 1
    return special and not has_own_propagate(float_class(layer))


def _quantize_source(layer: Any, key: str, value: Any) -> tuple[Any, Tensor | None]:
    """What is sent, rounded, and its scale."""
    quantizer = layer._qlr.quantizer_at(key)
    if isinstance(value, (tuple, list)):
        # PyG's generated code takes the sources of a pair from its first place whatever the flow;
        # its uncompiled one goes by the flow.
        j = 1 if _goes_uncompiled(layer) and layer.flow == "target_to_source" else 0
        rounded, scale = _quantized(quantizer, value[j])
        return tuple(rounded if i == j else v for i, v in enumerate(value)), scale
    return _quantized(quantizer, value)


def _quantized(quantizer: Any, source: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if source is None:
        return None, None
    if source.layout != torch.strided:
        raise InputError(
            f"{quantizer.path}: the features are sparse, and are sent over the edges as they are. "
            f"Make them dense: x.to_dense()."
        )
    value, scale, *_ = quantizer(source)
    return value, scale


def _check_features(layer: Any, x: Any) -> None:
    for value in x if isinstance(x, (tuple, list)) else (x,):
        if isinstance(value, Tensor) and not value.dtype.is_floating_point:
            raise InputError(
                f"{where_is(layer)}: x is {value.dtype}; quantization starts from floating "
                f"point values. Cast it: x.float()."
            )
