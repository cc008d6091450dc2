"""Seeded graphs in the shape of well-known ones: a power law of degrees, and communities.

Kernels see a graph only through its degrees and the locality of its indices; a generated one has
both, needs no download, and is the same everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CSR", "SHAPES", "generate"]


class CSR(NamedTuple):
    """A symmetric graph without self loops: int64 offsets, int32 columns, sorted in each row."""

    rowptr: Tensor
    col: Tensor

    @property
    def num_nodes(self) -> int:
        return self.rowptr.numel() - 1

    @property
    def num_edges(self) -> int:
        return self.col.numel()

    def first(self, rows: int) -> CSR:
        """The edges of the first rows."""
        return CSR(self.rowptr[: rows + 1], self.col[: int(self.rowptr[rows])])

    def edge_index(self) -> Tensor:
        """The same edges as [2, E], source first."""
        nodes = torch.arange(self.num_nodes, device=self.col.device)
        target = nodes.repeat_interleave(self.rowptr.diff())
        return torch.stack([self.col.long(), target])


class Shape(NamedTuple):
    nodes: int
    undirected_edges: int
    communities: int
    inside: float  # probability that an edge stays in its community
    exponent: float  # of the power law of degrees
    largest: float  # degree, as a share of the nodes
    seed: int


SHAPES = {
    "cora": Shape(2708, 5278, 7, 0.81, 1.7, 0.06, 1),
    "pubmed": Shape(19717, 44324, 3, 0.80, 1.6, 0.01, 2),
    "arxiv": Shape(169343, 1157799, 40, 0.65, 1.5, 0.08, 3),
    "reddit": Shape(232965, 11500000, 50, 0.75, 1.4, 0.02, 4),
}


def generate(name: str, *, shuffled: bool = True) -> CSR:
    """The graph of a name in :obj:`SHAPES`.

    Args:
        name (str): Which shape.
        shuffled (bool): Number the nodes at random; otherwise community by community, which is
            kinder to the cache.
    """
    shape = SHAPES[name]
    rng = torch.Generator().manual_seed(shape.seed)
    uniform = torch.rand(shape.nodes, generator=rng, dtype=torch.float64)
    degree = (1 - uniform).pow(-1 / shape.exponent).clamp_(max=shape.largest * shape.nodes)
    degree *= 2 * shape.undirected_edges / degree.sum()
    sizes = torch.arange(1, shape.communities + 1, dtype=torch.float64).pow(-0.7)
    community = torch.multinomial(sizes, shape.nodes, True, generator=rng).sort().values
    stubs = (degree + torch.rand(shape.nodes, generator=rng)).floor_().long().clamp_(min=1)
    pool = torch.arange(shape.nodes).repeat_interleave(stubs)
    edges = _pair(shape, pool, community, rng)
    if shuffled:
        edges = torch.randperm(shape.nodes, generator=rng)[edges]
    return _to_csr(edges, shape.nodes)


def _pair(shape: Shape, pool: Tensor, community: Tensor, rng: torch.Generator) -> Tensor:
    """Joins stubs at random, most of them within their community."""
    count = int(shape.undirected_edges * 1.06)  # some coincide and are merged later
    source = pool[torch.randint(pool.numel(), (count,), generator=rng)]
    bounds = torch.searchsorted(community[pool], torch.arange(shape.communities + 1))
    begin, end = bounds[community[source]], bounds[community[source] + 1]
    share = torch.rand(count, generator=rng, dtype=torch.float64)
    inside = torch.rand(count, generator=rng) < shape.inside
    near = begin + (share * (end - begin)).long()
    far = (share * pool.numel()).long()
    target = pool[torch.where(inside, near, far).clamp_(max=pool.numel() - 1)]
    keep = source != target
    return torch.stack([source[keep], target[keep]])


def _to_csr(edges: Tensor, num_nodes: int) -> CSR:
    """Both directions of every edge, once."""
    key = torch.cat([edges[0] * num_nodes + edges[1], edges[1] * num_nodes + edges[0]]).unique()
    rows = key.div(num_nodes, rounding_mode="floor")
    rowptr = torch.zeros(num_nodes + 1, dtype=torch.long)
    rowptr[1:] = rows.bincount(minlength=num_nodes).cumsum(0)
    return CSR(rowptr, (key % num_nodes).int())
