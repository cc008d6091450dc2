"""Layers whose forward is nothing but hops that follow each other: all of them in one call.

On a graph that fits the caches a hop takes less time than the calls that lead to it, so these
layers hand the whole chain to one operation.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch_geometric.nn import APPNP, SGConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from torch_geometric_qlr.nn.packed.deferred import Deferred, Epilogue, Stage, stage_of
from torch_geometric_qlr.nn.packed.edges import remembered
from torch_geometric_qlr.nn.packed.ranges import FrozenRange
from torch_geometric_qlr.nn.packed.scope import backend_scope, defer
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor
from torch_geometric_qlr.tensor import functional as packed

__all__ = ["all_hops"]

_signature = functools.cache(inspect.signature)


def all_hops(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    r"""The forward of a layer in one call.

    Args:
        layer (PackedMessagePassing): The layer.
        args (tuple): What it is called with.
        kwargs (dict): The same by name.

    Returns:
        Any: The result, or :obj:`None` if the layer has to go hop by hop.
    """
    forward = _FORWARDS.get(layer.float_class.forward)
    if forward is None:
        return None
    bound = _signature(layer.float_class.forward).bind(layer, *args, **kwargs)
    given = {"edge_weight": None, **bound.arguments}
    x, edge_index, edge_weight = (given[name] for name in ("x", "edge_index", "edge_weight"))
    if layer.K < 1 or not layer.can_chain(x):
        return None
    own = layer.quantizers[layer._source_keys["x"]]
    own = list(own) if isinstance(own, nn.ModuleList) else [own]
    quantizers = [own[hop % len(own)] for hop in range(layer.K)]
    steps = [quantizer.output() for quantizer in quantizers[1:]]
    if any(step is None or step.scale.numel() != 1 for step in steps):
        return None
    return forward(layer, x, edge_index, edge_weight, quantizers[0], steps)


def _chain(
    layer: Any,
    x: Any,
    adj: Any,
    edge_weight: Tensor | None,
    quantizer: FrozenRange,
    steps: list[OutputQuantizer],
    **terms: Any,
) -> Stage:
    codes = stage_of(x).codes(quantizer)
    graph, weight = layer.weighted_graph(
        adj, codes.size(0), codes.size(0), {"edge_weight": edge_weight}
    )

    def run(e: Epilogue, out: OutputQuantizer | None) -> Any:
        plain = e == Epilogue()
        with backend_scope(layer.backend):
            y = packed.propagate(
                *(graph.rowptr, graph.col, codes, steps),
                edge_weight=weight,
                out=out if plain else None,
                **terms,
            )
            if isinstance(y, PackedTensor) or plain:
                return y
            y = e.apply(y)
            if out is None:
                return y
            return PackedTensor.from_float(y, *out[:3], truncate=out.truncate, skew=out.skew)

    return Stage(run, (codes.size(0), codes.size(1)), codes.device, owner=layer)


def _normalized(layer: Any, x: Tensor, edge_index: Any, edge_weight: Any) -> tuple[Any, Any]:
    edges = remembered(gcn_norm)(
        *(edge_index, edge_weight, x.size(layer.node_dim), False),
        *(layer.add_self_loops, layer.flow),
        dtype=x.dtype,
    )
    return edges if isinstance(edge_index, Tensor) else (edges, None)


def _appnp(
    layer: Any,
    x: Tensor,
    edge_index: Any,
    edge_weight: Any,
    quantizer: FrozenRange,
    steps: list[OutputQuantizer],
) -> Any:
    if layer.normalize:
        edge_index, edge_weight = _normalized(layer, x, edge_index, edge_weight)
    term = x.stage.value() if isinstance(x, Deferred) else x
    terms = {"factor": 1 - layer.alpha, "addend": term, "addend_scale": layer.alpha}
    return defer(_chain(layer, term, edge_index, edge_weight, quantizer, steps, **terms))


def _sgconv(
    layer: Any,
    x: Tensor,
    edge_index: Any,
    edge_weight: Any,
    quantizer: FrozenRange,
    steps: list[OutputQuantizer],
) -> Any:
    edge_index, edge_weight = _normalized(layer, x, edge_index, edge_weight)
    return layer.lin(defer(_chain(layer, x, edge_index, edge_weight, quantizer, steps)))


_FORWARDS: dict[Callable[..., Any], Callable[..., Any]] = {
    APPNP.forward: _appnp,
    SGConv.forward: _sgconv,
}
