"""What a layer computes from its edges alone, computed once per graph.

PyG's layers normalise in every call. A row of the table here says, for the forward of a class, what
it does to its edges and by which option: the layer is then given edges that are ready, and sees
that option switched off while it runs. The forward itself is the one it always was, so what a user
has changed in it, or in its module, is what runs; and a class with a forward of its own prepares
its edges itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch_geometric.nn.conv as convs
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import add_self_loops, remove_self_loops

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.nn.running import running_model
from torch_geometric_qlr.nn.state import float_class, state_of, where_is
from torch_geometric_qlr.sparse import (
    Adjacency,
    CSRGraph,
    EdgeMemo,
    anchor_in,
    csr_graph,
    gcn_norm,
    is_matrix,
)

__all__ = ["ReadyFlag", "graph_of", "ready_edges", "ready_flag", "released", "with_ready_edges"]

_MEMO = EdgeMemo()

#: Stands for a tensor that the preparation leaves as it is.
_AS_GIVEN = object()


class Preparation(NamedTuple):
    r"""What a forward does to its edges.

    Args:
        prepare (callable): Does it: from the layer, the arguments of the forward, the edges, and
            what belongs to them.
        flag (str): The option without which it does nothing; empty if it always does.
        extra (str): The argument that belongs to the edges.
        options (tuple): Attributes of the layer that decide about the result.
    """

    prepare: Callable[[Any, dict[str, Any], Any, Any], Any]
    flag: str
    extra: str
    options: tuple[str, ...]


def _gcn(layer: Any, arguments: dict[str, Any], edges: Any, weight: Any) -> Any:
    x, improved = arguments["x"], getattr(layer, "improved", False)
    options = {"improved": improved, "add_self_loops": layer.add_self_loops, "flow": layer.flow}
    return gcn_norm(edges, weight, x.size(layer.node_dim), dtype=x.dtype, **options)


def _gcn_without_loops(layer: Any, arguments: dict[str, Any], edges: Any, weight: Any) -> Any:
    x = arguments["x"]
    options = {"add_self_loops": False, "flow": layer.flow}
    return gcn_norm(edges, weight, x.size(layer.node_dim), dtype=x.dtype, **options)


def _attention_loops(layer: Any, arguments: dict[str, Any], edges: Any, attr: Any) -> Any:
    x, size = arguments["x"], arguments.get("size")
    nodes = [v.size(0) for v in (x if isinstance(x, (tuple, list)) else (x,)) if v is not None]
    edges, attr = remove_self_loops(edges, attr)
    num_nodes = min(nodes) if size is None else min(size)
    return add_self_loops(edges, attr, fill_value=layer.fill_value, num_nodes=num_nodes)


def _plain_loops(layer: Any, arguments: dict[str, Any], edges: Any, attr: Any) -> Any:
    edges, _ = remove_self_loops(edges)
    return add_self_loops(edges, num_nodes=arguments["x"].size(layer.node_dim))[0], attr


_GCN = Preparation(_gcn, "normalize", "edge_weight", ("improved", "add_self_loops", "flow"))
_GCN_WITHOUT_LOOPS = Preparation(_gcn_without_loops, "normalize", "edge_weight", ("flow",))
_ATTENTION = Preparation(_attention_loops, "add_self_loops", "edge_attr", ("fill_value",))
_LOOPS = Preparation(_plain_loops, "add_self_loops", "", ())

_PREPARATIONS: dict[Any, Preparation] = {
    convs.GCNConv.forward: _GCN,
    convs.GCN2Conv.forward: _GCN,
    convs.FAConv.forward: _GCN,
    convs.APPNP.forward: _GCN,
    convs.SGConv.forward: _GCN._replace(flag=""),
    convs.TAGConv.forward: _GCN_WITHOUT_LOOPS,
    convs.LGConv.forward: _GCN_WITHOUT_LOOPS,
    convs.GATConv.forward: _ATTENTION,
    convs.GATv2Conv.forward: _ATTENTION,
    convs.SuperGATConv.forward: _LOOPS,
    convs.AGNNConv.forward: _LOOPS,
}


def ready_flag(base: Any) -> str:
    """The option of a class that its layers see switched off when their edges are prepared."""
    row = _PREPARATIONS.get(base.forward)
    return "" if row is None else row.flag


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
    row = _PREPARATIONS.get(float_class(layer).forward)
    edges = arguments.get("edge_index")
    if (
        row is None
        or (row.flag and not getattr(layer, row.flag))
        or getattr(layer, "cached", False)
    ):
        return None
    if not isinstance(edges, Tensor) and not (is_matrix(edges) and row.extra == "edge_weight"):
        return None
    x = arguments["x"]
    if not isinstance(x, Tensor) and row is not _ATTENTION:
        return None  # PyG says what is wrong
    features = [v for v in (x if isinstance(x, (tuple, list)) else (x,)) if v is not None]
    nodes = tuple((v.shape[:-1], v.dtype) for v in features)
    options = tuple(_exact(getattr(layer, name, None)) for name in ("node_dim", *row.options))
    key = (row.prepare.__name__, nodes, options, _exact(arguments.get("size")))
    extra = arguments.get(row.extra)

    def build() -> tuple[Any, Any]:
        out = row.prepare(layer, arguments, edges, extra)
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
    row = _PREPARATIONS.get(float_class(layer).forward)
    ready = None if row is None or not row.flag else ready_edges(layer, arguments)
    call = state_of(layer).call
    if row is None or ready is None or call is None:
        return False
    arguments["edge_index"] = ready[0]
    if row.extra:
        arguments[row.extra] = ready[1]
    call.prepared = row.flag
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
