"""What a report says of rounding in a quantized model."""

from __future__ import annotations

import copy
import json
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GAT, GCN, MLP, EdgeConv, GraphSAGE

import torch_geometric_qlr as qlr
from tests.helpers.predict import Predict
from torch_geometric_qlr.errors import (
    AlreadyQuantizedError,
    ConfigError,
    NothingToQuantizeError,
)
from torch_geometric_qlr.transforms import PointReport, QuantizationReport

FEATURES, NODES = 12, 40


class Alone(nn.Module):
    """A model whose Linear does not see more than nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP([FEATURES, 8, 3])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.mlp(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gcn": lambda: GCN(FEATURES, 8, 2, 3),
    "sage": lambda: GraphSAGE(FEATURES, 8, 2, 3),
    "gat": lambda: GAT(FEATURES, 8, 2, 3, heads=2),
    "edge": lambda: EdgeConv(MLP([2 * FEATURES, 8, 3], norm=None)),
    "appnp": lambda: Predict(APPNP(K=3, alpha=0.1), FEATURES, 5),  # each hop has a range
    "mlp": Alone,
}


def case(name: str, **config: Any) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """A float model, the quantized one with ranges, and an input: edges at random, with isolated
    nodes."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    data = torch.randn(NODES, FEATURES), torch.randint(NODES - 5, (2, 120))
    quantized = qlr.quantize(model, **{"bits": 4, **config})
    qlr.calibrate(quantized, data, progress=False)
    return model, quantized, data


def measured(model: nn.Module, *inputs: Any) -> QuantizationReport:
    report = qlr.report(model, *inputs)
    assert isinstance(report, QuantizationReport)
    return report


def point_of(report: QuantizationReport, module: str, point: str) -> PointReport:
    (found,) = (p for p in report.points if (p.module, p.point) == (module, point))
    return found


