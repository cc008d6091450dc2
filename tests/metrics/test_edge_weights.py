"""Which weights of edges round to zero, and what that costs, by degree."""

from __future__ import annotations

import math

import pytest
import torch

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.metrics import edge_weight_error
from torch_geometric_qlr.sparse import csr_graph, gcn_edges


def test_buckets() -> None:
    """A star of seven edges with one large weight, a node with two edges, one with one."""
    source = torch.arange(10)
    target = torch.tensor([0] * 7 + [1, 1, 2])
    weight = torch.tensor([100.0, 0.39, 0.39, 0.4, 50, 0.0, -0.1, 1.0, 1.0, 5.0])
    found = edge_weight_error(torch.stack([source, target]), weight, num_nodes=10)
    assert [(b.low, b.high, b.num_nodes, b.num_edges) for b in found] == [
        (1, 1, 1, 1),
        (2, 3, 1, 2),
        (4, 7, 1, 7),
    ]
    # A step is 100 / 127: what is below half of it is lost; the zero was one before.
    assert [b.zeroed for b in found] == [0, 0, pytest.approx(3 / 7)]
    noise = 2 * 0.39**2 + (100 / 127 - 0.4) ** 2 + 0.1**2 + (50 - 64 * 100 / 127) ** 2
    signal = 100**2 + 2 * 0.39**2 + 0.4**2 + 50**2 + 0.1**2
    assert found[2].sqnr == pytest.approx(10 * math.log10(signal / noise), abs=0.01)


def test_of_a_propagation() -> None:
    edges, weight = gcn_edges(torch.randint(0, 40, (2, 300)), num_nodes=50)
    x = torch.randn(50, 8)
    coarse, fine = (edge_weight_error(edges, weight, x, bits=bits) for bits in (4, 8))
    assert sum(b.num_edges for b in fine) == edges.size(1)
    assert sum(b.num_nodes for b in fine) == 50  # each has a loop
    for a, b in zip(coarse, fine, strict=True):
        if not math.isinf(a.sqnr):
            assert 15 < b.sqnr - a.sqnr < 40
    adj = csr_graph(edges, weight, num_src=50, num_dst=50).to_torch_csr()
    assert [b.num_edges for b in edge_weight_error(adj)] == [b.num_edges for b in fine]


def test_without_edges_and_without_weights() -> None:
    none = torch.empty(2, 0, dtype=torch.long)
    assert edge_weight_error(none, torch.empty(0), num_nodes=3) == []
    assert edge_weight_error(none, torch.empty(0), num_nodes=0) == []
    with pytest.raises(InputError, match="no weights"):
        edge_weight_error(torch.tensor([[0], [1]]))
