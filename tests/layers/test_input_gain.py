"""The gain of weak features: training does not depend on their scale, and nothing else changes."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCN, GIN, GraphSAGE
from torch_geometric.nn.models.basic_gnn import BasicGNN

import torch_geometric_qlr as qlr

NODES, FEATURES, CLASSES = 60, 48, 3


def graph(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Bags of words of three topics with rows of norm ``scale``, edges mostly within a topic."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(NODES) % CLASSES
    words = torch.rand(NODES, FEATURES, generator=rng)
    topic = torch.arange(FEATURES) % CLASSES == y.view(-1, 1)
    x = (words > torch.where(topic, 0.6, 0.95)).float()
    x = scale * F.normalize(x, dim=1)
    pairs = torch.randint(NODES, (2, 6 * NODES), generator=rng)
    same = y[pairs[0]] == y[pairs[1]]
    return x, pairs[:, same | (torch.rand(len(same), generator=rng) < 0.1)], y


def build(cls: type[BasicGNN] = GCN, **config: Any) -> Any:
    torch.manual_seed(0)
    return qlr.quantize(cls(FEATURES, 16, 2, CLASSES), **{"bits": 2, **config})


def gain_of(model: nn.Module) -> dict[str, float]:
    found = {n: float(b) for n, b in model.named_buffers() if n.endswith("input_gain")}
    return {name.removesuffix("._qlr.input_gain"): gain for name, gain in found.items()}


def train(model: nn.Module, x: Tensor, edges: Tensor, y: Tensor, steps: int) -> float:
    """The README's loop; the mean loss of the last ten steps."""
    weights, ranges = list(qlr.weight_parameters(model)), list(qlr.quant_parameters(model))
    optimizer = torch.optim.Adam(
        [{"params": weights, "weight_decay": 5e-4}, {"params": ranges}], lr=0.01
    )
    losses = []
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x, edges), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


@pytest.mark.parametrize("cls", [GCN, GraphSAGE, GIN])
def test_the_layers_that_meet_the_features_have_one(cls: type[BasicGNN]) -> None:
    model = build(cls)
    branches = {GCN: ["lin"], GraphSAGE: ["lin_l", "lin_r"], GIN: ["nn.lins.0"]}[cls]
    assert list(gain_of(model)) == [f"convs.0.{name}" for name in branches]
    assert gain_of(qlr.quantize(cls(8, 8, 2, 2), bits=2, input_gain=False)) == {}
    assert gain_of(qlr.quantize(cls(8, 8, 2, 2), preset="paper", bits=2)) == {}


@pytest.mark.parametrize("layout", ["dense", "csr", "coo", "csc"])
@pytest.mark.parametrize(("norm", "gain"), [(1.0, 1.0), (40.0, 1.0), (0.26, 4.0), (0.02, 64.0)])
def test_what_it_is(norm: float, gain: float, layout: str) -> None:
    x, edges, _ = graph(norm)
    x[::7] = 0.0  # rows without a word do not count
    if layout != "dense":
        x = getattr(x, f"to_sparse_{layout}")()
    model = build().train()
    before = model.convs[0].lin.weight.detach().clone()
    model(x, edges)
    assert gain_of(model) == {"convs.0.lin": gain}
    assert torch.equal(model.convs[0].lin.weight * gain, before)
    model(x * 3 if layout == "dense" else x, edges)
    assert gain_of(model) == {"convs.0.lin": gain}  # once


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_model_computes_what_it_did(bits: int) -> None:
    x, edges, _ = graph(0.1)
    plain, model = build(bits=bits, input_gain=False), build(bits=bits)
    assert torch.equal(model.train()(x, edges), plain.train()(x, edges))
    assert gain_of(model) == {"convs.0.lin": 8.0}
    with torch.no_grad():
        expected = plain.eval()(x, edges)
        assert torch.equal(model.eval()(x, edges), expected)
        assert torch.equal(qlr.convert(model)(x, edges), expected)
        assert torch.equal(copy.deepcopy(model)(x, edges), expected)


def test_weak_features_are_learned_from() -> None:
    x, edges, y = graph(0.01)
    assert train(build(), x, edges, y, 60) < 0.5
    assert train(build(input_gain=False), x, edges, y, 60) > 1.0


