"""Quantized message passing: sources once per node, or messages once per edge."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing, RGCNConv

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.nn.layer import QuantLayer, layer_path

__all__ = ["QuantMessagePassing", "uncompiled_propagate"]


def uncompiled_propagate() -> Any:
    """What :meth:`propagate` is before PyG compiles it, with explanations and decomposition."""
    # PyG replaces `propagate` on a class by generated code and keeps the original beside it.
    return getattr(MessagePassing, "_orig_propagate", MessagePassing.propagate)


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

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.nn import GCNConv
        >>> conv = qlr.nn.QuantGCNConv(4, 2, bits=2)
        >>> isinstance(conv, GCNConv), isinstance(conv, qlr.nn.QuantMessagePassing)
        (True, True)
        >>> conv(torch.rand(3, 4), torch.tensor([[0, 1], [1, 2]])).shape
        torch.Size([3, 2])
    """

    #: Sources quantized per node: argument of `propagate` -> key of its per-hop quantizers.
    _source_keys: dict[str, str]
    _quant_hop: int = 0

    #: Whether the first argument of the forward must hold features.
    _expects_features: bool = False

    def quantized_forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._expects_features:
            self._check_features(args[0] if args else kwargs.get("x"))
        self._quant_hop = 0
        return super().quantized_forward(*args, **kwargs)

    def propagate(self, edge_index: Any, *args: Any, **kwargs: Any) -> Any:
        for name, key in self._source_keys.items():
            if name in kwargs:
                kwargs[name] = self._quantize_source(key, kwargs[name])
        if self.explain or self.decomposed_layers > 1:
            out = uncompiled_propagate()(self, edge_index, *args, **kwargs)
        else:
            out = super().propagate(edge_index, *args, **kwargs)
        self._quant_hop += 1
        return out

    def quantizer_at(self, point: str) -> nn.Module:
        found = super().quantizer_at(point)
        # One per hop, or one for each kind of thing that the hops propagate in turn.
        return found[self._quant_hop % len(found)] if isinstance(found, nn.ModuleList) else found

    def _quantize_source(self, key: str, value: Any) -> Any:
        quantizer = self.quantizer_at(key)
        if isinstance(value, (tuple, list)):
            # PyG's generated code takes the sources of a pair from its first place whatever the
            # flow; its uncompiled one goes by the flow.
            compiled = not (self.explain or self.decomposed_layers > 1)
            j = 0 if compiled or self.flow == "source_to_target" else 1
            return tuple(_quantized(quantizer, v) if i == j else v for i, v in enumerate(value))
        return _quantized(quantizer, value)

    def _check_features(self, x: Any) -> None:
        for value in x if isinstance(x, (tuple, list)) else (x,):
            if isinstance(value, Tensor) and not value.is_floating_point():
                raise InputError(
                    f"{layer_path(self)}: x is {value.dtype}; quantization starts from floating "
                    f"point values. Cast it: x.float()."
                )

    def message(self, *args: Any, **kwargs: Any) -> Any:
        return self.quantize_at("message", super().message(*args, **kwargs))

    def aggregate(self, *args: Any, **kwargs: Any) -> Any:
        return self.quantize_at("aggregate", super().aggregate(*args, **kwargs))

    def message_and_aggregate(self, *args: Any, **kwargs: Any) -> Any:
        return self.quantize_at("aggregate", super().message_and_aggregate(*args, **kwargs))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # PyG compiles a template over `propagate` unless the class has one of its own, and switches
        # between the two private names for explanations. All three are the quantizing one.
        own = dict.fromkeys(("propagate", "_orig_propagate", "_jinja_propagate"), cls.propagate)
        for name, method in {**own, "edge_updater": cls.edge_updater}.items():
            if name not in vars(cls):
                setattr(cls, name, method)

    @classmethod
    def _namespace(cls, base: Any) -> dict[str, Any]:
        # PyG's own layers take features, except that RGCN also takes indices of nodes. What a
        # user's layer makes of its arguments is unknown.
        takes_features = (
            base.__module__.startswith("torch_geometric.nn.conv.")
            and not issubclass(base, RGCNConv)
            and list(inspect.signature(base.forward).parameters)[1] == "x"
        )
        return {"_expects_features": takes_features}


def _quantized(quantizer: Any, source: Tensor | None) -> Tensor | None:
    if source is None:
        return None
    if source.layout != torch.strided:
        raise InputError(
            f"{quantizer.path}: the features are sparse, and are sent over the edges as they are. "
            f"Make them dense: x.to_dense()."
        )
    value: Tensor = quantizer(source)[0]
    return value
