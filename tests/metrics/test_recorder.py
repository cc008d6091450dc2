from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch_geometric.nn import GAT, GCN

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.metrics import DepthRecorder, dirichlet_energy, mean_average_distance
from torch_geometric_qlr.nn.models import SMPGNN
from torch_geometric_qlr.nn.propagation import SMP

EDGES = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


def test_states_of_a_propagation() -> None:
    x = torch.randn(3, 4)
    recorder = DepthRecorder()
    _, history = SMP(K=5)(x, EDGES, return_history=True)
    recorder.record(x, EDGES, depth=0)
    for state in history.states:
        recorder.record(state, EDGES)
    table = recorder.to_dict()
    assert table["depth"] == [0, 1, 2, 3, 4, 5]
    for row, state in enumerate([x, *history.states]):
        energy = float(dirichlet_energy(state, EDGES))
        assert table["dirichlet_energy"][row] == pytest.approx(energy)
        assert table["mean_average_distance"][row] == pytest.approx(
            float(mean_average_distance(state, EDGES))
        )
    assert table["dirichlet_energy"][-1] < table["dirichlet_energy"][0]
    assert repr(recorder) == "DepthRecorder(dirichlet_energy, mean_average_distance; 6 recorded)"
    recorder.clear()
    assert recorder.to_dict() == {
        "depth": [],
        "dirichlet_energy": [],
        "mean_average_distance": [],
    }


@pytest.mark.parametrize("model", [GCN(4, 8, 3), GAT(4, 8, 3), SMPGNN(4, 8, 2)])
def test_layers_of_a_model(model: torch.nn.Module) -> None:
    x = torch.randn(3, 4)
    recorder = DepthRecorder({"energy": dirichlet_energy})
    model.eval()
    with recorder.watch(model):
        out = model(x, EDGES)
    model(x, EDGES)  # not watched any more
    expected = 1 if isinstance(model, SMPGNN) else 3
    assert recorder.depths == list(range(1, expected + 1))
    assert recorder.to_dict()["energy"][-1] == pytest.approx(
        float(dirichlet_energy(out, EDGES).detach())
    )


def test_hooks_are_removed_after_an_error() -> None:
    model = GCN(4, 8, 2)
    recorder = DepthRecorder()
    with pytest.raises(ZeroDivisionError), recorder.watch(model):
        raise ZeroDivisionError
    model(torch.randn(3, 4), EDGES)
    assert recorder.depths == []


def test_plot() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    recorder = DepthRecorder()
    for scale in (1.0, 0.5):
        recorder.record(scale * torch.randn(3, 4), EDGES)
    axes = recorder.plot(label="SMP")
    assert [axis.get_ylabel() for axis in axes] == ["dirichlet energy", "mean average distance"]
    assert axes[0].lines[0].get_xdata().tolist() == [1, 2]
    assert recorder.plot(axes, label="APPNP", log=False) is axes
    assert len(axes[0].lines) == 2
    import matplotlib.pyplot as plt

    plt.close("all")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    recorder = DepthRecorder()
    recorder.record(torch.randn(3, 4), EDGES)
    with pytest.raises(ImportError, match="to_dict"):
        recorder.plot()


def test_values_measured_otherwise_are_columns_too() -> None:
    x = torch.randn(3, 4)
    recorder = DepthRecorder({"energy": dirichlet_energy})
    for ratio in (20.0, 10.0):
        recorder.record(x, EDGES, sqnr=torch.tensor(ratio))
    assert recorder.to_dict()["sqnr"] == [20.0, 10.0]
    assert len(recorder.plot()) == 2
    with pytest.raises(InputError, match="sqnr"):
        recorder.record(x, EDGES)
    recorder.clear()
    recorder.record(x, EDGES)
    assert list(recorder.to_dict()) == ["depth", "energy"]
