from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.typing import SparseTensor

from tests.helpers.graphs import (
    SPARSE_TENSOR,
    all_forms,
    dense,
    edge_index_object,
    edge_lists,
    needs_torch_sparse,
)
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.sparse import CSRGraph, csr_graph, propagation_adjacency


def _check(graph: CSRGraph, edge_index: Tensor, weight: Tensor | None) -> None:
    """Every edge is there once, under its target, in its old order."""
    assert graph.rowptr.dtype == torch.int64 and graph.col.dtype == torch.int32
    assert graph.rowptr.numel() == graph.num_dst + 1
    for target in range(graph.num_dst):
        begin, end = graph.rowptr[target : target + 2].tolist()
        expected = (edge_index[1] == target).nonzero().flatten()
        assert graph.perm[begin:end].tolist() == expected.tolist()
        assert graph.col[begin:end].tolist() == edge_index[0][expected].tolist()
        if weight is not None:
            assert graph.value is not None
            assert graph.value[begin:end].tolist() == weight[expected].tolist()
    assert sorted(graph.perm.tolist()) == list(range(edge_index.size(1)))


@given(edge_lists(), st.integers(0, 3), st.integers(0, 3))
def test_edges_sorted_by_target(graph: tuple[Tensor, int], more_src: int, more_dst: int) -> None:
    edge_index, num_nodes = graph
    weight = torch.rand(edge_index.size(1))
    num_src, num_dst = num_nodes + more_src, num_nodes + more_dst
    csr = csr_graph(edge_index, weight, num_src=num_src, num_dst=num_dst)
    assert (csr.num_src, csr.num_dst, csr.num_edges) == (num_src, num_dst, weight.numel())
    _check(csr, edge_index, weight)
    assert torch.equal(csr.edge_index(), edge_index[:, csr.perm])
    assert csr.degree().tolist() == torch.bincount(edge_index[1], minlength=num_dst).tolist()
    turned = csr.transpose()
    # Its edges come in the order of ``csr``, so that is the list to hold it against.
    assert csr.value is not None
    local = torch.empty_like(csr.perm)
    local[csr.perm] = torch.arange(csr.num_edges, dtype=local.dtype)
    turned_local = dataclasses.replace(turned, perm=local[turned.perm])
    _check(turned_local, csr.edge_index().flip(0), csr.value)
    assert torch.equal(turned.edge_index().flip(0), edge_index[:, turned.perm])
    again = csr.with_weight(2 * weight)
    assert again.value is not None and csr.value is not None
    assert torch.equal(again.value, 2 * csr.value)
    assert torch.equal(csr.to("cpu").col, csr.col)


