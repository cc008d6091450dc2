"""Attention coefficients of edges, computed along the rows of a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.codes.chains import plain
from torch_geometric_qlr.codes.edges import graph_of
from torch_geometric_qlr.codes.mode import backend_scope
from torch_geometric_qlr.layers.layer_spec import facts_of
from torch_geometric_qlr.layers.pyg import has_own_edge_update
from torch_geometric_qlr.layers.state import state_of
from torch_geometric_qlr.sparse import CSRGraph

__all__ = ["edge_coefficients"]


def edge_coefficients(layer: Any, adj: Any, kwargs: dict[str, Any]) -> Tensor | None:
    r"""What :meth:`edge_updater` of a conv returns that attends as its row says, in the order of
    its edges.

    Args:
        layer (torch.nn.Module): The conv, which computes on codes.
        adj (torch.Tensor or EdgeIndex or SparseTensor): Its edges.
        kwargs (dict): The other arguments of :meth:`edge_updater`.

    Returns:
        torch.Tensor: Or :obj:`None` if there is more to it.
    """
    known = facts_of(layer).edge_update
    if not known.logits or _is_more(layer):
        return None
    source, target = _pair(kwargs.get(known.logits))
    if source is None or target is None:
        return None
    graph = graph_of(layer, adj, None, source.size(0), target.size(0))
    if graph.num_edges == 0:
        return None
    edge = known.edge_logits(layer, kwargs)
    edge = None if edge is None else graph.in_order(plain(edge))
    with backend_scope(state_of(layer).backend):
        alpha: Tensor = torch.ops.qlr.edge_softmax(
            graph.rowptr, graph.col, source, target, edge, getattr(layer, known.slope)
        )
    return _as_given(graph, alpha)


def _is_more(layer: Any) -> bool:
    """Whether a hook or a replaced method has a part in it, or edges are read the other way."""
    turned = layer.flow != "source_to_target" or layer.node_dim not in (0, -2)
    return turned or has_own_edge_update(layer)


def _pair(logits: Any) -> tuple[Tensor | None, Tensor | None]:
    """Logits of those that send and those that receive, if both are matrices of floats."""
    if not isinstance(logits, (tuple, list)) or len(logits) != 2:
        return None, None
    source, target = map(plain, logits)
    for value in (source, target):
        if not isinstance(value, Tensor) or value.dim() != 2 or value.dtype != torch.float32:
            return None, None
    return (source, target) if source.size(1) == target.size(1) else (None, None)


def _as_given(graph: CSRGraph, values: Tensor) -> Tensor:
    """From the order of the rows to that in which the edges were given."""
    if graph.perm is None:
        return values
    return torch.empty_like(values).index_copy_(0, graph.perm.long(), values)
