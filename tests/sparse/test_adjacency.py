from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.typing import SparseTensor

from tests.helpers.graphs import all_forms, edge_index_object, edge_lists, needs_torch_sparse
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.sparse import (
    adjacency_size,
    gcn_edges,
    infer_num_nodes,
    is_matrix,
    propagation_adjacency,
    symmetric_edges,
    to_edge_index,
    with_values,
)


def _sorted(edge_index: Tensor, weight: Tensor) -> list[tuple[int, int, float]]:
    triples = zip(*edge_index.tolist(), weight.tolist(), strict=True)
    return sorted(triples)


@given(edge_lists(), st.randoms(use_true_random=False))
def test_every_form_gives_the_same_edges(graph: tuple[Tensor, int], random: object) -> None:
    edge_index, num_nodes = graph
    weight = torch.arange(1.0, edge_index.size(1) + 1)
    expected = _sorted(edge_index, weight)
    for name, adj in all_forms(edge_index, weight, num_nodes).items():
        assert is_matrix(adj), name
        assert adjacency_size(adj) == (num_nodes, num_nodes), name
        edges, value = to_edge_index(adj)
        assert edges.dtype == torch.int64, name
        assert value is not None
        assert _sorted(edges, value) == expected, name
    for adj in (edge_index, edge_index_object(edge_index, num_nodes), edge_index.int()):
        edges, value = to_edge_index(adj, weight)
        assert type(edges) is Tensor
        assert value is weight
        assert torch.equal(edges, edge_index)


@needs_torch_sparse
def test_no_weights_are_invented() -> None:
    edge_index = torch.tensor([[0, 1], [1, 1]])
    matrix = SparseTensor(row=edge_index[1], col=edge_index[0], sparse_sizes=(2, 2))
    for adj in (edge_index, edge_index_object(edge_index, 2), matrix):
        assert to_edge_index(adj)[1] is None


def test_gradients_reach_the_weights() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    index = torch.tensor([[0, 1], [1, 0]])
    adj = torch.sparse_coo_tensor(index, values, check_invariants=False).coalesce()
    _, weight = to_edge_index(adj)
    assert weight is not None
    (weight * torch.tensor([3.0, 5.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [3.0, 5.0]


@pytest.mark.parametrize(
    "adj",
    [torch.zeros(3, 3), torch.zeros(2, 4), torch.zeros(4, 2, dtype=torch.long), "edges", None],
)
def test_what_is_no_adjacency_is_refused(adj: object) -> None:
    with pytest.raises(InputError):
        to_edge_index(adj)  # type: ignore[arg-type]


def test_weights_must_fit() -> None:
    edge_index = torch.tensor([[0], [1]])
    with pytest.raises(InputError, match="2 entries for 1 edges"):
        to_edge_index(edge_index, torch.ones(2))
    with pytest.raises(InputError, match="carries its own values"):
        to_edge_index(torch.eye(2).to_sparse(), torch.ones(2))


def test_number_of_nodes() -> None:
    edge_index = torch.tensor([[0, 3], [1, 2]])
    assert infer_num_nodes(edge_index) == 4
    assert infer_num_nodes(edge_index, 9) == 9
    assert infer_num_nodes(EdgeIndex(edge_index, sparse_size=(6, 6))) == 6
    assert infer_num_nodes(torch.empty(2, 0, dtype=torch.long)) == 0
    with pytest.raises(InputError):
        infer_num_nodes(torch.zeros(3, 2).to_sparse())
    with pytest.raises(InputError):
        infer_num_nodes(torch.eye(3).to_sparse(), 4)


@given(edge_lists(), st.booleans())
def test_normalisation_is_the_same_for_every_form(
    graph: tuple[Tensor, int], add_self_loops: bool
) -> None:
    edge_index, num_nodes = graph
    # A loop given twice has no single weight that gcn_norm could keep.
    loops = [tuple(pair) for pair in edge_index.t().tolist() if pair[0] == pair[1]]
    if len(set(loops)) < len(loops):
        edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    weight = torch.arange(1.0, edge_index.size(1) + 1)
    edges, value = gcn_edges(edge_index, weight, num_nodes, add_self_loops=add_self_loops)
    expected = torch.zeros(num_nodes, num_nodes).index_put_((edges[1], edges[0]), value, True)
    for name, adj in all_forms(edge_index, weight, num_nodes).items():
        matrix, rest = propagation_adjacency(adj, None, num_nodes, add_self_loops=add_self_loops)
        assert matrix.layout == torch.sparse_csr and rest is None, name
        assert matrix.values().numel() == value.numel(), name
        edges, value_of_form = to_edge_index(matrix)
        assert value_of_form is not None
        got = torch.zeros_like(expected).index_put_((edges[1], edges[0]), value_of_form, True)
        torch.testing.assert_close(got, expected, msg=name)


def test_matrices_that_need_gradients_become_edges() -> None:
    values = torch.ones(2, requires_grad=True)
    index = torch.tensor([[0, 1], [1, 0]])
    adj = torch.sparse_coo_tensor(index, values, check_invariants=False).coalesce()
    edge_index, weight = propagation_adjacency(adj)
    assert edge_index.layout == torch.strided
    assert weight is not None and weight.requires_grad
    with torch.no_grad():
        assert propagation_adjacency(adj)[0].layout == torch.sparse_csr
    half, weight = propagation_adjacency(torch.eye(2).to_sparse(), dtype=torch.bfloat16)
    assert half.layout == torch.strided
    assert weight is not None and weight.dtype == torch.bfloat16


@given(edge_lists())
def test_symmetric_edges(graph: tuple[Tensor, int]) -> None:
    edge_index, num_nodes = graph
    edges, weight = symmetric_edges(edge_index, None, num_nodes)
    given_pairs = [tuple(pair) for pair in edge_index.t().tolist()]
    got = dict(zip(map(tuple, edges.t().tolist()), weight.tolist(), strict=True))
    assert len(got) == edges.size(1)
    assert set(got) == set(given_pairs) | {pair[::-1] for pair in given_pairs}
    for (i, j), value in got.items():
        counts = [given_pairs.count((i, j)), given_pairs.count((j, i))]
        present = [count for count in counts if count]
        assert value == pytest.approx(sum(present) / len(present))


def test_edges_are_normalised_once_until_they_change() -> None:
    edge_index, weight = torch.tensor([[0, 1], [1, 0]]), torch.ones(2)
    first = propagation_adjacency(edge_index, weight)
    assert propagation_adjacency(edge_index, weight)[1] is first[1]
    weight[0] = 3.0
    _, changed = propagation_adjacency(edge_index, weight)
    assert changed is not None and first[1] is not None
    assert not torch.equal(changed, first[1])
    assert propagation_adjacency(edge_index, None)[1] is not changed
    assert propagation_adjacency(edge_index, weight, 5)[0].size(1) == 2 + 5


@given(edge_lists())
def test_other_values_at_the_same_places(graph: tuple[Tensor, int]) -> None:
    edge_index, num_nodes = graph
    weight = torch.arange(1.0, edge_index.size(1) + 1)
    for name, adj in all_forms(edge_index, weight, num_nodes).items():
        edges, value = to_edge_index(adj)
        assert value is not None
        other = with_values(adj, -value)
        assert type(other) is type(adj) and adjacency_size(other) == adjacency_size(adj), name
        again, turned = to_edge_index(other)
        assert turned is not None
        assert torch.equal(again, edges) and torch.equal(turned, -value), name
