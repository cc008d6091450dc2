"""Which kernel runs a conv's messages: found out by trying its own ``message`` on a few numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch_geometric.nn.conv as convs
from torch_geometric.nn import MessagePassing, aggr

from torch_geometric_qlr.nn.message_passing import QuantMessagePassing

__all__ = ["Route", "find_route"]


@dataclass(frozen=True)
class Route:
    r"""How one conv propagates.

    Args:
        kernel (str): :obj:`"spmm"`, :obj:`"attention"`, :obj:`"coefficients"` (attention, with
            coefficients that :obj:`message` computes) or an empty string for none.
        source (str): Argument of :obj:`propagate` that is gathered.
        weight (str): Argument that multiplies it, if any.
        reduce (str): :obj:`"sum"`, :obj:`"mean"`, :obj:`"max"` or :obj:`"min"`.
        reason (str): Why there is no kernel.
    """

    kernel: str = ""
    source: str = ""
    weight: str = ""
    reduce: str = "sum"
    reason: str = ""


_REDUCE: Mapping[type, str] = {
    aggr.SumAggregation: "sum",
    aggr.MeanAggregation: "mean",
    aggr.MaxAggregation: "max",
    aggr.MinAggregation: "min",
}

# Layers whose `message` computes coefficients and multiplies its source by them, and nothing else.
_COEFFICIENTS: Mapping[Callable[..., Any], str] = {
    convs.AGNNConv.message: "x",
    convs.FAConv.message: "x",
    convs.HANConv.message: "x",
    convs.HGTConv.message: "v",
    convs.TransformerConv.message: "value",
}


def find_route(layer: QuantMessagePassing) -> Route:
    r"""The kernel for a quantized conv, or why there is none.

    Args:
        layer (QuantMessagePassing): The layer.
    """
    cls: Any = layer.float_class
    reason = _obstacle(layer, cls)
    if reason:
        return Route(reason=reason)
    reduce = _REDUCE[type(layer.aggr_module)]
    source = _COEFFICIENTS.get(cls.message, "")
    if source in layer._source_keys:
        if reduce != "sum":
            return Route(reason=f"it attends with {layer.aggr_module}")
        if getattr(layer, "lin_edge", None) is not None:
            return Route(reason="its messages add edge features")
        return Route("coefficients", source)
    if len(layer._source_keys) > 1:
        return Route(reason=f"its messages combine {' and '.join(layer._source_keys)}")
    (source,) = layer._source_keys
    return _try_message(layer, cls, source, reduce)


def _obstacle(layer: QuantMessagePassing, cls: type[MessagePassing]) -> str:
    if not layer._source_keys:
        if "message" in layer.quantizers:
            return "it computes a message per edge"
        return "its messages stay in floating point"
    for name in ("aggregate", "update"):
        if getattr(cls, name) is not getattr(MessagePassing, name):
            return f"it has an {name}() of its own"
    if type(layer.aggr_module) not in _REDUCE:
        return f"it aggregates with {layer.aggr_module}"
    if layer.node_dim not in (-2, 0):
        return f"its nodes are along dimension {layer.node_dim}"
    return ""


def _try_message(
    layer: QuantMessagePassing, cls: type[MessagePassing], source: str, reduce: str
) -> Route:
    taken = list(inspect.signature(cls.message).parameters)[1:]
    others = [name for name in taken if name != f"{source}_j"]
    if f"{source}_j" not in taken or len(others) > 1:
        return Route(reason=f"its messages are made of {', '.join(taken)}")

    def sends(shape: tuple[int, ...], weighted: bool) -> bool:
        edges_and_heads = torch.Size(shape[:-1])
        x = torch.arange(1.0, 1.0 + torch.Size(shape).numel()).view(shape)
        weight = torch.arange(2.0, 2.0 + edges_and_heads.numel()).view(edges_and_heads)
        extra = dict.fromkeys(others, weight if weighted else None)
        try:
            out = cls.message(layer, **{f"{source}_j": x}, **extra)
        except Exception:  # whatever a user's message does with numbers it was not made for
            return False
        expected = x * weight.unsqueeze(-1) if weighted else x
        return out.shape == x.shape and torch.equal(out, expected)

    if others and sends((3, 2, 4), True):
        if reduce != "sum":
            return Route(reason=f"it attends with {layer.aggr_module}")
        return Route("attention", source, others[0])
    if others and sends((3, 4), True):
        return Route("spmm", source, others[0], reduce)
    if sends((3, 4), False):
        return Route("spmm", source, reduce=reduce)
    return Route(reason=f"its messages are no multiple of {source}_j")
