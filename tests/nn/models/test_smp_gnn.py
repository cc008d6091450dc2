from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch_geometric.nn import APPNP, Linear

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
