"""The incidence operator of an undirected graph, by its edges and never as a matrix."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch_geometric.utils import coalesce, to_undirected

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.sparse.adjacency import Adjacency, infer_num_nodes, to_edge_index
from torch_geometric_qlr.sparse.normalize import inverse_sqrt_degree

__all__ = ["Incidence", "symmetric_edges"]


def symmetric_edges(
    adj: Adjacency, edge_weight: Tensor | None = None, num_nodes: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Edges and weights of the undirected graph behind any adjacency, each edge in both
    directions.

    Duplicates of a directed edge add up; then an edge gets the mean weight of the directions it was
    given in. For a symmetric adjacency without duplicates nothing changes but the order.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]`` or a sparse matrix
            ``adj_t``.
        edge_weight (torch.Tensor, optional): Weights ``[E]`` that belong to plain edges.
            (default: :obj:`None`)
        num_nodes (int, optional): Number of nodes. (default: :obj:`None`)

    Raises:
        InputError: If ``adj`` is no square adjacency.

    Example:
        >>> symmetric_edges(torch.tensor([[0, 0, 2], [1, 1, 2]]))
        (tensor([[0, 1, 2],
                [1, 0, 2]]), tensor([2., 2., 1.]))
    """
    num_nodes = infer_num_nodes(adj, num_nodes)
    edge_index, weight = to_edge_index(adj, edge_weight)
    if weight is None:
        weight = torch.ones(edge_index.size(1), device=edge_index.device)
    edge_index, weight = coalesce(edge_index, weight, num_nodes, reduce="sum")
    edge_index, weight = to_undirected(edge_index, weight, num_nodes, reduce="mean")
    return edge_index, weight


@dataclasses.dataclass(frozen=True, eq=False)
class Incidence:
    r"""The degree-normalised incidence operator of an undirected graph

    .. math::
        (\mathbf{\Delta} \mathbf{H})_e = \sqrt{w_e} \left( \frac{\mathbf{h}_i}{\sqrt{d_i}}
        - \frac{\mathbf{h}_j}{\sqrt{d_j}} \right), \quad e = \{i, j\},

    for which :math:`\mathbf{\Delta}^{\top} \mathbf{\Delta} = \mathbf{I} - \mathbf{\tilde{A}}`
    where every node has a degree. Self loops have no row (theirs would be zero).

    Args:
        head (torch.Tensor): One end of each undirected edge, ``[M]``.
        tail (torch.Tensor): The other end, ``[M]``.
        head_scale (torch.Tensor): :math:`\sqrt{w_e / d_i}`, ``[M]``.
        tail_scale (torch.Tensor): :math:`\sqrt{w_e / d_j}`, ``[M]``.
        num_nodes (int): Number of nodes.

    Example:
        >>> graph = Incidence.from_edges(*symmetric_edges(torch.tensor([[0], [1]])), num_nodes=2)
        >>> graph.difference(torch.tensor([[3.0], [1.0]]))
        tensor([[2.]])
    """

    head: Tensor
    tail: Tensor
    head_scale: Tensor
    tail_scale: Tensor
    num_nodes: int

    @classmethod
    def from_edges(
        cls, edge_index: Tensor, weight: Tensor, num_nodes: int, *, add_self_loops: bool = False
    ) -> Incidence:
        r"""Builds the operator from the edges of :func:`symmetric_edges`.

        Args:
            edge_index (torch.Tensor): Symmetric, coalesced edges ``[2, E]``.
            weight (torch.Tensor): Non-negative weights ``[E]``.
            num_nodes (int): Number of nodes.
            add_self_loops (bool, optional): Whether degrees count a self loop of weight one at
                nodes without one. (default: :obj:`False`)

        Raises:
            InputError: If a weight is negative, which has no square root.
        """
        if not torch.compiler.is_compiling() and bool((weight < 0).any()):
            raise InputError(
                "The incidence operator needs non-negative edge weights. Drop the negative edges, "
                "or use a propagation without an elastic term (SMP, APPNP)."
            )
        head, tail = edge_index[0], edge_index[1]
        inv_sqrt = inverse_sqrt_degree(edge_index, weight, num_nodes, add_self_loops=add_self_loops)
        once = head < tail  # one row for both directions, none for a loop
        head, tail, root = head[once], tail[once], weight[once].sqrt()
        return cls(head, tail, root * inv_sqrt[head], root * inv_sqrt[tail], num_nodes)

    @property
    def num_edges(self) -> int:
        r"""Number of undirected edges."""
        return self.head.size(0)

    def difference(self, x: Tensor) -> Tensor:
        r""":math:`\mathbf{\Delta} \mathbf{X}`, the scaled difference along each edge, ``[M, F]``.

        Args:
            x (torch.Tensor): Node features ``[N, F]``.
        """
        return x.index_select(0, self.head) * self.head_scale.unsqueeze(-1) - x.index_select(
            0, self.tail
        ) * self.tail_scale.unsqueeze(-1)

    def divergence(self, z: Tensor) -> Tensor:
        r""":math:`\mathbf{\Delta}^{\top} \mathbf{Z}`, the transposed operator, ``[N, F]``.

        Args:
            z (torch.Tensor): Edge features ``[M, F]``.
        """
        out = z.new_zeros(self.num_nodes, z.size(-1))
        out = out.index_add(0, self.head, z * self.head_scale.unsqueeze(-1))
        return out.index_add(0, self.tail, z * self.tail_scale.unsqueeze(-1), alpha=-1)
