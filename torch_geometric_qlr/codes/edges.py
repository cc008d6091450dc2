"""What a layer computes from its edges alone, computed once per graph.

PyG's layers normalise in every call. The row of a class says what its forward does to its edges and
by which option: the layer is then given edges that are ready, and sees that option switched off
while it runs. The forward itself is the one it always was, so what a user has changed in it, or in
its module, is what runs; and a class with a forward of its own prepares its edges itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.layers.layer_spec import facts_of
from torch_geometric_qlr.layers.running import running_model
from torch_geometric_qlr.layers.state import state_of, where_is
from torch_geometric_qlr.sparse import (
    Adjacency,
    CSRGraph,
    EdgeMemo,
    Entry,
    anchor_in,
    csr_graph,
    is_matrix,
)

__all__ = ["ReadyFlag", "graph_of", "kept_of", "ready_edges", "released", "with_ready_edges"]

_MEMO = EdgeMemo()

#: Stands for a tensor that the preparation leaves as it is.
_AS_GIVEN = object()


class ReadyFlag:
    """An option of a layer, which reads as off in a call whose edges are prepared already."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, layer: Any, owner: type) -> Any:
        if layer is None:
            return self
        state = layer._modules.get("_qlr")
        call = None if state is None else state.call
        if call is not None and call.prepared == self.name:
            return False
        try:
            return layer.__dict__[self.name]
        except KeyError:
            raise AttributeError(
                f"{owner.__name__!r} object has no attribute {self.name!r}"
            ) from None

    def __set__(self, layer: Any, value: Any) -> None:
        layer.__dict__[self.name] = value

    def __delete__(self, layer: Any) -> None:
        del layer.__dict__[self.name]


def ready_edges(layer: Any, arguments: dict[str, Any]) -> tuple[Any, Any] | None:
    r"""The edges of a call as the layer itself would prepare them, remembered by the graph.

    Args:
        layer (torch.nn.Module): A conv.
        arguments (dict): What its forward was called with, by name.

    Returns:
        tuple: Edges and what belongs to them; :obj:`None` if the layer leaves them as they are, or
        has to do it itself.
    """
    known, edges = facts_of(layer).forward.edges, arguments.get("edge_index")
    if known is None or (known.flag and not getattr(layer, known.flag)):
        return None
    if getattr(layer, "cached", False):
        return None
    if not known.takes(edges):
        return None
    x = arguments.get("x")
    if x is None or not (isinstance(x, Tensor) or known.takes_pairs):
        return None  # PyG says what is wrong
    features = [v for v in (x if isinstance(x, (tuple, list)) else (x,)) if v is not None]
    nodes = tuple((v.shape[:-1], v.dtype) for v in features)
    options = tuple(_exact(getattr(layer, name, None)) for name in ("node_dim", *known.options))
    key = (known.prepare, nodes, options, _exact(arguments.get("size")))
    extra = arguments.get(known.extra)

    def build() -> tuple[Any, Any]:
        out = known.prepare(layer, arguments, edges, extra)
        ready = out if isinstance(out, tuple) else (out, extra)
        # What is remembered must not keep the graph alive that it is remembered for.
        return _exchanged(ready, given, (_AS_GIVEN, _AS_GIVEN))

    given = (edges, extra)
    ready = _MEMO.get(edges, key, build, extra)
    return _exchanged(ready, (_AS_GIVEN, _AS_GIVEN), given)


