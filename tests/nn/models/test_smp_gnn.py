from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch_geometric.nn import APPNP, Linear

import torch_geometric_qlr as qlr
from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.nn.models import SMPGNN
from torch_geometric_qlr.nn.propagation import EMP, SMP

EDGES = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [("smp", SMP, {"tau": 0.2}), ("emp", EMP, {"lambda1": 0.1}), ("appnp", APPNP, {})],
)
def test_a_network_then_propagation(name: Any, kind: type, options: dict[str, Any]) -> None:
    model = SMPGNN(4, 8, 3, num_layers=3, K=2, propagation=name, **options).eval()
    assert type(model.propagation) is kind
    assert model.propagation.K == 2
    for key, value in options.items():
        assert getattr(model.propagation, key) == value
    assert [type(lin) for lin in model.lins] == [Linear] * 3
    x = torch.randn(3, 4)
    hidden = model.lins[1](model.lins[0](x).relu()).relu()
    expected = model.propagation(model.lins[2](hidden), EDGES)
    torch.testing.assert_close(model(x, EDGES), expected)
    assert torch.equal(copy.deepcopy(model)(x, EDGES), model(x, EDGES))


def test_smp_and_its_control_share_checkpoints() -> None:
    smp, control = SMPGNN(4, 8, 3), SMPGNN(4, 8, 3, propagation="appnp")
    control.load_state_dict(smp.state_dict())
    assert control.propagation.alpha == smp.propagation.eta


def test_it_trains() -> None:
    torch.manual_seed(0)
    model = SMPGNN(4, 16, 2, K=3, dropout=0.0)
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x, EDGES), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_dropout_reset_and_text() -> None:
    model = SMPGNN(4, 8, 3, dropout=0.5)
    x = torch.randn(3, 4)
    assert not torch.equal(model(x, EDGES), model(x, EDGES))
    model.eval()
    before = model(x, EDGES)
    model.reset_parameters()
    assert not torch.equal(model(x, EDGES), before)
    assert str(model) == (
        "SMPGNN(4, 8, 3, num_layers=2, propagation=SMP(K=10, mu=9.0, eta=0.1, tau=0.001))"
    )


def test_one_layer_and_lazy_input() -> None:
    model = SMPGNN(-1, 8, 3, num_layers=1)
    assert model(torch.randn(3, 5), EDGES).shape == (3, 3)
    assert model.lins[0].in_channels == 5


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigError, match="num_layers"):
        SMPGNN(4, 8, 3, num_layers=0)
    with pytest.raises(ConfigError, match="propagation"):
        SMPGNN(4, 8, 3, propagation="gcn")  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
@pytest.mark.parametrize("bits", [None, 4])
def test_sparse_features_train_as_dense_ones(layout: torch.layout, bits: int | None) -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 40) * (torch.rand(3, 40) < 0.3)
    dense = SMPGNN(40, 8, 3, K=2, dropout=0.0)
    if bits is not None:
        dense = qlr.quantize(dense, bits=bits, truncation="bt*")
    sparse = copy.deepcopy(dense)
    outs = [model(v, EDGES) for model, v in ((dense, x), (sparse, x.to_sparse(layout=layout)))]
    torch.testing.assert_close(outs[1], outs[0])
    for out in outs:
        out.square().sum().backward()
    for own, other in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_dropout_of_sparse_features_is_that_of_dense_ones(layout: torch.layout) -> None:
    torch.manual_seed(0)
    x = torch.ones(200, 50).tril()
    dropped = SMPGNN(50, 8, 3, dropout=0.3)._dropout(x.to_sparse(layout=layout)).to_dense()
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.7]))
    assert float((dropped > 0).sum() / x.sum()) == pytest.approx(0.7, abs=0.02)
    assert not bool((dropped * (x == 0)).any())
