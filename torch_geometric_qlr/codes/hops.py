"""Layers whose forward is nothing but hops that follow each other: all of them in one call.

On a graph that fits the caches a hop takes less time than the calls that lead to it, so these
layers hand the whole chain to one operation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_geometric_qlr.codes.chains import codes_of, handed_out, plain
from torch_geometric_qlr.codes.edge_weights import coded_weights, is_by_row
from torch_geometric_qlr.codes.edges import ready_edges
from torch_geometric_qlr.codes.gather import (
    kernel_of,
    weighted_graph,
    why_not_now,
)
from torch_geometric_qlr.codes.mode import backend_scope, has_codes
from torch_geometric_qlr.codes.stage import NO_EPILOGUE, Epilogue, Stage
from torch_geometric_qlr.layers.layer_spec import HopChain, facts_of
from torch_geometric_qlr.layers.state import state_of
from torch_geometric_qlr.quantizers import Quantizer
from torch_geometric_qlr.tensor import OutputQuantizer
from torch_geometric_qlr.tensor import functional as packed
from torch_geometric_qlr.tensor.functional import Steps

__all__ = ["all_hops", "is_observing"]


def all_hops(layer: Any, arguments: dict[str, Any]) -> Any:
    r"""The forward of a layer in one call.

    Args:
        layer (torch.nn.Module): The layer.
        arguments (dict): What its forward was called with, by name.

    Returns:
        Any: The result, or :obj:`None` if the layer has to go hop by hop.
    """
    chain = facts_of(layer).forward.chain
    if chain is None or arguments.get(chain.unless):
        return None
    hops = facts_of(layer).hops(layer)
    if hops < 1 or getattr(layer, "cached", False) or not _chains(layer, arguments.get("x")):
        return None
    state = state_of(layer)
    found = state[state.source_keys[kernel_of(layer).source]]
    own = list(found) if isinstance(found, nn.ModuleList) else [found]
    quantizers = [own[hop % len(own)] for hop in range(hops)]
    if chain.operation == "smp":
        return _smp(layer, arguments, quantizers)
    return _propagate(layer, chain, arguments, quantizers)


def is_observing(layer: Any) -> bool:
    r"""Whether quantizers of a layer are still observing.

    Args:
        layer (torch.nn.Module): The layer.
    """
    if state_of(layer).converted:
        return False
    ranges = (q for q in state_of(layer).modules() if isinstance(q, Quantizer))
    return any(not q.is_fixed for q in ranges)


def _chains(layer: Any, x: Any) -> bool:
    """Whether nothing happens between hops but what a kernel does."""
    choice = kernel_of(layer)
    if choice.kernel != "spmm" or choice.reduce != "sum" or "aggregate" in state_of(layer):
        return False
    if hasattr(type(layer), "_qlr_wrapped"):
        return False  # every hop is a step of something else
    return has_codes(layer, x) and x.dim() == 2 and not why_not_now(layer)


def _steps(layer: Any, quantizers: list[Any], device: torch.device) -> Steps | None:
    """How the hops quantize, if all of them do it with one number each that is known before."""
    outputs = [quantizer.output(growing=True) for quantizer in quantizers]
    known = [out for out in outputs if out is not None and out.scale.numel() == 1]
    if len(known) < len(outputs):
        return None

    def join() -> Steps:
        with torch.inference_mode(False), torch.no_grad():
            return Steps.of(known, like=torch.empty(0, device=device))

    if torch.compiler.is_compiling():
        return join()
    # They stay the same objects while the layer stays what it is, so they are joined once.
    versions = tuple((id(out.scale), out.bits, id(out.zero_point)) for out in known)
    held, joined = state_of(layer).remembered("steps", versions, lambda: (known, join()))
    return joined if held else join()


def _chain(
    layer: Any, x: Any, adj: Any, edge_weight: Tensor | None, quantizers: list[Any], **terms: Any
) -> Any:
    state = state_of(layer)
    steps = _steps(layer, quantizers[1:], quantizers[0].device)
    if steps is None:
        return None
    codes = codes_of(x, quantizers[0])
    if is_by_row(codes.scale):
        return None  # scales of the first sources go into its weights alone, hop by hop
    nodes = codes.size(0)
    graph, weight = weighted_graph(layer, adj, nodes, nodes, {"edge_weight": edge_weight})
    weight, row_scale = coded_weights(layer, graph, weight)

    def run(e: Epilogue, out: OutputQuantizer | None) -> Any:
        assert e == NO_EPILOGUE
        return packed.propagate(
            *(graph.rowptr, graph.col, codes, steps),
            edge_weight=weight,
            row_scale=row_scale,
            out=out,
            **terms,
        )

    stage = Stage(run, (nodes, codes.size(1)), codes.device, state, biases=False)
    # What is added in every hop must be there when the hops run.
    return handed_out(stage) if "addend" not in terms else stage.value()


def _propagate(
    layer: Any, chain: HopChain, arguments: dict[str, Any], quantizers: list[Any]
) -> Any:
    known, ready = facts_of(layer).forward.edges, ready_edges(layer, arguments)
    if ready is None:
        if known is not None and not known.flag:
            return None
        ready = _as_given(arguments)
    x, terms = arguments["x"], {}
    if chain.teleport:
        x, alpha = plain(x), getattr(layer, chain.teleport)
        terms = {"factor": 1 - alpha, "addend": x, "addend_scale": alpha}
    y = _chain(layer, x, *ready, quantizers, **terms)
    return getattr(layer, chain.then)(y) if chain.then and y is not None else y


def _as_given(arguments: dict[str, Any]) -> tuple[Any, Any]:
    return arguments["edge_index"], arguments.get("edge_weight")


def _smp(layer: Any, arguments: dict[str, Any], quantizers: list[Any]) -> Any:
    persistent = layer.multiplier_state == "persistent"
    changes = persistent or layer.dropout > 0 or layer.feature_dropout > 0
    steps = _steps(layer, quantizers, quantizers[0].device)
    if steps is None or (layer.training and changes) or not layer.correction:
        return None
    x = plain(arguments["x"])
    adj, weight = layer._adjacency(x, *_as_given(arguments))
    nodes = x.size(0)
    graph, weight = weighted_graph(layer, adj, nodes, nodes, {"edge_weight": weight})
    weight, row_scale = coded_weights(layer, graph, weight)
    start = (layer.init_lambda, layer.init_slack)
    if persistent:
        start = (float(layer.multiplier), float(layer.slack))
    with backend_scope(state_of(layer).backend), torch._C.DisableTorchFunctionSubclass():
        return packed.smp(
            *(graph.rowptr, graph.col, x, steps),
            edge_weight=weight,
            row_scale=row_scale,
            init_lambda=start[0],
            init_slack=start[1],
            tau=layer.tau,
            primal=layer.primal,
            projection=layer.projection or "none",
            **{name: getattr(layer, name) for name in ("mu", "eta", "eta_lambda", "eta_slack")},
        )