def test_states() -> None:
    x, edges, y = graph(0.1)
    model = build()
    train(model, x, edges, y, 3)
    with torch.no_grad():
        expected = model.eval()(x, edges)
    state = model.state_dict()
    other = build()
    other.load_state_dict(state)
    assert gain_of(other) == gain_of(model)
    with torch.no_grad():
        assert torch.equal(other.eval()(x, edges), expected)
    # A state older than gains holds whole weights, and so does a float checkpoint.
    older = dict(state)
    gain = older.pop("convs.0.lin._qlr.input_gain")
    older["convs.0.lin.weight"] = gain * older["convs.0.lin.weight"]
    other.load_state_dict(older)
    assert gain_of(other) == {"convs.0.lin": 1.0}
    with torch.no_grad():
        assert torch.equal(other.eval()(x, edges), expected)
    with pytest.warns(qlr.errors.QLRWarning, match="comes from a float model"):
        other.load_state_dict(GCN(FEATURES, 16, 2, CLASSES).state_dict())
    assert gain_of(other) == {"convs.0.lin": -1.0}
    other.train()(x, edges)
    assert gain_of(other) == {"convs.0.lin": 8.0}
    other.convs[0].reset_parameters()
    assert gain_of(other) == {"convs.0.lin": -1.0}


def test_files() -> None:
    x, edges, y = graph(0.1)
    model = build()
    train(model, x, edges, y, 3)
    with torch.no_grad():
        expected = model.eval()(x, edges)
    for made in (model, qlr.convert(model)):
        file = io.BytesIO()
        qlr.save(made, file)
        file.seek(0)
        loaded = qlr.load(file, GCN(FEATURES, 16, 2, CLASSES))
        assert gain_of(loaded) == gain_of(made)
        with torch.no_grad():
            assert torch.equal(loaded.eval()(x, edges), expected)


def test_averages_of_models() -> None:
    x, edges, y = graph(0.1)
    model = build()
    mean = torch.optim.swa_utils.AveragedModel(model)
    train(model, x, edges, y, 3)
    mean.update_parameters(model)
    with torch.no_grad():
        assert torch.equal(mean.eval()(x, edges), model.eval()(x, edges))


def test_compiled_training_breaks_no_graph() -> None:
    x, edges, _ = graph(0.1)
    model = build().train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x, edges), build().train()(x, edges), atol=1e-5)
    assert gain_of(model) == {"convs.0.lin": -1.0}  # left to a step that is not compiled
    model(x, edges)
    assert gain_of(model) == {"convs.0.lin": 8.0}


class Tied(nn.Module):
    """Multiplies by one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(FEATURES, 8), nn.Linear(FEATURES, 8, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x) @ self.decode.weight


def test_who_has_none() -> None:
    x, _, _ = graph(0.1)
    assert gain_of(qlr.quantize(Tied(), bits=4)) == {}
    assert gain_of(qlr.quantize(nn.Linear(FEATURES, 8), bits=4)) == {}  # no model: no features
    model = qlr.quantize(nn.Sequential(nn.Linear(FEATURES, 8), nn.Linear(8, 2)), bits=4)
    assert gain_of(model) == {"0": -1.0}
    with torch.no_grad():  # batch statistics of a trained model, say
        model.train()(x)
    model.eval()(x)
    model.train()(torch.zeros(3, FEATURES))
    model[0].weight.requires_grad_(False)
    model.train()(x)
    assert gain_of(model) == {"0": -1.0}
    model[0].weight.requires_grad_(True)
    with pytest.raises(qlr.errors.InputError, match="NaN"):
        model(torch.full((2, FEATURES), torch.nan))
    assert gain_of(model) == {"0": -1.0}
    model(x)
    assert gain_of(model) == {"0": 8.0}


def test_a_weight_that_stays_wide() -> None:
    x, _, _ = graph(0.1)
    float_model = nn.Sequential(nn.Linear(FEATURES, 8), nn.Linear(8, 2))
    model = qlr.quantize(float_model, bits=8, weight_bits=32)
    out = model.train()(x)
    assert gain_of(model) == {"0": 8.0}
    with torch.no_grad():
        expected = model.eval()(x)
        assert torch.allclose(expected, out, atol=1e-6)
        with pytest.warns(qlr.errors.QLRWarning, match="its weight stays in floating point"):
            packed = qlr.convert(model)
        assert torch.equal(packed(x), expected)
