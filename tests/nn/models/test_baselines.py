from __future__ import annotations

import pytest
import torch

from examples.benchmarks._baselines import BASELINES, baseline

EDGES = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


@pytest.mark.parametrize("name", sorted(BASELINES))
@pytest.mark.parametrize("depth", [1, 2, 8])
def test_any_depth(name: str, depth: int) -> None:
    model = baseline(name, 4, 8, depth, 3, dropout=0.1)
    x = torch.randn(3, 4)
    out = model(x, EDGES)
    assert out.shape == (3, 3)
    out.sum().backward()
    model.reset_parameters()
    model.eval()
    assert torch.equal(model(x, EDGES), model(x, EDGES))


def test_dropped_edges() -> None:
    model = baseline("dropedge", 4, 8, 2, 3, dropout=0.0, edge_dropout=0.5)
    x = torch.randn(3, 4)
    torch.manual_seed(0)
    assert len({tuple(model(x, EDGES).flatten().tolist()) for _ in range(20)}) > 1
    model.eval()
    torch.testing.assert_close(model(x, EDGES), model.gcn(x, EDGES))


def test_unknown() -> None:
    with pytest.raises(ValueError, match="no baseline"):
        baseline("transformer", 4, 8, 2, 3)
