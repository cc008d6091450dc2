from __future__ import annotations

import pytest
import torch
from torch_geometric.nn import GAT, GCN

import torch_geometric_qlr as qlr
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.metrics import layer_sqnr, sqnr

EDGES = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


@pytest.mark.parametrize("kind", [GCN, GAT])
def test_the_error_of_each_layer(kind: type[GCN]) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(3, 4), kind(4, 8, num_layers=3).eval()
    found = {
        bits: layer_sqnr(model, qlr.quantize(model, bits=bits).eval(), x, EDGES) for bits in (2, 8)
    }
    assert list(found[8]) == ["convs.0", "convs.1", "convs.2"]
    for name in found[8]:
        assert found[8][name] > found[2][name] + 10
    rounded = qlr.quantize(model, bits=2).eval()
    torch.testing.assert_close(found[2]["convs.2"], sqnr(model(x, EDGES), rounded(x, EDGES)))
    assert not any(layer._forward_hooks for layer in model.modules())


def test_twins_must_have_the_same_layers() -> None:
    with pytest.raises(InputError, match="different layers"):
        layer_sqnr(GCN(4, 8, 2), GCN(4, 8, 3), torch.randn(3, 4), EDGES)
