"""Which rule holds where, with which bits, at which places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import (
    APPNP,
    GAT,
    GCN,
    GATConv,
    GCNConv,
    GINConv,
    HeteroConv,
    Linear,
    MessagePassing,
    SAGEConv,
    SGConv,
)

import torch_geometric_qlr as qlr
from torch_geometric_qlr.config import PAPER_POINTS
from torch_geometric_qlr.nn import Plan
from torch_geometric_qlr.quantizers import LearnedRangeQuant

F, H, C, N = 8, 6, 3, 10
X = torch.randn(N, F, generator=torch.Generator().manual_seed(0))
EDGES = torch.randint(0, N, (2, 30), generator=torch.Generator().manual_seed(1))


def gcn() -> nn.Module:
    return GCN(F, H, 3, C)


def bits_of(plan: Plan, module: str, point: str = "weight:weight") -> int | None:
    return next((e.points.get(point) for e in plan.entries if e.name == module), None)


def weights(**config: Any) -> list[int | None]:
    plan = qlr.plan(gcn(), **config)
    return [bits_of(plan, f"convs.{i}.lin") for i in range(3)]


def ranges(model: nn.Module) -> dict[str, LearnedRangeQuant]:
    return {q.path: q for q in model.modules() if isinstance(q, LearnedRangeQuant)}


# Rules ############################################################################################

EXACT, REGEX, GLOB, TYPE = "convs.1.lin", r"re:convs\.\d\.lin", "convs.*.lin", "Linear"


def test_precedence_of_kinds_is_not_the_order_of_writing() -> None:
    rules: dict[Any, Any] = {
        TYPE: {"bits": 8},
        GLOB: {"bits": 7},
        REGEX: {"bits": 6},
        EXACT: {"bits": 5},
    }
    assert weights(bits=2, overrides=rules) == [6, 5, 6]
    assert weights(bits=2, overrides=dict(reversed(rules.items()))) == [6, 5, 6]
    del rules[REGEX]
    assert weights(bits=2, overrides=rules) == [7, 5, 7]
    del rules[GLOB]
    assert weights(bits=2, overrides=rules) == [8, 5, 8]
    del rules[EXACT]
    assert weights(bits=2, overrides=rules) == [8, 8, 8]


@pytest.mark.parametrize(
    ("first", "second"),
    [("convs.[01].lin", "convs.*.lin"), (r"re:convs\.[01]\.lin", r"re:.*\.lin")],
)
def test_within_a_kind_the_first_rule_wins(first: str, second: str) -> None:
    assert weights(bits=2, overrides={first: {"bits": 4}, second: {"bits": 6}}) == [4, 4, 6]
    assert weights(bits=2, overrides={second: {"bits": 6}, first: {"bits": 4}}) == [6, 6, 6]


def test_rules_hold_for_what_is_inside() -> None:
    assert weights(bits=2, overrides={"convs.1": {"bits": 4}}) == [2, 4, 2]
    assert weights(bits=2, overrides={"convs": {"bits": 4}, "convs.2": None}) == [4, 4, None]
    plan = qlr.plan(gcn(), bits=2, overrides={"GCNConv": {"message_bits": 4}})
    assert bits_of(plan, "convs.0", "source:x") == 4
    # The nearer of two types wins.
    rules = {GCNConv: {"bits": 4}, Linear: {"bits": 6}}
    assert weights(bits=2, overrides=rules) == [6, 6, 6]


def test_types_are_classes_or_names_and_cover_subclasses() -> None:
    class Mine(GCNConv):
        pass

    model = nn.ModuleList([Mine(F, H), GATConv(H, C)])
    for key in (GCNConv, "GCNConv"):
        plan = qlr.plan(model, bits=2, overrides={key: {"message_bits": 4}})
        assert bits_of(plan, "0", "source:x") == 4 and bits_of(plan, "1", "source:x") == 2
    plan = qlr.plan(model, bits=2, overrides={MessagePassing: None, nn.Linear: {"bits": 8}})
    assert plan.rules == {"MessagePassing": 2, "Linear": 2}
    assert bits_of(plan, "0", "source:x") is None and bits_of(plan, "0.lin") == 8


def test_none_keeps_float_and_says_so() -> None:
    model = gcn()
    plan = qlr.plan(model, bits=2, overrides={"convs.1": None})
    entry = next(e for e in plan.entries if e.name == "convs.1.lin")
    assert not entry.points and entry.note == "kept float: override 'convs.1'"
    quantized = qlr.quantize(model, bits=2, overrides={"convs.1": None})
    assert type(quantized.convs[1]) is GCNConv and type(quantized.convs[1].lin) is Linear
    assert plan.quantized_parameters == F * H + H * C


def test_counts_are_in_the_plan() -> None:
    plan = qlr.plan(gcn(), bits=2, overrides={"convs.1": {"bits": 4}, "re:convs.*": {"bits": 3}})
    assert plan.rules == {"convs.1": 1, "re:convs.*": 7}  # the list, its convs and their Linears
    assert "rule 'convs.1' matched 1 module;" in str(plan)
    assert plan.to_dict()["rules"] == plan.rules


def test_fields_that_a_rule_does_not_name_stay() -> None:
    plan = qlr.plan(gcn(), bits=4, message_bits=2, overrides={"convs.1": {"weight_bits": 8}})
    assert bits_of(plan, "convs.1.lin") == 8
    assert bits_of(plan, "convs.1.lin", "input") == 4
    assert bits_of(plan, "convs.1", "source:x") == 2
    model = qlr.quantize(
        gcn(), bits=2, truncation="bt*", overrides={"convs.1": {"truncation": None}}
    )
    kinds = {p: q.config.truncation for p, q in ranges(model).items() if p.startswith("convs.1")}
    assert set(kinds.values()) == {None}
    assert ranges(model)["convs.0.lin.weight"].config.truncation == "bt*"


# Widths ###########################################################################################


@pytest.mark.parametrize("wide", [16, 32])
def test_wide_places_pass_through(wide: int) -> None:
    plan = qlr.plan(gcn(), bits=2, activation_bits=wide, input_bits=wide)
    assert (
        set(plan.entries[1].points) == {"weight:weight"} and "wide: input" in plan.entries[1].note
    )
    model = qlr.quantize(gcn(), bits=2, message_bits=wide)
    assert all(type(conv) is GCNConv for conv in model.convs)
    assert all("source" not in path for path in ranges(model))
    mixed = qlr.quantize(gcn(), bits=wide, overrides={"convs.1": {"bits": 2}})
    assert {path.partition(".lin")[0].partition(".x")[0] for path in ranges(mixed)} == {"convs.1"}
    mixed(X, EDGES).sum().backward()


def test_roles_get_their_own_bits() -> None:
    model = qlr.quantize(
        gcn(), weight_bits=3, activation_bits=4, message_bits=5, input_bits=6, output_bits=7
    )
    found = {path: q.bits for path, q in ranges(model).items()}
    assert found["convs.0.lin.input"] == 6 and found["convs.1.lin.input"] == 4
    assert found["convs.0.lin.weight"] == 3
    assert found["convs.0.x (source)"] == 5
    assert found["convs.2.output"] == 7 and "convs.0.output" not in found
    model(X, EDGES)
    assert model(X, EDGES).unique().numel() <= 2**7


def test_output_bits_of_a_layer_that_a_rule_names() -> None:
    plan = qlr.plan(gcn(), bits=2, overrides={"convs.0": {"output_bits": 4}})
    assert bits_of(plan, "convs.0", "output") == 4
    assert bits_of(plan, "convs.0.lin", "output") is None
    assert bits_of(plan, "convs.2", "output") is None


def test_attention_keeps_its_logits_at_8_bits() -> None:
    plan = qlr.plan(GAT(F, H, 2, C, heads=2), bits=2)
    assert bits_of(plan, "convs.0", "weight:att_src") == 8
    assert bits_of(plan, "convs.0", "source:x") == 2


# Places ###########################################################################################


def points_of(plan: Plan) -> set[str]:
    return {p.partition(":")[0] for e in plan.entries for p in e.points}


@pytest.mark.parametrize(
    "point", ["input", "weight", "source", "message", "linear_output", "aggregate", "output"]
)
def test_each_place_alone(point: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = GCNConv(F, H)
            self.edge = GINConv(nn.Linear(H, H))
            self.lin = Linear(H, C)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lin(self.edge(self.conv(x, EDGES), EDGES))

    model = Net()
    assert points_of(qlr.plan(model, bits=2, points=(point,))) == {point}
    quantized = qlr.quantize(model, bits=1, points=point)
    out = quantized(X)
    assert not torch.equal(out, model(X))
    out.sum().backward()
    assert ranges(quantized) and all(bool(q.calibrated) for q in ranges(quantized).values())


def test_paper_placement() -> None:
    for config in ({"preset": "paper", "bits": 4}, {"points": "paper", "bits": 4}):
        plan = qlr.plan(gcn(), **config)
        assert points_of(plan) == set(PAPER_POINTS)
    model = qlr.quantize(gcn(), preset="paper", bits=4)
    assert {q.config.granularity for q in ranges(model).values()} == {"tensor"}
    assert all(q.config.skewness_rounding for q in ranges(model).values())
    model(X, EDGES).sum().backward()
    assert all(bool(q.calibrated) for q in ranges(model).values())


def test_output_stays_wide_at_the_end_of_the_model_only() -> None:
    plan = qlr.plan(gcn(), bits=2, points=("weight", "output"))
    assert bits_of(plan, "convs.1", "output") == 2
    assert bits_of(plan, "convs.2", "output") is None
    assert bits_of(plan, "convs.2.lin", "output") is None


@pytest.mark.parametrize("preset", ["int8", "int4", "int2", "int2-bt", "int2-bt*"])
def test_presets(preset: str) -> None:
    model = qlr.quantize(gcn(), preset)
    found = {(q.bits, q.config.truncation) for q in ranges(model).values()}
    bits, _, truncation = preset.removeprefix("int").partition("-")
    assert found == {(int(bits), truncation or None)}
    assert model(X, EDGES).isfinite().all()
    # Whatever is given wins over the preset.
    wider = qlr.quantize(gcn(), preset, bits=3)
    assert {q.bits for q in ranges(wider).values()} == {3}


@pytest.mark.parametrize(
    ("layer", "hops"), [(lambda: SGConv(F, H, K=3), 3), (lambda: APPNP(4, 0.1), 4)]
)
@pytest.mark.parametrize("points", ["source", "message"])
def test_hop_quantizers(layer: Any, hops: int, points: str) -> None:
    per_hop = qlr.quantize(nn.ModuleList([layer()]), bits=2, points=points)
    shared = qlr.quantize(nn.ModuleList([layer()]), bits=2, points=points, hop_quantizers="shared")
    assert len(ranges(per_hop)) == hops and len(list(qlr.quant_parameters(shared))) == 1
    for model in (per_hop, shared):
        model[0](X, EDGES)
        assert all(bool(q.calibrated) for q in ranges(model).values())


@pytest.mark.parametrize("granularity", ["tensor", "feature", "node"])
def test_granularities(granularity: str) -> None:
    kinds = {"input": granularity, "activation": granularity, "message": granularity}
    model = qlr.quantize(gcn(), bits=2, granularity=kinds, output_bits=2)
    out = model(X, EDGES)
    out.sum().backward()
    found = ranges(model)
    assert found["convs.1.x (source)"].config.granularity == granularity
    shape = {"tensor": (), "feature": (H,), "node": ()}[granularity]
    assert found["convs.1.x (source)"].gamma.shape == shape
    heads = qlr.quantize(
        GAT(F, H, 2, C, heads=2), bits=2, granularity="feature", points=("source", "output")
    )
    heads(X, EDGES).sum().backward()


def test_every_branch_of_a_first_layer_sees_the_input() -> None:
    conv = HeteroConv(
        {("a", "to", "a"): SAGEConv(F, H), ("a", "of", "a"): SAGEConv(F, H)}, aggr="sum"
    )
    model = nn.ModuleDict({"conv": conv, "lin": Linear(H, C)})
    quantized = qlr.quantize(model, bits=2, input_bits=8)
    sources = {p: q.bits for p, q in ranges(quantized).items() if "source" in p}
    assert set(sources.values()) == {8} and len(sources) == 2
    roots = {p: q.bits for p, q in ranges(quantized).items() if p.endswith("lin_r.input")}
    assert set(roots.values()) == {8}


def test_configs_travel() -> None:
    config = qlr.QLRConfig(preset="int2", overrides={GCNConv: {"message_bits": 4}, "convs.0": None})
    again = qlr.QLRConfig.from_dict(config.to_dict())
    assert again == config
    assert str(qlr.plan(gcn(), again)) == str(qlr.plan(gcn(), config))
