"""Mixed precision under a budget."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GAT, GCN, MLP, GraphSAGE, SGConv

import torch_geometric_qlr as qlr
from torch_geometric_qlr.errors import ConfigError, InputError, NothingToQuantizeError
from torch_geometric_qlr.search import BitChoice

FEATURES, CLASSES = 12, 3
MODELS = {
    "gcn": lambda: GCN(FEATURES, 8, 2, CLASSES),
    "sage": lambda: GraphSAGE(FEATURES, 8, 2, CLASSES),
    "gat": lambda: GAT(FEATURES, 8, 2, CLASSES, heads=2),
    "mlp": lambda: MLP([FEATURES, 8, CLASSES]),
    "sgc": lambda: SGConv(FEATURES, CLASSES, K=2),
}
MEASURES = ("bytes", "bitops", "average_bits")
Case = tuple[nn.Module, tuple[Tensor, ...]]


def case(name: str, seed: int = 0) -> Case:
    """A model, and one batch for it: edges at random, with isolated nodes."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    data = torch.randn(40, FEATURES), torch.randint(35, (2, 120))
    return model, data[:1] if name == "mlp" else data


def search(model: nn.Module, data: Any, budget: float, *args: Any, **kwargs: Any) -> BitChoice:
    return qlr.search_bits(model, data, budget, *args, progress=False, **kwargs)


def all_spent(model: nn.Module, data: Any, **kwargs: Any) -> BitChoice:
    """The choice of who can afford all."""
    return search(model, data, float("inf"), **kwargs)


def halfway(choice: BitChoice, share: float = 0.5) -> float:
    """A budget between the least and the most."""
    least, most = choice.pareto[0][0], choice.spent
    return least + share * (most - least)


def planned_bits(model: nn.Module, overrides: Any) -> dict[tuple[str, str], int]:
    """What a plan says of each point that has a row."""
    entries = qlr.plan(model, overrides=overrides).entries
    return {
        (entry.name, point): bits
        for entry in entries
        for point, bits in entry.points.items()
        if point != "edge_weight"
    }


@pytest.mark.parametrize(
    "name, measure",
    [*((name, "average_bits") for name in sorted(MODELS)), ("gat", "bytes"), ("gat", "bitops")],
)
def test_overrides_are_these_bits(name: str, measure: str) -> None:
    model, data = case(name)
    before = copy.deepcopy(model.state_dict())
    budget = halfway(all_spent(model, data, measure=measure))
    choice = search(model, data, budget, measure=measure)
    assert choice.spent <= budget
    assert len({row.bits for row in choice.table}) > 1, "the case says nothing"
    bits = planned_bits(model, choice.overrides)
    for row in choice.table:
        for point in row.point.split(", "):
            assert bits.pop((row.module, point)) == row.bits
    assert not bits, "points without a row"
    after = model.state_dict()
    assert model.training and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_it_predicts_the_error_of_the_model(name: str) -> None:
    model, data = case(name)
    choice = search(model, data, 6, measure="average_bits", bits=(4, 6, 8))
    quantized = qlr.quantize(model, overrides=choice.overrides)
    qlr.calibrate(quantized, data, progress=False)
    with torch.no_grad():
        found = qlr.metrics.sqnr(model.eval()(*data), quantized.eval()(*data))
    predicted = -10 * torch.tensor(choice.error).log10()
    assert abs(float(found - predicted)) < 3  # decibels; errors that add up otherwise are 6 apart


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", ["mlp", "gcn"])
def test_it_is_as_good_as_trying_all(name: str, measure: str) -> None:
    """Every choice of two widths, with costs as they are said to be counted."""
    model, data = case(name)
    widths = (2, 8)
    ends = [all_spent(model, data, measure=measure, bits=(b,)) for b in widths]
    rows = list(zip(*(end.table for end in ends), strict=True))
    counted = counts(name, data)
    assert [(row.module, row.point) for row, _ in rows] == list(counted)
    every = []
    for choice in itertools.product(range(2), repeat=len(rows)):
        bits = {key: widths[i] for key, i in zip(counted, choice, strict=True)}
        cost = {
            "bytes": sum(row[i].bytes for row, i in zip(rows, choice, strict=True)),
            "bitops": bitops(name, data, bits),
            "average_bits": sum(counted[k] * bits[k] for k in bits) / sum(counted.values()),
        }[measure]
        every.append((cost, sum(row[i].cost for row, i in zip(rows, choice, strict=True))))
    for share in (0.2, 0.5, 0.9):
        least, most = min(every)[0], max(every)[0]
        budget = least + share * (most - least) + 1e-9
        choice = search(model, data, budget, measure=measure, bits=widths)
        assert choice.spent <= budget
        best = min(error for cost, error in every if cost <= budget)
        assert choice.error == pytest.approx(best, rel=1e-6)


