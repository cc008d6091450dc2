"""The normalisation of GCN: PyG's bits, and the same ones in code that torch has compiled."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.conv.gcn_conv import gcn_norm as of_pyg

from torch_geometric_qlr.sparse import gcn_norm

NODES, EDGES = 300, 4000


def edges(seed: int = 0) -> tuple[Tensor, Tensor]:
    """With loops, duplicates, and nodes without an edge."""
    rng = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(0, NODES - 20, (2, EDGES), generator=rng)
    return edge_index, torch.rand(EDGES, generator=rng) + 0.1


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"improved": True}, {"add_self_loops": False}, {"flow": "target_to_source"}],
    ids=["", "improved", "no loops", "turned"],
)
def test_the_bits_are_those_of_pyg(weighted: bool, dtype: Any, options: Any) -> None:
    edge_index, weight = edges()
    given = weight.to(dtype) if weighted else None
    mine = gcn_norm(edge_index, given, NODES, dtype=dtype, **options)
    theirs = of_pyg(edge_index, given, NODES, dtype=dtype, **options)
    assert all(map(torch.equal, mine, theirs)) and mine[1].dtype == dtype


def test_matrices_and_edge_indices_are_normalised_as_by_pyg() -> None:
    edge_index, weight = edges()
    matrix = torch.sparse_coo_tensor(edge_index, weight, (NODES, NODES)).coalesce()
    assert torch.equal(
        gcn_norm(matrix, None, NODES)[0].to_dense(), of_pyg(matrix, None, NODES)[0].to_dense()
    )
    index = EdgeIndex(edge_index, sparse_size=(NODES, NODES))
    assert torch.equal(gcn_norm(index, weight, NODES)[1], of_pyg(index, weight, NODES)[1])


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_bits_are_the_same_in_compiled_code() -> None:
    torch._dynamo.reset()

    def normalised(edge_index: Tensor, weight: Tensor) -> Any:
        return gcn_norm(edge_index, weight, NODES, add_self_loops=False)[1]

    compiled = torch.compile(normalised, dynamic=True, fullgraph=True)
    with torch.no_grad():
        for seed in range(3):
            assert torch.equal(compiled(*edges(seed)), normalised(*edges(seed)))
