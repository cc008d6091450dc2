"""Oversmoothing in numbers, over edges and pairs of nodes and never over all pairs at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.expect import expect_matrix
from torch_geometric_qlr.sparse import (
    Adjacency,
    infer_num_nodes,
    inverse_sqrt_degree,
    to_edge_index,
)

__all__ = ["dirichlet_energy", "mean_average_distance", "smoothness_change"]

# Values of edge features held at once; the edges are taken in chunks of so many.
_CHUNK = 2**24


def dirichlet_energy(
    x: Tensor,
    adj: Adjacency,
    edge_weight: Tensor | None = None,
    *,
    add_self_loops: bool = True,
    relative: bool = False,
) -> Tensor:
    r"""The Dirichlet energy from the `"A Note on Over-Smoothing for Graph Neural Networks"
    <https://arxiv.org/abs/2006.13318>`_ paper

    .. math::
        E(\mathbf{X}) = \mathrm{tr} (\mathbf{X}^{\top} \mathbf{L} \mathbf{X}) = \frac{1}{2}
        \sum_{i, j} w_{ij} \left\| \frac{\mathbf{x}_i}{\sqrt{\hat{d}_i}} -
        \frac{\mathbf{x}_j}{\sqrt{\hat{d}_j}} \right\|^2, \quad \mathbf{L} = \mathbf{I} -
        \mathbf{\hat{D}}^{-1/2} (\mathbf{A} + \mathbf{I}) \mathbf{\hat{D}}^{-1/2},

    for a symmetric adjacency. It is summed over edges: the difference of two traces would lose the
    small values that it is there to show.

    Args:
        x (torch.Tensor): Node features ``[N, F]``.
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]`` (both directions) or a
            sparse matrix.
        edge_weight (torch.Tensor, optional): Weights ``[E]`` that belong to plain edges.
            (default: :obj:`None`)
        add_self_loops (bool, optional): Whether degrees count self loops, as in the paper; they
            have no energy of their own. (default: :obj:`True`)
        relative (bool, optional): Whether to divide by :math:`\| \mathbf{X} \|^2`, which gives the
            Rayleigh quotient between 0 and 2 and does not change with the scale of
            :math:`\mathbf{X}`. (default: :obj:`False`)

    Raises:
        InputError: If the adjacency does not fit ``x``.

    Example:
        >>> edge_index = torch.tensor([[0, 1], [1, 0]])
        >>> dirichlet_energy(torch.tensor([[1.0], [-1.0]]), edge_index)
        tensor(2.0000)
        >>> dirichlet_energy(torch.tensor([[1.0], [1.0]]), edge_index)
        tensor(0.)
    """
    expect_matrix(x, "dirichlet_energy: x")
    edge_index, weight = to_edge_index(adj, edge_weight)
    _check_nodes(edge_index, x.size(0), "dirichlet_energy")
    if weight is None:
        weight = x.new_ones(edge_index.size(1))
    num_nodes = infer_num_nodes(adj, x.size(0))
    inv_sqrt = inverse_sqrt_degree(edge_index, weight, num_nodes, add_self_loops=add_self_loops)
    scaled = x * inv_sqrt.to(x.dtype).unsqueeze(-1)
    energy = x.new_zeros((), dtype=torch.float64)
    for part in _chunks(edge_index.size(1), x.size(-1)):
        source, target = edge_index[0, part], edge_index[1, part]
        squares = (scaled[source] - scaled[target]).square().sum(dim=-1, dtype=torch.float64)
        energy = energy + 0.5 * (weight[part] * squares).sum()
    if relative:
        energy = energy / x.square().sum(dtype=torch.float64)
    return energy.to(x.dtype)


def smoothness_change(
    layers: Sequence[Tensor], adj: Adjacency, edge_weight: Tensor | None = None
) -> Tensor:
    r"""What each layer changes, :math:`\mathrm{tr}(\mathbf{G}_k^{\top} \mathbf{L} \mathbf{G}_k)`
    with :math:`\mathbf{G}_k = \mathbf{H}_{k+1} - \mathbf{H}_k`.

    This is what :class:`~torch_geometric_qlr.nn.SMP` bounds, for the layers of any model.

    Args:
        layers (sequence of torch.Tensor): The representations ``[N, F]`` in order of depth.
        adj (torch.Tensor or EdgeIndex or SparseTensor): As in :func:`dirichlet_energy`.
        edge_weight (torch.Tensor, optional): Weights ``[E]`` that belong to plain edges.
            (default: :obj:`None`)

    Shapes:
        - **output:** one value less than there are layers

    Raises:
        InputError: If there are fewer than two layers or their shapes differ.

    Example:
        >>> layers = [torch.zeros(2, 1), torch.tensor([[1.0], [-1.0]]), torch.zeros(2, 1)]
        >>> smoothness_change(layers, torch.tensor([[0, 1], [1, 0]]))
        tensor([2.0000, 2.0000])
    """
    shapes = {tuple(layer.shape) for layer in layers}
    if len(layers) < 2 or len(shapes) != 1:
        raise InputError(
            f"smoothness_change: got {len(layers)} layers of shapes {sorted(shapes)}; it compares "
            "two or more representations of the same shape."
        )
    changes = [after - before for before, after in zip(layers, layers[1:], strict=False)]
    return torch.stack([dirichlet_energy(change, adj, edge_weight) for change in changes])


def mean_average_distance(x: Tensor, pairs: Adjacency | None = None) -> Tensor:
    r"""The mean average distance (MAD) from the `"Measuring and Relieving the Over-smoothing
    Problem for Graph Neural Networks from the Topological View"
    <https://arxiv.org/abs/1909.03211>`_ paper

    .. math::
        \mathrm{MAD} = \frac{1}{|\mathcal{V}_P|} \sum_{i \in \mathcal{V}_P} \frac{1}{|P_i|}
        \sum_{j \in P_i} \left( 1 - \frac{\mathbf{x}_i^{\top} \mathbf{x}_j}{\| \mathbf{x}_i \|
        \| \mathbf{x}_j \|} \right),

    where :math:`P_i` are the nodes paired with :math:`i`, and :math:`\mathcal{V}_P` those nodes
    that are paired at all. Pairs of a node with itself are left out. The paper's matrix of all
    distances is never formed: over all pairs, the average has a closed form in the sum of the
    directions.

    Args:
        x (torch.Tensor): Node features ``[N, F]``.
        pairs (torch.Tensor or EdgeIndex or SparseTensor, optional): The pairs: the edges of the
            graph for neighbours, those of :func:`sample_pairs` for near or remote nodes (the
            difference of both is the paper's MADGap), :obj:`None` for all pairs. (default:
            :obj:`None`)

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
        >>> mean_average_distance(x, torch.tensor([[0, 1], [1, 2]]))
        tensor(0.5000)
        >>> mean_average_distance(x)
        tensor(0.6667)
    """
    expect_matrix(x, "mean_average_distance: x")
    unit = F.normalize(x, dim=-1)
    num_nodes = x.size(0)
    if pairs is None:
        total = unit.sum(dim=0, dtype=torch.float64)
        itself = unit.square().sum(dim=-1, dtype=torch.float64)
        cosine = (unit.double() @ total - itself) / max(num_nodes - 1, 1)
        return (1 - cosine).mean().to(x.dtype) if num_nodes > 1 else x.new_zeros(())
    index, _ = to_edge_index(pairs)
    _check_nodes(index, num_nodes, "mean_average_distance")
    distance = x.new_zeros(num_nodes)
    count = x.new_zeros(num_nodes)
    for part in _chunks(index.size(1), x.size(-1)):
        first, second = index[0, part], index[1, part]
        other = (first != second).to(x.dtype)
        cosine = (unit[first] * unit[second]).sum(dim=-1)
        distance = distance.index_add(0, first, (1 - cosine) * other)
        count = count.index_add(0, first, other)
    paired = (count > 0).to(x.dtype)
    return (distance / count.clamp(min=1)).sum() / paired.sum().clamp(min=1)


def _check_nodes(edge_index: Tensor, num_nodes: int, caller: str) -> None:
    """Refuses edges of nodes that are not there; a GPU, which this would stall, refuses itself."""
    if edge_index.device.type != "cpu" or not edge_index.numel():
        return
    least, most = (int(end) for end in edge_index.aminmax())
    if least < 0 or most >= num_nodes:
        bad = least if least < 0 else most
        raise InputError(
            f"{caller}: an edge has the node {bad}, and x has {num_nodes} rows. Pass the features "
            f"of all nodes."
        )


def _chunks(num_edges: int, num_features: int) -> Iterator[slice]:
    size = max(_CHUNK // max(num_features, 1), 1)
    return (slice(start, start + size) for start in range(0, num_edges, size))
