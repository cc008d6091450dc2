"""Pairs of nodes that are near to, or far from, each other."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.sparse import Adjacency, infer_num_nodes, to_edge_index

__all__ = ["sample_pairs"]


def sample_pairs(
    adj: Adjacency,
    hops: int,
    *,
    remote: bool = False,
    num_nodes: int | None = None,
    num_sources: int = 128,
    num_targets: int = 128,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws pairs of different nodes within ``hops`` steps of each other, or farther apart.

    Sources are drawn without replacement, then for each of them targets among the nodes in
    question, with replacement. Memory is that of ``num_sources`` breadth-first searches. With the
    defaults of the `MAD paper <https://arxiv.org/abs/1909.03211>`_ neighbours are ``hops=3``,
    remote nodes ``hops=7, remote=True``.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]`` or a sparse matrix
            ``adj_t``; steps go from source to target.
        hops (int): Number of steps.
        remote (bool, optional): Whether to draw from the nodes that are *not* within ``hops`` steps
            (unreachable ones included). (default: :obj:`False`)
        num_nodes (int, optional): Number of nodes. (default: :obj:`None`)
        num_sources (int, optional): Number of sources. (default: :obj:`128`)
        num_targets (int, optional): Number of targets for each source. (default: :obj:`128`)
        generator (torch.Generator, optional): Where randomness comes from. (default: :obj:`None`)

    Shapes:
        - **output:** pairs :math:`(2, P)`; none for sources without such nodes

    Raises:
        ConfigError: If ``hops`` is less than 1.

    Example:
        >>> path = torch.tensor([[0, 1, 2], [1, 2, 3]])
        >>> pairs = sample_pairs(path, hops=1, num_targets=1)
        >>> sorted(map(tuple, pairs.t().tolist()))
        [(0, 1), (1, 2), (2, 3)]
    """
    if hops < 1:
        raise ConfigError(f"sample_pairs: hops is {hops}; it must be 1 or more.")
    num_nodes = infer_num_nodes(adj, num_nodes)
    edge_index, _ = to_edge_index(adj)
    device = edge_index.device
    order = torch.randperm(num_nodes, generator=generator, device=device)
    sources = order[:num_sources]
    near = _within(edge_index, sources, num_nodes, hops)
    wanted = ~near if remote else near
    wanted[sources, torch.arange(sources.numel(), device=device)] = False
    served = wanted.any(dim=0)  # a source without targets cannot be drawn for
    sources, wanted = sources[served], wanted[:, served]
    if sources.numel() == 0:
        return edge_index.new_empty(2, 0)
    # The k-th of a column's wanted nodes, by binary search in its running count.
    ranks = wanted.long().cumsum(dim=0).t().contiguous()
    draws = torch.rand(sources.numel(), num_targets, generator=generator, device=device)
    rank = (draws * ranks[:, -1:]).long() + 1
    targets = torch.searchsorted(ranks, rank)
    return torch.stack([sources.repeat_interleave(num_targets), targets.flatten()])


def _within(edge_index: Tensor, sources: Tensor, num_nodes: int, hops: int) -> Tensor:
    """Whether a node can be reached from a source within some steps, ``[N, num_sources]``."""
    count = sources.numel()
    reached = torch.zeros(num_nodes, count, dtype=torch.uint8, device=edge_index.device)
    reached[sources, torch.arange(count, device=edge_index.device)] = 1
    source, target = edge_index[0], edge_index[1]
    for _ in range(hops):
        index = target.unsqueeze(-1).expand(-1, count)
        reached = reached.scatter_reduce(0, index, reached[source], reduce="amax")
    return reached.bool()
