"""What weights of edges in few bits cost, by how many edges a node has."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.metrics.error import sqnr
from torch_geometric_qlr.quantizers import EdgeWeightQuant
from torch_geometric_qlr.sparse import Adjacency, CSRGraph, csr_graph, sparse_csr

__all__ = ["DegreeBucket", "edge_weight_error"]


class DegreeBucket(NamedTuple):
    r"""The nodes with so many edges into them, see :func:`edge_weight_error`.

    Args:
        low (int): The smallest number of edges.
        high (int): The largest.
        num_nodes (int): How many nodes there are.
        num_edges (int): How many edges lead to them.
        zeroed (float): The share of their weights that round to zero.
        sqnr (float): Signal to noise in decibels.
    """

    low: int
    high: int
    num_nodes: int
    num_edges: int
    zeroed: float
    sqnr: float


@torch.no_grad()
def edge_weight_error(
    adj: Adjacency,
    edge_weight: Tensor | None = None,
    x: Tensor | None = None,
    *,
    bits: int = 8,
    num_nodes: int | None = None,
) -> list[DegreeBucket]:
    r"""What :class:`~torch_geometric_qlr.quantizers.EdgeWeightQuant` costs a graph: the share of
    weights that round to zero, and the :func:`sqnr` of one propagation

    .. math::
        \mathbf{y}_i = \sum_{j \in \mathcal{N}(i)} w_{ij} \mathbf{x}_j,

    for the nodes with 1 edge, with 2 or 3, with 4 to 7, and so on.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]`` or a sparse matrix
            ``adj_t``.
        edge_weight (torch.Tensor, optional): Weights ``[E]`` of plain edges.
        x (torch.Tensor, optional): Features ``[N, F]`` that are propagated; the noise is that of
            the weights themselves if there are none. (default: :obj:`None`)
        bits (int): Width of a weight, from 2 to 8. (default: :obj:`8`)
        num_nodes (int, optional): Number of nodes. (default: that of :obj:`x`, or as the
            adjacency has it)

    Raises:
        InputError: If there are no weights.

    Example:
        >>> edge_index = torch.tensor([[0, 1, 2, 0], [1, 2, 1, 0]])
        >>> buckets = edge_weight_error(edge_index, torch.tensor([1.0, 0.3, 1e-3, 0.5]))
        >>> [(b.low, b.high, b.num_edges, b.zeroed) for b in buckets]
        [(1, 1, 2, 0.0), (2, 3, 2, 0.5)]
    """
    if x is not None and num_nodes is None:
        num_nodes = x.size(0)
    graph = csr_graph(adj, edge_weight, num_src=num_nodes, num_dst=num_nodes)
    if graph.value is None:
        raise InputError(
            "edge_weight_error: the edges have no weights. Pass edge_weight, or a matrix with "
            "values; sparse.gcn_edges(edge_index) makes those of GCN."
        )
    degree, exact = graph.degree(), graph.value
    target = graph.edge_index()[1]
    rounded = EdgeWeightQuant(bits)(exact, target, graph.num_dst)
    lost = (rounded == 0) & (exact != 0)
    outputs = None if x is None else [_product(graph, w, x) for w in (exact, rounded)]
    found = []
    for k in range(int(degree.max()).bit_length() if degree.numel() else 0):
        low, high = 2**k, 2 ** (k + 1) - 1
        nodes = (degree >= low) & (degree <= high)
        edges = nodes[target]
        if not bool(nodes.any()):
            continue
        pair = (exact[edges], rounded[edges]) if outputs is None else [y[nodes] for y in outputs]
        zeroed, noise = float(lost[edges].float().mean()), float(sqnr(*pair))
        found.append(DegreeBucket(low, high, int(nodes.sum()), int(edges.sum()), zeroed, noise))
    return found


def _product(graph: CSRGraph, weight: Tensor, x: Tensor) -> Tensor:
    size = (graph.num_dst, graph.num_src)
    product: Tensor = sparse_csr(graph.rowptr, graph.col, weight.double(), size) @ x.double()
    return product
