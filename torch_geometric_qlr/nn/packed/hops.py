"""Layers whose forward is nothing but hops that follow each other: all of them in one call.

On a graph that fits the caches a hop takes less time than the calls that lead to it, so these
layers hand the whole chain to one operation.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import APPNP, SGConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from torch_geometric_qlr.nn.packed.deferred import Deferred, Epilogue, Stage, stage_of
from torch_geometric_qlr.nn.packed.edges import remembered
from torch_geometric_qlr.nn.packed.scope import backend_scope, defer
from torch_geometric_qlr.nn.propagation import SMP
from torch_geometric_qlr.quantizers import FrozenRange
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor
from torch_geometric_qlr.tensor import functional as packed
from torch_geometric_qlr.tensor.functional import Steps

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
    known = _FORWARDS.get(layer.float_class.forward)
    if known is None:
        return None
    forward, per_step = known
    bound = _signature(layer.float_class.forward).bind(layer, *args, **kwargs)
    bound.apply_defaults()
    x, edge_index, edge_weight = (
        bound.arguments.get(name) for name in ("x", "edge_index", "edge_weight")
    )
    if layer.K < 1 or not layer.can_chain(x) or bound.arguments.get("return_history"):
        return None
    own = layer.quantizers[layer._source_keys["x"]]
    own = list(own) if isinstance(own, nn.ModuleList) else [own]
    quantizers = [own[hop % len(own)] for hop in range(per_step * layer.K)]
    return forward(layer, x, edge_index, edge_weight, quantizers)


def _steps(layer: Any, quantizers: list[FrozenRange], like: Tensor) -> Steps | None:
    """How the hops quantize, if all of them do it with one number each that is known before. They
    stay the same objects while the layer stays what it is, so they are joined once."""
    outputs = [quantizer.output() for quantizer in quantizers]
    before, joined = layer.__dict__.get("_hop_steps", (None, None))
    if before is not None and len(before) == len(outputs):
        if all(map(operator.is_, before, outputs)):
            return joined
    known = [out for out in outputs if out is not None and out.scale.numel() == 1]
    if len(known) < len(outputs):
        return None
    with torch.inference_mode(False), torch.no_grad():
        joined = Steps.of(known, like)
    layer.__dict__["_hop_steps"] = (known, joined)
    return joined


def _chain(
    layer: Any,
    x: Any,
    adj: Any,
    edge_weight: Tensor | None,
    quantizers: list[FrozenRange],
    **terms: Any,
) -> Any:
    steps = _steps(layer, quantizers[1:], quantizers[0].gamma)
    if steps is None:
        return None
    codes = stage_of(x).codes(quantizers[0])
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

    return defer(Stage(run, (codes.size(0), codes.size(1)), codes.device, owner=layer))


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
    quantizers: list[FrozenRange],
) -> Any:
    if layer.normalize:
        edge_index, edge_weight = _normalized(layer, x, edge_index, edge_weight)
    term = x.stage.value() if isinstance(x, Deferred) else x
    terms = {"factor": 1 - layer.alpha, "addend": term, "addend_scale": layer.alpha}
    return _chain(layer, term, edge_index, edge_weight, quantizers, **terms)


def _sgconv(
    layer: Any,
    x: Tensor,
    edge_index: Any,
    edge_weight: Any,
    quantizers: list[FrozenRange],
) -> Any:
    edge_index, edge_weight = _normalized(layer, x, edge_index, edge_weight)
    y = _chain(layer, x, edge_index, edge_weight, quantizers)
    return None if y is None else layer.lin(y)


def _smp(
    layer: Any,
    x: Tensor,
    edge_index: Any,
    edge_weight: Any,
    quantizers: list[FrozenRange],
) -> Any:
    persistent = layer.multiplier_state == "persistent"
    changes = persistent or layer.dropout > 0 or layer.feature_dropout > 0
    steps = _steps(layer, quantizers, quantizers[0].gamma)
    if steps is None or (layer.training and changes) or not layer.correction:
        return None
    x = x.stage.value() if isinstance(x, Deferred) else x
    adj, weight = layer._adjacency(x, edge_index, edge_weight)
    graph, weight = layer.weighted_graph(adj, x.size(0), x.size(0), {"edge_weight": weight})
    start = (layer.init_lambda, layer.init_slack)
    if persistent:
        start = (float(layer.multiplier), float(layer.slack))
    with backend_scope(layer.backend):
        return packed.smp(
            *(graph.rowptr, graph.col, x, steps),
            edge_weight=weight,
            init_lambda=start[0],
            init_slack=start[1],
            bound=layer.tau * graph.num_edges,
            primal=layer.primal,
            projection=layer.projection or "none",
            **{name: getattr(layer, name) for name in ("mu", "eta", "eta_lambda", "eta_slack")},
        )


#: What computes a forward, and how many hops there are to each of its `K` steps.
_FORWARDS: dict[Callable[..., Any], tuple[Callable[..., Any], int]] = {
    APPNP.forward: (_appnp, 1),
    SGConv.forward: (_sgconv, 1),
    SMP.forward: (_smp, 2),
}
