"""What a conv computes from its edges alone, computed once per adjacency object.

PyG's layers normalise in every call and so hand on new edges every time, whose CSR view would have
to be sorted every time. The forward of a converted layer is PyG's own code with four global names
exchanged: functions that depend on the edges only, which here remember their result.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import (
    add_remaining_self_loops,
    add_self_loops,
    remove_self_loops,
)

from torch_geometric_qlr.sparse import Adjacency, AdjacencyCache, CSRGraph, csr_graph, is_matrix

__all__ = ["graph_of", "remembered", "remembering"]

_CACHE = AdjacencyCache()


def _remember(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    def recall(*args: Any, **kwargs: Any) -> Any:
        (_, adj), *others = signature.bind(*args, **kwargs).arguments.items()
        tensors = {name: value for name, value in others if isinstance(value, Tensor)}
        options = tuple((name, value) for name, value in others if name not in tensors)

        def build() -> Any:
            out = function(*args, **kwargs)
            # A result that is the adjacency itself would keep it alive.
            return tuple(o.detach() if o is adj else o for o in out) if type(out) is tuple else out

        key = (function.__name__, options, tuple(tensors))
        return _CACHE.get(adj, key, build, *tensors.values())

    return recall


_REMEMBERED = {
    function: _remember(function)
    for function in (gcn_norm, add_self_loops, remove_self_loops, add_remaining_self_loops)
}


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    r"""A function of the edges alone, one of :obj:`gcn_norm` and its kin, with its memory."""
    return _REMEMBERED[function]


def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    r"""The function with the same code, whose normalisation is remembered.

    Args:
        function (callable): The :obj:`forward` of a layer class.
    """
    if not isinstance(function, types.FunctionType):
        return function
    exchanged = {
        name: _REMEMBERED[function.__globals__[name]]
        for name in function.__code__.co_names
        if _is_remembered(function.__globals__.get(name))
    }
    if not exchanged:
        return function
    out = types.FunctionType(
        function.__code__,
        {**function.__globals__, **exchanged},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    out.__kwdefaults__ = function.__kwdefaults__
    return out


def _is_remembered(value: Any) -> bool:
    return isinstance(value, types.FunctionType) and value in _REMEMBERED


def graph_of(
    adj: Adjacency, edge_weight: Tensor | None, num_src: int, num_dst: int, flow: str
) -> CSRGraph:
    r"""The CSR view of what a layer propagates along, built once per object.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]`` or a matrix ``adj_t``.
        edge_weight (torch.Tensor, optional): Weights ``[E]`` of plain edges.
        num_src (int): Number of nodes that send.
        num_dst (int): Number of nodes that receive.
        flow (str): The layer's.
    """
    if flow == "target_to_source" and not is_matrix(adj):
        edges: Any = adj
        adj = _CACHE.get(adj, "flipped", lambda: torch.stack([edges[1], edges[0]]))
    return csr_graph(adj, edge_weight, num_src=num_src, num_dst=num_dst)