def counts(name: str, data: tuple[Tensor, ...]) -> dict[tuple[str, str], int]:
    """Numbers of values, by hand: nodes times features, and sizes of weights."""
    nodes = data[0].size(0)
    if name == "mlp":
        sizes = [("lins.0", FEATURES, 8), ("lins.1", 8, CLASSES)]
        sent: dict[str, int] = {}
    else:
        sizes = [("convs.0.lin", FEATURES, 8), ("convs.1.lin", 8, CLASSES)]
        sent = {"convs.0.lin": 8, "convs.1.lin": CLASSES}
    out = {}
    for layer, inside, outside in sizes:
        if layer in sent:
            out[layer.removesuffix(".lin"), "source:x"] = nodes * outside
        out[layer, "input"] = nodes * inside
        out[layer, "weight:weight"] = inside * outside
    return out


def bitops(name: str, data: tuple[Tensor, ...], bits: dict[tuple[str, str], int]) -> int:
    """Products of single bits, by hand. Weights of edges have 8, of self-loops, too."""
    nodes, total = data[0].size(0), 0
    for (layer, point), width in bits.items():
        sizes = (FEATURES, 8) if ".0" in layer else (8, CLASSES)
        if point == "input":
            total += nodes * sizes[0] * sizes[1] * width * bits[layer, "weight:weight"]
        elif point == "source:x":
            loops = int((data[1][0] == data[1][1]).sum())
            # Loops that are there already are replaced by one for each node.
            total += (data[1].size(1) - loops + nodes) * sizes[1] * width * 8
    return total


def test_bytes_are_those_of_the_converted_model() -> None:
    model, data = case("sage")
    choice = search(model, data, halfway(all_spent(model, data)))
    quantized = qlr.quantize(model, overrides=choice.overrides)
    qlr.calibrate(quantized, data, progress=False)
    packed = {e.name: e.packed_bytes for e in qlr.report(qlr.convert(quantized)).entries if e.bits}
    rows = {row.module: row.bytes for row in choice.table if row.point == "weight:weight"}
    assert rows == packed
    nodes = data[0].size(0)
    for row in choice.table:
        if row.point != "weight:weight":
            features = FEATURES if row.module.startswith("convs.0") else 8
            assert row.bytes == nodes * features * row.bits // 8
    assert choice.spent == sum(row.bytes for row in choice.table)


def test_a_width_without_kernels_takes_the_bytes_of_the_next() -> None:
    model, data = case("mlp")
    three, four = (all_spent(model, data, bits=(b,)) for b in (3, 4))
    assert [row.bytes for row in three.table] == [row.bytes for row in four.table]
    assert three.error > four.error


