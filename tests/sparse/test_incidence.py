from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.graphs import dense, edge_lists
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.sparse import Incidence, gcn_edges, symmetric_edges


@given(edge_lists(), st.booleans())
def test_its_square_is_the_laplacian(graph: tuple[Tensor, int], add_self_loops: bool) -> None:
    edge_index, num_nodes = graph
    weight = torch.rand(edge_index.size(1), dtype=torch.double) + 0.1
    edges, weight = symmetric_edges(edge_index, weight, num_nodes)
    incidence = Incidence.from_edges(edges, weight, num_nodes, add_self_loops=add_self_loops)
    adjacency = dense(
        *gcn_edges(edges, weight, num_nodes, add_self_loops=add_self_loops), num_nodes
    )
    # A node without any edge has no row and no degree: nothing, not the identity.
    identity = torch.diag((adjacency.sum(dim=0) > 0).double())
    x = torch.eye(num_nodes, dtype=torch.double)
    laplacian = incidence.divergence(incidence.difference(x))
    torch.testing.assert_close(laplacian, identity - adjacency)


@given(edge_lists(), st.integers(0, 4))
def test_divergence_is_the_transpose(graph: tuple[Tensor, int], num_features: int) -> None:
    edge_index, num_nodes = graph
    incidence = Incidence.from_edges(*symmetric_edges(edge_index, None, num_nodes), num_nodes)
    x = torch.randn(num_nodes, num_features)
    z = torch.randn(incidence.num_edges, num_features)
    left = (incidence.difference(x) * z).sum()
    torch.testing.assert_close(left, (x * incidence.divergence(z)).sum(), atol=1e-4, rtol=1e-4)


def test_negative_weights_have_no_root() -> None:
    with pytest.raises(InputError, match="non-negative"):
        Incidence.from_edges(torch.tensor([[0, 1], [1, 0]]), torch.tensor([-1.0, -1.0]), 2)