def _exact(value: Any) -> Any:
    """An option as something to compare: equal only if the options are."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, tuple(value.flatten().tolist())
    return tuple(map(_exact, value)) if isinstance(value, (list, tuple)) else repr(value)


def _exchanged(pair: Any, old: tuple[Any, Any], new: tuple[Any, Any]) -> tuple[Any, Any]:
    """The pair, with the new ones in place of the old."""
    first, second = (n if p is o else p for p, o, n in zip(pair, old, new, strict=True))
    return first, second


def with_ready_edges(layer: Any, arguments: dict[str, Any]) -> bool:
    r"""Puts prepared edges in place of those that a layer was called with. While it runs it sees
    the option switched off that would prepare them again.

    Args:
        layer (torch.nn.Module): A conv that computes on codes, in a call.
        arguments (dict): What its forward was called with, by name; changed in place.

    Returns:
        bool: Whether anything was changed.
    """
    known = facts_of(layer).forward.edges
    ready = None if known is None or not known.flag else ready_edges(layer, arguments)
    call = state_of(layer).call
    if known is None or ready is None or call is None:
        return False
    arguments["edge_index"] = ready[0]
    if known.extra:
        arguments[known.extra] = ready[1]
    call.prepared = known.flag
    return True


def released(out: Any, arguments: dict[str, Any]) -> Any:
    r"""A layer's result, with copies in place of remembered edges, which then are the caller's.

    Args:
        out (Any): The result.
        arguments (dict): What the layer was called with after :func:`with_ready_edges`.
    """
    if type(out) in (tuple, list):
        return type(out)(released(o, arguments) for o in out)
    if isinstance(out, Tensor):
        kept = (arguments.get(name) for name in ("edge_index", "edge_weight", "edge_attr"))
        return out.clone() if any(out is k for k in kept) else out
    return out


# The graph as the kernels read it ################################################################


def graph_of(
    layer: Any, adj: Adjacency, edge_weight: Tensor | None, num_src: int, num_dst: int
) -> CSRGraph:
    r"""The CSR view of what a layer propagates along. It is sorted once: for edges that are the
    same object, or that a layer makes anew in every call and that have the same values.

    Args:
        layer (torch.nn.Module): The conv.
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]`` or a matrix ``adj_t``.
        edge_weight (torch.Tensor, optional): Weights ``[E]`` of plain edges.
        num_src (int): Number of nodes that send.
        num_dst (int): Number of nodes that receive.
    """
    turned = layer.flow == "target_to_source" and not is_matrix(adj)
    weight = edge_weight
    if weight is not None and weight.dim() != 1:  # a view would be another tensor in every call
        weight = weight.view(-1)
    if weight is not None and weight.numel() != adj.size(1):
        raise InputError(
            f"{where_is(layer)}: {weight.numel()} weights were given for {adj.size(1)} edges."
        )
    if torch.compiler.is_compiling():
        return csr_graph(_turned(adj) if turned else adj, weight, num_src=num_src, num_dst=num_dst)

    def build() -> CSRGraph:
        edges = _turned(adj) if turned else adj
        try:
            return csr_graph(edges, None, num_src=num_src, num_dst=num_dst)
        except InputError as error:
            raise InputError(f"{where_is(layer)}: {error}") from error

    if is_matrix(adj) or isinstance(adj, EdgeIndex):
        graph = _MEMO.get(adj, ("graph", num_src, num_dst, turned), build)
    else:
        graph = _MEMO.get_by_values(
            adj, ("graph", num_src, num_dst, turned), build, anchor=partial(_anchor, layer)
        )
    return graph if weight is None else _MEMO.weighted(graph, weight)


def kept_of(
    adj: Adjacency, key: Hashable, build: Callable[[], Any], *depends: Tensor | None
) -> Entry | None:
    r"""What is remembered of an adjacency as long as it lives, for whoever wants to look at it
    without looking for it. Only weak references to it may be kept.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): The adjacency.
        key (Hashable): What was computed, with all its options.
        build (callable): Computes it.
        *depends (torch.Tensor, optional): Further tensors it was computed from.
    """
    _MEMO.get(adj, key, build, *depends)
    return _MEMO.find(adj, key)


def _turned(edges: Any) -> Tensor:
    return torch.stack([edges[1], edges[0]])


def _anchor(layer: Any) -> Any:
    """The object whose life limits what is remembered of edges that live for one call only."""
    running, call = running_model(), state_of(layer).call
    arguments = call.arguments if running is None and call is not None else None
    found = anchor_in(arguments if running is None else running.arguments)
    if found is None:
        found = layer if running is None else running.model
    return found