@pytest.mark.parametrize("measure", MEASURES)
def test_more_is_never_worse(measure: str) -> None:
    model, data = case("sage")
    pareto = all_spent(model, data, measure=measure).pareto
    spent, errors = zip(*pareto, strict=True)
    assert len(pareto) > 4
    assert list(spent) == sorted(spent) and list(errors) == sorted(errors, reverse=True)
    budget, error = pareto[len(pareto) // 2]
    found = search(model, data, budget + 1e-9, measure=measure)
    assert found.error == pytest.approx(error, rel=1e-6)


class Branches(nn.Module):
    """Two equal branches, of which one counts a hundred times more."""

    def __init__(self, factors: tuple[float, float]) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(FEATURES, 4), nn.Linear(FEATURES, 4)
        self.right.load_state_dict(self.left.state_dict())
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        return self.factors[0] * self.left(x) + self.factors[1] * self.right(x.flip(1))


@pytest.mark.parametrize("strong", ["left", "right"])
def test_a_sensitive_layer_gets_more_bits(strong: str) -> None:
    torch.manual_seed(0)
    model = Branches((100.0, 1.0) if strong == "left" else (1.0, 100.0))
    choice = search(model, torch.randn(50, FEATURES), 5, measure="average_bits")
    bits = {(row.module, row.point): row.bits for row in choice.table}
    weak = "left" if strong == "right" else "right"
    for point in ("input", "weight:weight"):
        assert bits[strong, point] > bits[weak, point]


def test_a_point_costs_what_it_costs_alone() -> None:
    model, data = case("gcn")
    choice = all_spent(model, data, bits=(2,))
    row = next(row for row in choice.table if row.module == "convs.1.lin" and row.point == "input")
    wide = {"bits": 32, "edge_weight_bits": 32}
    rule = {"convs.1.lin": {"activation_bits": 2}}
    alone = qlr.quantize(model, **wide, overrides=rule)
    qlr.calibrate(alone, data, progress=False)
    with torch.no_grad():
        exact, found = model.eval()(*data), alone.eval()(*data)
    error = (found - exact).square().sum() / exact.square().sum()
    assert row.cost == pytest.approx(float(error), rel=1e-4)


def test_errors_are_averaged_over_batches() -> None:
    model, (x, edges) = case("gcn")
    ranges = {"method": "minmax"}
    once = all_spent(model, [(x, edges)], bits=(2,), **ranges)
    twice = all_spent(model, [(x, edges), (x, edges)], bits=(2,), **ranges)
    for one, two in zip(once.table, twice.table, strict=True):
        assert one.bytes == two.bytes and one.cost == pytest.approx(two.cost, rel=1e-6)


def test_logits_keep_their_bits() -> None:
    model, data = case("gat")
    choice = all_spent(model, data, bits=(2,))
    attention = [row for row in choice.table if "att_src" in row.point]
    assert len(attention) == 2
    bits = planned_bits(model, choice.overrides)
    assert bits["convs.0", "weight:att_src"] == 8
    assert {row.bytes for row in attention} == {
        row.bytes for row in all_spent(model, data).table if "att_src" in row.point
    }


def test_what_data_may_be() -> None:
    model, (x, edges) = case("gcn")
    some = {"measure": "average_bits", "bits": (2, 8)}
    expected = search(model, (x, edges), 4, **some)
    for data, forward in [
        (Data(x=x, edge_index=edges), None),
        ((batch for batch in [(x, edges)]), None),
        ([x], lambda model, batch: model(batch, edges)),
        ([x], lambda model, batch: {"out": (model(batch, edges), None)}),
        (lambda model: model(x, edges), None),
    ]:
        found = search(model, data, 4, forward, **some)
        assert found == expected


def test_what_stays_float_and_what_is_kept() -> None:
    model, data = case("gcn")
    choice = search(
        *(model, data, 6),
        measure="average_bits",
        edge_weight_bits=4,
        truncation="bt*",
        overrides={"convs.0*": None},
    )
    assert {row.module for row in choice.table} == {"convs.1", "convs.1.lin"}
    quantized = qlr.quantize(model, choice.config)
    assert type(quantized.convs[0]).__name__ == "GCNConv"
    assert quantized.convs[1].quantizers["edge_weight"].bits == 4
    assert quantized.convs[1].lin.quantizers["input"].config.truncation == "bt*"
    assert choice.overrides["convs.0*"] is None


def test_how_it_is_shown() -> None:
    model, data = case("gcn")
    choice = search(model, data, 4, measure="average_bits")
    lines = repr(choice).splitlines()
    assert lines[0].split() == ["module", "point", "bits", "bytes", "cost"]
    assert len(lines) == len(choice.table) + 2
    assert lines[-1].startswith("average_bits: ") and lines[-1].endswith(" dB")
    values = json.loads(json.dumps(choice.to_dict()))
    assert values["overrides"] == choice.overrides and len(values["table"]) == len(choice.table)
    assert values["error"] == pytest.approx(sum(row.cost for row in choice.table))


def test_too_small_a_budget_says_what_is_possible() -> None:
    model, data = case("mlp")
    with pytest.raises(ConfigError, match=r"budget of 1 average_bits .* from 2 .* to 8\. Raise it"):
        search(model, data, 1, measure="average_bits")
    least, most = all_spent(model, data, bits=(2,)).spent, all_spent(model, data).spent
    with pytest.raises(ConfigError, match=rf"from {least:,.6g} \(.*to {most:,.6g}\."):
        search(model, data, least - 1)
    assert search(model, data, least).spent == least


BAD = {
    "measure": ({"measure": "watts"}, r"'watts' is unknown, choose from bytes, bitops, average_b"),
    "budget": ({"budget": "much"}, r"budget is 'much'; expected a number of bytes"),
    "nan": ({"budget": float("nan")}, r"budget is nan; expected a number"),
    "no bits": ({"bits": ()}, r"bits is \(\); expected widths from 1 to 8"),
    "wide": ({"bits": (2, 16)}, r"bits is \(2, 16\); expected widths from 1 to 8"),
    "set": ({"weight_bits": 4}, r"weight_bits would set widths that are searched"),
    "rule": ({"overrides": {"lins.0": {"bits": 2}}}, r"override 'lins.0' has fields"),
    "field": ({"wieght": 4}, r"'wieght' is not a config field"),
    "nothing": ({"data": []}, r"search_bits: there is no batch"),
    "silent": ({"data": lambda model: None}, r"returned no tensor of floats to compare"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_refusals(name: str) -> None:
    changes, message = BAD[name]
    model, data = case("mlp")
    arguments = {"data": data, "budget": 1e9, **changes}
    with pytest.raises(ConfigError, match=message):
        qlr.search_bits(model, progress=False, **arguments)


def test_outputs_that_say_nothing() -> None:
    model, (x,) = case("mlp")
    with pytest.raises(ConfigError, match="MLP: its output is zero for all of the data"):
        search(model, [x], 1e9, lambda model, batch: 0 * model(batch))
    with pytest.raises(InputError, match="holds NaN or Inf before anything is quantized"):
        search(model, [x], 1e9, lambda model, batch: model(batch) / 0)
    with pytest.raises(NothingToQuantizeError, match="nothing to quantize"):
        search(nn.ReLU(), x, 1e9)
