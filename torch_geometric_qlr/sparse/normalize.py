"""The matrix that propagation multiplies with: self loops, symmetric normalisation, storage."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm as gcn_norm_of_pyg
from torch_geometric.utils import add_remaining_self_loops, scatter

from torch_geometric_qlr.sparse.adjacency import (
    Adjacency,
    check_adjacency,
    infer_num_nodes,
    is_matrix,
    to_edge_index,
)
from torch_geometric_qlr.sparse.cache import AdjacencyCache
from torch_geometric_qlr.sparse.csr import CSRGraph

__all__ = [
    "gcn_edges",
    "gcn_norm",
    "in_form_of",
    "inverse_sqrt_degree",
    "propagation_adjacency",
]

_CACHE = AdjacencyCache()


def gcn_norm(
    adj: Adjacency,
    edge_weight: Tensor | None,
    num_nodes: int,
    *,
    improved: bool = False,
    add_self_loops: bool = True,
    flow: str = "source_to_target",
    dtype: torch.dtype | None = None,
) -> Any:
    r"""PyG's ``gcn_norm``, bit for bit, and the same bits in code that torch has compiled, where
    ``pow(-0.5)``, with which PyG computes it, has another last bit.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]`` or a sparse matrix
            ``adj_t``, which PyG itself normalises.
        edge_weight (torch.Tensor, optional): Weights ``[E]`` that belong to plain edges.
        num_nodes (int): Number of nodes.
        improved (bool, optional): Whether a new self loop weighs two. (default: :obj:`False`)
        add_self_loops (bool, optional): Whether to add the self loops that are missing.
            (default: :obj:`True`)
        flow (str, optional): Over which end of the edges degrees are summed.
            (default: :obj:`"source_to_target"`)
        dtype (torch.dtype, optional): Type of the weights, if none were given.
            (default: :obj:`None`)

    Returns:
        Any: Edges and weights, or the matrix, as PyG has them.

    Example:
        >>> gcn_norm(torch.tensor([[0, 1], [1, 1]]), None, 2)
        (tensor([[0, 0, 1],
                [1, 0, 1]]), tensor([0.7071, 1.0000, 0.5000]))
    """
    if is_matrix(adj):
        return gcn_norm_of_pyg(adj, edge_weight, num_nodes, improved, add_self_loops, flow, dtype)
    edges: Any = adj
    if add_self_loops:
        fill = 2.0 if improved else 1.0
        edges, edge_weight = add_remaining_self_loops(edges, edge_weight, fill, num_nodes)
    if edge_weight is None:
        edge_weight = torch.ones(edges.size(1), dtype=dtype, device=edges.device)
    source, target = edges[0], edges[1]
    end = target if flow == "source_to_target" else source
    inv_sqrt = _inverse_sqrt(scatter(edge_weight, end, 0, dim_size=num_nodes, reduce="sum"))
    return edges, inv_sqrt[source] * edge_weight * inv_sqrt[target]


def _inverse_sqrt(degree: Tensor) -> Tensor:
    """Of nodes without edges zero."""
    inv_sqrt = degree.rsqrt()
    return inv_sqrt.masked_fill(inv_sqrt == float("inf"), 0.0)


def gcn_edges(
    adj: Adjacency,
    edge_weight: Tensor | None = None,
    num_nodes: int | None = None,
    *,
    add_self_loops: bool = True,
    flow: str = "source_to_target",
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Edges and weights of the normalised adjacency matrix from the `"Semi-supervised
    Classification with Graph Convolutional Networks" <https://arxiv.org/abs/1609.02907>`_ paper

    .. math::
        \mathbf{\tilde{A}} = \mathbf{\hat{D}}^{-1/2} (\mathbf{A} + \mathbf{I})
        \mathbf{\hat{D}}^{-1/2}.

    This is PyG's ``gcn_norm`` on *edges* for every form of adjacency. Its own branches for
    matrices treat self loops that are already there in three different ways (kept, added to,
    overwritten), and so give different matrices for the forms of one graph; here they are kept.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]`` or a sparse matrix
            ``adj_t``.
        edge_weight (torch.Tensor, optional): Weights ``[E]`` that belong to plain edges.
            (default: :obj:`None`)
        num_nodes (int, optional): Number of nodes. (default: :obj:`None`)
        add_self_loops (bool, optional): Whether to add the self loops that are missing.
            (default: :obj:`True`)
        flow (str, optional): Over which end of the edges degrees are summed.
            (default: :obj:`"source_to_target"`)
        dtype (torch.dtype, optional): Type of the weights. (default: :obj:`None`)

    Raises:
        InputError: If ``adj`` is no square adjacency.

    Example:
        >>> edge_index, weight = gcn_edges(torch.tensor([[0, 1], [1, 0]]))
        >>> edge_index.tolist(), weight
        ([[0, 1, 0, 1], [1, 0, 0, 1]], tensor([0.5000, 0.5000, 0.5000, 0.5000]))
    """
    num_nodes = infer_num_nodes(adj, num_nodes)
    edge_index, edge_weight = to_edge_index(adj, edge_weight)
    if edge_weight is not None and dtype is not None:
        edge_weight = edge_weight.to(dtype)
    options: Any = {"add_self_loops": add_self_loops, "flow": flow, "dtype": dtype}
    normalised: tuple[Tensor, Tensor] = gcn_norm(edge_index, edge_weight, num_nodes, **options)
    return normalised


