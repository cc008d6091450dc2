"""Quantized message passing: sources once per node, or messages once per edge."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from torch_geometric_qlr.nn.layer import QuantLayer

__all__ = ["QuantMessagePassing"]


def _uncompiled_propagate() -> Any:
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
    source_keys: dict[str, str]
    _hop: int = 0

    def quantized_forward(self, *args: Any, **kwargs: Any) -> Any:
        self._hop = 0
        return super().quantized_forward(*args, **kwargs)

    def propagate(self, edge_index: Any, *args: Any, **kwargs: Any) -> Any:
        for name, key in self.source_keys.items():
            if name in kwargs:
                kwargs[name] = self._quantize_source(key, kwargs[name])
        self._hop += 1
        if self.explain or self.decomposed_layers > 1:
            return _uncompiled_propagate()(self, edge_index, *args, **kwargs)
        return super().propagate(edge_index, *args, **kwargs)

    def _quantize_source(self, key: str, value: Any) -> Any:
        hops = self.quantizers[key]
        assert isinstance(hops, nn.ModuleList)
        quantizer = hops[min(self._hop, len(hops) - 1)]
        if isinstance(value, (tuple, list)):
            j = 0 if self.flow == "source_to_target" else 1
            return tuple(
                quantizer(v)[0] if i == j and _is_quantizable(v) else v for i, v in enumerate(value)
            )
        return quantizer(value)[0] if _is_quantizable(value) else value

    def message(self, *args: Any, **kwargs: Any) -> Any:
        out = super().message(*args, **kwargs)
        if isinstance(out, tuple):
            return tuple(self.quantize_at("message", o) if _is_quantizable(o) else o for o in out)
        return self.quantize_at("message", out) if _is_quantizable(out) else out

    def aggregate(self, *args: Any, **kwargs: Any) -> Any:
        return self.quantize_at("aggregate", super().aggregate(*args, **kwargs))

    def message_and_aggregate(self, *args: Any, **kwargs: Any) -> Any:
        return self.quantize_at("aggregate", super().message_and_aggregate(*args, **kwargs))

    @classmethod
    def _namespace(cls, base: type[nn.Module]) -> dict[str, Any]:
        # PyG compiles a template over `propagate` unless the class has one of its own, and switches
        # between the two private names for explanations. All three are the quantizing one.
        propagate = cls.__dict__["propagate"]
        pinned: dict[str, Any] = dict.fromkeys(
            ("propagate", "_orig_propagate", "_jinja_propagate"), propagate
        )
        if issubclass(base, MessagePassing):
            pinned["edge_updater"] = base.edge_updater
        return pinned


def _is_quantizable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not value.is_sparse
