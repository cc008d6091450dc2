"""Graphs for the tests: any number of nodes and edges, with loops, duplicates, hubs, isolated
nodes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.typing import WITH_TORCH_SPARSE, SparseTensor

from tests.helpers.optional import needs_torch_sparse
from torch_geometric_qlr.sparse import Adjacency, CSRGraph

#: The form of an adjacency that torch-sparse brings, as a parameter of a test.
SPARSE_TENSOR = pytest.param("SparseTensor", marks=needs_torch_sparse)


@st.composite
def edge_lists(
    draw: st.DrawFn, max_nodes: int = 8, max_edges: int = 24, loops: bool = True
) -> tuple[Tensor, int]:
    num_nodes = draw(st.integers(1, max_nodes))
    nodes = st.integers(0, num_nodes - 1)
    hub = draw(st.integers(0, num_nodes - 1))
    pairs = draw(st.lists(st.tuples(nodes, nodes | st.just(hub)), max_size=max_edges))
    if not loops:
        pairs = [pair for pair in pairs if pair[0] != pair[1]]
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).t().contiguous(), num_nodes


def undirected(edge_index: Tensor) -> Tensor:
    """Both directions of every edge, without duplicates and loops."""
    pairs = {tuple(sorted(pair)) for pair in edge_index.t().tolist() if pair[0] != pair[1]}
    both = sorted(pairs) + sorted(pair[::-1] for pair in pairs)
    return torch.tensor(both, dtype=torch.long).reshape(-1, 2).t().contiguous()


def all_forms(edge_index: Tensor, weight: Tensor, num_nodes: int) -> dict[str, Adjacency]:
    """One weighted graph in every form that carries its weights."""
    source, target = edge_index
    size = (num_nodes, num_nodes)
    coo = torch.sparse_coo_tensor(
        edge_index.flip(0), weight, size, check_invariants=False, is_coalesced=False
    )
    csr = CSRGraph.from_edge_index(edge_index, weight, num_nodes, num_nodes).to_torch_csr()
    by_source = CSRGraph.from_edge_index(edge_index.flip(0), weight, num_nodes, num_nodes)
    csc = torch.sparse_csc_tensor(
        by_source.rowptr.to(by_source.col.dtype),
        by_source.col,
        by_source.value,
        size=size,
        check_invariants=False,
    )
    forms: dict[str, Adjacency] = {"coo": coo, "csr": csr, "csc": csc}
    if WITH_TORCH_SPARSE:
        forms["SparseTensor"] = SparseTensor(
            row=target, col=source, value=weight, sparse_sizes=size
        )
    return forms


def edge_index_object(edge_index: Tensor, num_nodes: int) -> EdgeIndex:
    return EdgeIndex(edge_index, sparse_size=(num_nodes, num_nodes))


def dense(edge_index: Tensor, weight: Tensor, num_nodes: int) -> Tensor:
    """The transposed adjacency, row = target, duplicates added up."""
    out = torch.zeros(num_nodes, num_nodes, dtype=weight.dtype)
    for (source, target), value in zip(edge_index.t().tolist(), weight, strict=True):
        out[target, source] += value
    return out