@pytest.mark.parametrize("truncation", [None, "bt*"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_it_says_what_the_model_does(name: str, truncation: str | None) -> None:
    model, quantized, data = case(name, truncation=truncation)
    before = copy.deepcopy(quantized.state_dict())
    report = measured(quantized, *data)
    planned = qlr.plan(model, bits=4, truncation=truncation).entries
    assert {(p.module, p.point, p.bits) for p in report.points} == {
        (e.name, point, bits) for e in planned for point, bits in e.points.items()
    }
    with torch.no_grad():
        truth, found = model(*data), quantized.eval()(*data)
    assert report.output_sqnr == pytest.approx(float(qlr.metrics.sqnr(truth, found)), abs=0.02)
    after = quantized.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("truncation", [None, "bt", "bt*"])
@pytest.mark.parametrize("granularity", ["tensor", "feature", "node"])
def test_a_point_by_hand(granularity: str, truncation: str | None) -> None:
    config = {"truncation": truncation, "granularity": {"input": granularity}}
    model, quantized, (x, edges) = case("sage", **config)
    report = measured(quantized, x, edges)
    layer = quantized.convs[0].lin_r
    weight = model.convs[0].lin_r.weight.detach()
    for point, values in (("input", x), ("weight:weight", weight)):
        quantizer = copy.deepcopy(layer.quantizers[point.split(":")[0]]).eval()
        with torch.no_grad():
            rounded, scale, zero_point, _ = quantizer(values)
        found = point_of(report, "convs.0.lin_r", point)
        assert found.sqnr == pytest.approx(float(qlr.metrics.sqnr(values, rounded)), abs=1e-3)
        assert found.low == pytest.approx(float((-zero_point * scale).min()), rel=1e-5)
        assert found.high == pytest.approx(float(((15 - zero_point) * scale).max()), rel=1e-5)


def test_what_is_clipped() -> None:
    _, quantized, (x, edges) = case("sage", granularity={"input": "tensor"})
    quantizer = quantized.convs[0].lin_r.quantizers["input"]
    ends = torch.tensor([-1.0]), torch.tensor([2.0])
    quantizer.take_range(*ends, torch.tensor([1.0]), None)  # steps of a fifth
    found = point_of(measured(quantized, x, edges), "convs.0.lin_r", "input")
    assert (found.low, found.high) == pytest.approx((-1.0, 2.0))
    share = ((x < -1.1) | (x > 2.1)).float().mean()
    assert 0.1 < float(share) < 0.5
    assert found.clipped == pytest.approx(float(share))


def test_the_output_by_hand() -> None:
    model, quantized, data = case("gcn", overrides={"convs.0*": None}, edge_weight_bits=32)
    report = measured(quantized, *data)
    rules = {"re:convs.0.*": None, "convs.1": {"message_bits": 4}}
    alone = qlr.quantize(model, bits=32, edge_weight_bits=32, overrides=rules)
    alone.convs[1].quantizers.load_state_dict(quantized.convs[1].quantizers.state_dict())
    with torch.no_grad():
        expected = qlr.metrics.sqnr(model(*data), alone.eval()(*data))
    found = point_of(report, "convs.1", "source:x").output_sqnr
    assert found == pytest.approx(float(expected), abs=0.02)


def test_bytes_and_shares() -> None:
    _, quantized, data = case("sage", overrides={"convs.1": {"message_bits": 32}})
    report = measured(quantized, *data)
    assert report.bytes["features"] == (4 * NODES * 2 * (FEATURES + 8), NODES * (FEATURES + 8))
    assert report.bytes["messages"] == (4 * NODES * FEATURES, NODES * FEATURES // 2)
    packed = qlr.report(qlr.convert(quantized))
    layers = [e for e in packed.entries if e.bits]
    sizes = sum(e.float_bytes for e in layers), sum(e.packed_bytes for e in layers)
    assert report.bytes["weights"] == sizes
    edges = data[1].size(1)
    assert report.message_values == edges * (FEATURES + 8)
    assert report.quantized_message_values == edges * FEATURES
    weights = 2 * (FEATURES * 8 + 8 * 3)
    assert (report.quantized_parameters, report.parameters) == (weights, weights + 8 + 3)
    assert "60.0 % of message bytes" in repr(report)


def test_edges_have_messages_of_their_own() -> None:
    _, quantized, data = case("edge")
    report = measured(quantized, *data)
    found = point_of(report, "", "message")
    edges = data[1].size(1)
    assert (found.kind, found.float_bytes, found.bytes) == ("messages", 12 * edges, 3 * edges // 2)
    assert report.quantized_message_values == report.message_values == 3 * edges


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_a_sparse_adjacency_is_as_edges(layout: str) -> None:
    # PyG then multiplies by the matrix, and makes no messages that could be counted.
    _, quantized, (x, edges) = case("sage")
    edges = edges.unique(dim=1)
    size, ones = (NODES, NODES), torch.ones(edges.size(1))
    adj = torch.sparse_coo_tensor(edges.flip(0), ones, size).coalesce()
    found = measured(quantized, x, adj if layout == "coo" else adj.to_sparse_csr())
    expected = measured(quantized, x, edges)
    assert found.message_values == expected.message_values > 0
    assert found.quantized_message_values == found.message_values
    assert found.bytes == expected.bytes
    assert found.output_sqnr == pytest.approx(expected.output_sqnr, abs=0.02)


def test_weights_of_edges_cost_what_their_rounding_costs() -> None:
    _, quantized, data = case("gcn", edge_weight_bits=2)
    _, finer, _ = case("gcn", edge_weight_bits=8)
    few, many = (
        point_of(measured(model, *data), "convs.0", "edge_weight") for model in (quantized, finer)
    )
    assert few.kind == "edge weights" and few.sqnr is None and few.low is None
    assert 0 < few.output_sqnr < many.output_sqnr - 10 < math.inf


@pytest.mark.parametrize("granularity", ["tensor", "node"])
def test_sparse_features(granularity: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(NODES, FEATURES) * (torch.rand(NODES, FEATURES) < 0.3)
    edges = torch.randint(NODES, (2, 100))
    quantized = qlr.quantize(GCN(FEATURES, 8, 2, 3), bits=4, granularity={"input": granularity})
    qlr.calibrate(quantized, (x, edges), progress=False)
    dense, sparse = (
        point_of(measured(quantized, features, edges), "convs.0.lin", "input")
        for features in (x, x.to_sparse())
    )
    assert sparse.bytes == dense.bytes
    assert sparse.output_sqnr == pytest.approx(dense.output_sqnr, abs=0.1)
    if granularity == "node":
        assert sparse.sqnr is None
    else:
        assert sparse.sqnr == pytest.approx(dense.sqnr, abs=0.1)


def test_how_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    _, quantized, data = case("gcn")
    report = measured(quantized, *data)
    lines = repr(report).splitlines()
    assert lines[0].split()[:4] == ["module", "point", "bits", "range"]
    assert len(lines) == len(report.points) + 3
    shown = report._repr_html_()
    assert shown.count("<tr>") == len(report.points) + 1 and "-&gt;" in shown
    values = json.loads(json.dumps(report.to_dict()))
    assert values["bytes"] == {kind: list(pair) for kind, pair in report.bytes.items()}
    assert [p["output_sqnr"] for p in values["points"]] == [p.output_sqnr for p in report.points]
    frames = types.SimpleNamespace(DataFrame=list)  # what it is given is what counts
    monkeypatch.setitem(sys.modules, "pandas", frames)
    assert report.to_pandas() == report.to_dict()["points"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        report.to_pandas()


def test_inputs_by_name() -> None:
    _, quantized, (x, edges) = case("gcn")
    assert qlr.report(quantized, x, edge_index=edges) == qlr.report(quantized, x, edges)


def test_a_part_that_is_not_reached() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(FEATURES, 4), nn.Linear(FEATURES, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x)

    x = torch.randn(NODES, FEATURES)
    quantized = qlr.quantize(Branches(), bits=4)
    quantized(x)
    found = point_of(measured(quantized, x), "right", "input")
    assert found.sqnr is None and found.clipped is None and found.bytes == 0
    assert found.output_sqnr == math.inf


def test_refusals() -> None:
    model, quantized, data = case("gcn")
    with pytest.raises(NothingToQuantizeError, match=r"GCN is not quantized.*qlr\.quantize"):
        qlr.report(model, *data)
    with pytest.raises(AlreadyQuantizedError, match=r"GCN is converted, and has no floats"):
        qlr.report(qlr.convert(quantized), *data)
    with pytest.raises(ConfigError, match=r"convs\.0\S* .*has no range yet.*qlr\.calibrate"):
        qlr.report(qlr.quantize(model, bits=4), *data)
    with pytest.raises(NothingToQuantizeError, match="pass the inputs of a quantized model"):
        qlr.report(quantized)