@given(edge_lists())
def test_every_form_and_the_matrix_of_each(graph: tuple[Tensor, int]) -> None:
    edge_index, num_nodes = graph
    weight = torch.arange(1.0, edge_index.size(1) + 1)
    expected = dense(edge_index, weight, num_nodes)
    forms = all_forms(edge_index, weight, num_nodes)
    for name, adj in forms.items():
        csr = csr_graph(adj)
        assert csr.num_edges == weight.numel(), name
        torch.testing.assert_close(csr.to_torch_csr().to_dense(), expected, msg=name)
    csr = csr_graph(edge_index_object(edge_index, num_nodes), weight)
    torch.testing.assert_close(csr.to_torch_csr(torch.double).to_dense(), expected.double())
    ones = csr_graph(edge_index, num_src=num_nodes, num_dst=num_nodes).to_torch_csr()
    torch.testing.assert_close(
        ones.to_dense(), dense(edge_index, torch.ones_like(weight), num_nodes)
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_that_are_compressed_are_taken_as_they_are(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CSRGraph, "from_edge_index", None)  # which sorts
    rowptr, col = torch.tensor([0, 2, 2, 3], dtype=dtype), torch.tensor([1, 0, 0], dtype=dtype)
    value = torch.tensor([1.0, 2.0, 3.0])
    graph = csr_graph(torch.sparse_csr_tensor(rowptr, col, value, size=(3, 2)))
    assert graph.perm is None and (graph.num_dst, graph.num_src) == (3, 2)
    assert graph.value is not None and graph.value.data_ptr() == value.data_ptr()
    assert (graph.col.data_ptr() == col.data_ptr()) == (dtype == torch.int32)
    assert graph.col.dtype == torch.int32 and graph.rowptr.dtype == torch.int64
    assert torch.equal(graph.in_order(value), value)
    again = graph.with_weight(2 * value)
    assert again.value is not None and again.value.tolist() == [2.0, 4.0, 6.0]
    monkeypatch.undo()
    turned = graph.transpose()
    assert torch.equal(turned.edge_index(), graph.edge_index()[:, turned.perm].flip(0))
    bad = torch.tensor([1, 0, 7], dtype=dtype)
    with pytest.raises(InputError, match=r"source nodes from 0 to 7, but there are 2"):
        csr_graph(torch.sparse_csr_tensor(rowptr, bad, value, size=(3, 2), check_invariants=False))


@needs_torch_sparse
def test_a_sparse_tensor_is_not_sorted_either(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = SparseTensor(row=torch.tensor([1, 0]), col=torch.tensor([0, 1]))
    monkeypatch.setattr(CSRGraph, "from_edge_index", None)
    graph = csr_graph(matrix)
    assert graph.value is None and graph.col.tolist() == [1, 0]


def test_bipartite_and_inferred_sizes() -> None:
    edge_index = torch.tensor([[0, 4], [1, 0]])
    assert (csr_graph(edge_index).num_src, csr_graph(edge_index).num_dst) == (5, 5)
    graph = csr_graph(edge_index, num_src=5, num_dst=2)
    assert graph.to_torch_csr().shape == (2, 5)
    graph = csr_graph(EdgeIndex(edge_index, sparse_size=(6, 3)))
    assert (graph.num_src, graph.num_dst) == (6, 3)
    graph = csr_graph(torch.empty(2, 0, dtype=torch.long), num_src=0, num_dst=0)
    assert graph.rowptr.tolist() == [0] and graph.num_edges == 0


@pytest.mark.parametrize("edges", [[[0, -1], [1, 0]], [[0, 5], [1, 0]], [[0, 1], [1, 5]]])
def test_edges_out_of_range(edges: list[list[int]]) -> None:
    with pytest.raises(InputError, match="nodes from"):
        csr_graph(torch.tensor(edges), num_src=3, num_dst=3)


def test_sizes_that_contradict_a_matrix() -> None:
    with pytest.raises(InputError, match="num_src is 4"):
        csr_graph(torch.eye(3).to_sparse(), num_src=4)


def test_built_once_until_changed_in_place() -> None:
    edge_index, weight = torch.tensor([[0, 1], [1, 0]]), torch.ones(2)
    first = csr_graph(edge_index, weight)
    assert csr_graph(edge_index, weight) is first
    assert csr_graph(edge_index, weight.clone()) is not first
    first = csr_graph(edge_index, weight)
    weight.mul_(2)
    second = csr_graph(edge_index, weight)
    assert second.value is not None and second.value.tolist() == [2.0, 2.0]
    edge_index[1, 0] = 0
    assert csr_graph(edge_index, weight).degree().tolist() == [2, 0]


@pytest.mark.parametrize("form", ["coo", "csr", "csc", SPARSE_TENSOR])
def test_matrices_are_watched_too(form: str) -> None:
    edge_index, num_nodes = torch.tensor([[0, 1], [1, 0]]), 2
    adj = all_forms(edge_index, torch.ones(2), num_nodes)[form]
    first = csr_graph(adj)
    assert csr_graph(adj) is first
    values = {
        "coo": lambda: adj._values(),
        "SparseTensor": lambda: adj.storage.value(),
    }.get(form, lambda: adj.values())
    values().mul_(3)
    value = csr_graph(adj).value
    assert value is not None and value.tolist() == [3.0, 3.0]


def test_edge_index_objects_are_watched_through_their_tensor() -> None:
    adj = edge_index_object(torch.tensor([[0, 1], [1, 0]]), 2)
    first = csr_graph(adj)
    assert csr_graph(adj) is first
    adj.as_tensor()[1, 0] = 0
    assert csr_graph(adj).degree().tolist() == [2, 0]


@pytest.mark.parametrize("form", ["edges", "EdgeIndex", "coo", "csr", "csc", SPARSE_TENSOR])
def test_the_cache_keeps_no_graph_alive(form: str) -> None:
    edge_index = torch.tensor([[0, 1], [1, 0]])
    forms = all_forms(edge_index, torch.ones(2), 2)
    forms["EdgeIndex"] = edge_index_object(edge_index, 2)
    adj = edge_index.clone() if form == "edges" else forms[form]
    del forms
    csr_graph(adj)
    propagation_adjacency(adj)
    reference = weakref.ref(adj)
    del adj
    gc.collect()
    assert reference() is None


@needs_torch_sparse
def test_weights_that_need_gradients_are_only_rearranged() -> None:
    edge_index = torch.tensor([[0, 1, 0], [1, 0, 0]])
    weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    graph = csr_graph(edge_index, weight)
    assert graph.value is not None
    (graph.value * torch.tensor([5.0, 7.0, 11.0])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [11.0, 5.0, 7.0]
    assert csr_graph(edge_index, weight).col is graph.col
    matrix = SparseTensor(row=edge_index[1], col=edge_index[0], value=weight.clone())
    value = csr_graph(matrix).value
    assert value is not None and value.requires_grad


def test_inference_tensors_have_no_version_and_are_not_remembered() -> None:
    with torch.inference_mode():
        edge_index = torch.tensor([[0, 1], [1, 0]])
        assert csr_graph(edge_index) is not csr_graph(edge_index)