def inverse_sqrt_degree(
    edge_index: Tensor, weight: Tensor, num_nodes: int, *, add_self_loops: bool = True
) -> Tensor:
    r""":math:`d_i^{-1/2}` of every node, 0 where there is no edge: the factors of
    :func:`gcn_edges`.

    Args:
        edge_index (torch.Tensor): Sources and targets ``[2, E]``.
        weight (torch.Tensor): Weights ``[E]``, summed over the edges into a node.
        num_nodes (int): Number of nodes.
        add_self_loops (bool, optional): Whether to count a self loop of weight one at nodes without
            one. (default: :obj:`True`)

    Example:
        >>> inverse_sqrt_degree(torch.tensor([[0, 1], [1, 1]]), torch.ones(2), 2)
        tensor([1.0000, 0.7071])
    """
    source, target = edge_index[0], edge_index[1]
    degree = scatter(weight, target, dim=0, dim_size=num_nodes, reduce="sum")
    if add_self_loops:
        loops = (source == target).to(weight.dtype)
        loops = scatter(loops, target, dim=0, dim_size=num_nodes, reduce="sum")
        degree = degree + (loops == 0).to(weight.dtype)
    return _inverse_sqrt(degree)


def propagation_adjacency(
    adj: Adjacency,
    edge_weight: Tensor | None = None,
    num_nodes: int | None = None,
    *,
    normalize: bool = True,
    add_self_loops: bool = True,
    flow: str = "source_to_target",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor | None]:
    r"""What to hand to ``propagate``: edges with weights for edges, one CSR matrix for any matrix.

    A matrix takes PyG's fused path (no message per edge in memory), is always CSR, with ``int32``
    indices where they fit, and is prepared once per object. Where the fused product is not
    available (values that require grad, for which torch's is wrong with duplicate entries; half
    precision on a CPU) edges are returned.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]`` or a sparse matrix
            ``adj_t``.
        edge_weight (torch.Tensor, optional): Weights ``[E]`` that belong to plain edges.
            (default: :obj:`None`)
        num_nodes (int, optional): Number of nodes. (default: :obj:`None`)
        normalize (bool, optional): Whether to normalise as in :func:`gcn_edges`. (default:
            :obj:`True`)
        add_self_loops (bool, optional): Whether normalising adds self loops. (default: :obj:`True`)
        flow (str, optional): Over which end of the edges degrees are summed.
            (default: :obj:`"source_to_target"`)
        dtype (torch.dtype, optional): Type of the weights. (default: :obj:`torch.float32`)

    Raises:
        InputError: If ``adj`` is no square adjacency.

    Example:
        >>> edge_index = torch.tensor([[0, 1], [1, 0]])
        >>> adj, weight = propagation_adjacency(edge_index)
        >>> adj.layout, weight.shape
        (torch.strided, torch.Size([4]))
        >>> adj, weight = propagation_adjacency(torch.ones(2, 2).to_sparse())
        >>> adj.layout, weight
        (torch.sparse_csr, None)
    """
    check_adjacency(adj)
    num_nodes = infer_num_nodes(adj, num_nodes)

    edges = partial(_edges, adj, edge_weight, num_nodes, normalize, add_self_loops, flow, dtype)
    key = (num_nodes, normalize, add_self_loops, flow, dtype, edge_weight is None)
    if is_matrix(adj) and _fusable(adj, dtype):
        return _CACHE.get(
            adj, ("adj_t", *key), lambda: in_form_of(adj, *edges(), num_nodes)[0]
        ), None
    if normalize and add_self_loops:
        # Removing the loops that are there waits for the device, so that is remembered too.
        # Without new loops the result would hold ``adj`` itself, and there is no wait.
        return _CACHE.get(adj, ("edges", *key), edges, edge_weight)
    return edges()


def _edges(
    adj: Adjacency,
    edge_weight: Tensor | None,
    num_nodes: int,
    normalize: bool,
    add_self_loops: bool,
    flow: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    if normalize:
        return gcn_edges(
            adj, edge_weight, num_nodes, add_self_loops=add_self_loops, flow=flow, dtype=dtype
        )
    edge_index, weight = to_edge_index(adj, edge_weight)
    return edge_index, None if weight is None else weight.to(dtype)


def in_form_of(
    adj: Adjacency, edge_index: Tensor, weight: Tensor | None, num_nodes: int
) -> tuple[Tensor, Tensor | None]:
    r"""Edges computed from ``adj``, as one CSR matrix if ``adj`` was a matrix.

    They stay edges where the fused product is not available, see :func:`propagation_adjacency`.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): What the edges were computed from.
        edge_index (torch.Tensor): The edges ``[2, E]``.
        weight (torch.Tensor, optional): Their weights ``[E]``.
        num_nodes (int): Number of nodes.

    Example:
        >>> edge_index = torch.tensor([[0], [1]])
        >>> in_form_of(torch.eye(2).to_sparse(), edge_index, torch.ones(1), 2)[0].layout
        torch.sparse_csr
    """
    dtype = torch.get_default_dtype() if weight is None else weight.dtype
    requires_grad = weight is not None and weight.requires_grad
    if not is_matrix(adj) or requires_grad or not _fusable(adj, dtype):
        return edge_index, weight
    graph = CSRGraph.from_edge_index(edge_index, weight, num_nodes, num_nodes)
    return graph.to_torch_csr(dtype), None


def _fusable(adj: Adjacency, dtype: torch.dtype) -> bool:
    requires_grad = adj.requires_grad
    if (requires_grad() if callable(requires_grad) else requires_grad) and torch.is_grad_enabled():
        return False
    is_cuda = adj.is_cuda
    on_gpu = is_cuda() if callable(is_cuda) else is_cuda
    return bool(on_gpu) or dtype in (torch.float32, torch.float64)
