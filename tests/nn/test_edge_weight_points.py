"""What a config asks of the weights of edges, and what plans and reports say of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_geometric.nn import APPNP, GCN, GIN, GATConv, GCNConv, GraphConv, MessagePassing, SGConv

import torch_geometric_qlr as qlr
from tests.helpers.conv_zoo import ZOO, build
from torch_geometric_qlr.config import (
    DEFAULT_EDGE_WEIGHT_BITS,
    DEFAULT_POINTS,
    PAPER_POINTS,
    POINTS,
)
from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.layers.state import parameter_of, weight_key
from torch_geometric_qlr.nn.recipe import EdgeWeights, LayerRecipe, Point

X, EDGES = torch.rand(5, 8), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])


# The config #######################################################################################


def test_the_width_is_its_own() -> None:
    for config in (qlr.QLRConfig(), qlr.QLRConfig(bits=2), qlr.QLRConfig(preset="int2-bt*")):
        assert config.edge_weight_bits == DEFAULT_EDGE_WEIGHT_BITS
    assert qlr.QLRConfig(preset="paper").edge_weight_bits == 32
    assert qlr.QLRConfig(preset="paper", edge_weight_bits=8).edge_weight_bits == 8
    assert qlr.QLRConfig(bits=2, edge_weight_bits=4).replace(bits=8).edge_weight_bits == 4
    assert qlr.QLRConfig(edge_weight_bits=5).width("edge_weight") == 5


@pytest.mark.parametrize("bits", [2, 3, 8, 16, 32])
def test_written_and_read(bits: int) -> None:
    config = qlr.QLRConfig(bits=4, edge_weight_bits=bits)
    assert qlr.QLRConfig.from_dict(config.to_dict()) == config
    assert hash(qlr.QLRConfig.from_dict(config.to_dict())) == hash(config)
    assert (config == qlr.QLRConfig(bits=4)) == (bits == DEFAULT_EDGE_WEIGHT_BITS)


def test_a_config_that_does_not_name_it_can_be_read() -> None:
    """As earlier releases wrote them."""
    old = {"version": 1, "bits": 4, "points": ["input", "weight", "source", "message"]}
    config = qlr.QLRConfig.from_dict(old)
    assert config.bits == 4 and not config.quantizes("edge_weight")
    assert qlr.QLRConfig.from_dict({"version": 1, "bits": 2}) == qlr.QLRConfig(bits=2)
    assert "edge_weight_bits" not in qlr.QLRConfig(bits=2).to_dict()


@pytest.mark.parametrize("bits", [0, 1, 9, 17, 64, -8])
def test_out_of_range(bits: int) -> None:
    with pytest.raises(
        ConfigError, match=f"edge_weight_bits={bits} is out of range; choose 2 to 8"
    ):
        qlr.QLRConfig(edge_weight_bits=bits)


@pytest.mark.parametrize("bits", [True, 8.0, "8"])
def test_no_width(bits: Any) -> None:
    with pytest.raises(ConfigError, match="edge_weight_bits is .*expected an integer, 2 to 8"):
        qlr.QLRConfig(edge_weight_bits=bits)


def test_points() -> None:
    assert "edge_weight" in POINTS and "edge_weight" in DEFAULT_POINTS
    assert "edge_weight" not in PAPER_POINTS


# Plans ############################################################################################


def widths(model: torch.nn.Module, **config: Any) -> dict[str, int | None]:
    plan = qlr.plan(model, **{"bits": 2, **config})
    return {e.name: e.points.get("edge_weight") for e in plan.entries if e.family != "linear"}


def test_overrides() -> None:
    model = GCN(8, 6, 3, 4)
    names = [f"convs.{i}" for i in range(3)]
    rules: dict[Any, Any] = {"convs.1": {"edge_weight_bits": 4}, "convs.2": {"bits": 8}}
    found = widths(model, overrides=rules, edge_weight_bits=6)
    assert [found[n] for n in names] == [6, 4, 6]
    found = widths(model, overrides={"GCNConv": {"edge_weight_bits": 32}, "convs.0": None})
    assert [found[n] for n in names] == [None] * 3
    found = widths(model, overrides={"convs.*": {"points": ("source", "edge_weight")}})
    assert [found[n] for n in names] == [8] * 3
    with pytest.raises(ConfigError, match="edge_weight_bits=1 is out of range"):
        qlr.QLRConfig(overrides={"convs.0": {"edge_weight_bits": 1}})


def test_what_a_plan_says() -> None:
    plan = qlr.plan(GCN(8, 6, 1, 4), bits=2, edge_weight_bits=5)
    assert "convs.0      GCNConv  copy    source, edge_weight (5)  -/-/2 " in str(plan)
    assert plan.to_dict()["modules"][0]["points"] == {"source:x": 2, "edge_weight": 5}
    plan = qlr.plan(GCN(8, 6, 1, 4), bits=2, edge_weight_bits=32)
    assert "(32)" not in str(plan) and "wide: edge_weight" in str(plan)
    assert "edge_weight" not in str(qlr.plan(GIN(8, 6, 1, 4), bits=2))
    assert "edge_weight" not in str(qlr.plan(GCN(8, 6, 1, 4), "paper", bits=2))


def test_what_a_report_says() -> None:
    def converted(**config: Any) -> Any:
        model = qlr.quantize(GCN(8, 6, 1, 4), bits=4, **config)
        model(X, EDGES)
        return qlr.report(qlr.convert(model.eval()))

    report = converted(edge_weight_bits=3)
    assert [e.edge_weight_bits for e in report.entries] == [3, None]
    assert report.to_dict()["layers"][0]["edge_weight_bits"] == 3
    lines = str(report).splitlines()
    at = lines[0].index("edge bits")
    assert [line[at : at + 2].strip() for line in lines[1:3]] == ["3", "-"]
    assert [e.edge_weight_bits for e in converted(edge_weight_bits=32).entries] == [None, None]


def test_what_a_layer_shows() -> None:
    assert repr(qlr.quantize(GCNConv(8, 4), bits=2)) == (
        "QuantGCNConv(8, 4, bits=2, edge_weight_bits=8)"
    )
    assert repr(qlr.quantize(GCNConv(8, 4), bits=8)) == "QuantGCNConv(8, 4, bits=8)"


#: Of the convs of PyG those that send copies of their source times a number for each edge.
WEIGHTED = {
    *("SimpleConv", "GCNConv", "ChebConv", "GraphConv", "GatedGraphConv", "TAGConv", "ARMAConv"),
    *("SGConv", "SSGConv", "APPNP", "ClusterGCNConv", "GCN2Conv", "PANConv", "WLConvContinuous"),
    *("PDNConv", "LGConv", "MixHopConv", "SMP", "EMP"),
}


@pytest.mark.parametrize("name", ZOO)
def test_which_convs(name: str) -> None:
    layer, _ = build(name)
    plan = qlr.plan(layer, bits=4)
    for entry in plan.entries:  # of the conv and those inside it
        assert ("edge_weight" in entry.points) == (entry.layer in WEIGHTED), entry.name


def test_users_convs() -> None:
    class Own(MessagePassing):
        def forward(self, x: Any, edge_index: Any, w: Any) -> Any:
            return self.propagate(edge_index, x=x, w=w)

        def message(self, x_j: Any, w: Any) -> Any:
            return w.view(-1, 1) * x_j

    class Shifted(Own):
        def message(self, x_j: Any, w: Any) -> Any:
            return w.view(-1, 1) * x_j + 1

    class Finished(Own):
        def update(self, inputs: Any) -> Any:
            return inputs.relu()

    for cls in (Own, Shifted, Finished):
        qlr.register_conv(cls, family="copy")
    found = [widths(cls())[""] for cls in (Own, Shifted, Finished)]
    assert found == [8, None, None]


def test_replaced_messages_are_left_alone() -> None:
    layer: Any = GraphConv(8, 4)
    layer.message = lambda x_j, edge_weight: x_j
    assert widths(layer)[""] is None


def test_layers_that_were_explained_or_are_decomposed() -> None:
    """For both PyG binds a method of its own to the object."""
    layer: Any = GCNConv(8, 4)
    layer.explain = True
    layer.explain = False
    for one in (layer, GCNConv(8, 4, decomposed_layers=2)):
        assert widths(one)[""] == 8
        assert "edge_weight" in qlr.quantize(one, bits=2).quantizers


def test_attention_and_dropped_sources() -> None:
    assert widths(GATConv(8, 4))[""] is None
    assert widths(SGConv(8, 4), message_bits=16)[""] is None
    assert widths(APPNP(2, 0.1), points=("edge_weight", "source")) == {"": 8}
    with pytest.raises(qlr.errors.NothingToQuantizeError):
        qlr.plan(APPNP(2, 0.1), points=("edge_weight",))


# Recipes ##########################################################################################


def test_points_and_parameters_of_one_name() -> None:
    assert Point.of_key("edge_weight") == Point("edge_weight")
    assert Point("edge_weight").key == "edge_weight" and not Point("edge_weight").is_per_hop
    assert weight_key("edge_weight") == "weight:edge_weight"
    assert Point.of_key(weight_key("edge_weight")) == Point("weight", "edge_weight")
    assert parameter_of(weight_key("edge_weight")) == "edge_weight"


def test_recipes_as_plain_values() -> None:
    entry = qlr.plan(GCNConv(8, 4), bits=2, edge_weight_bits=3).recipe.layers[0]
    assert entry.quantizers[Point("edge_weight")] == EdgeWeights(3)
    assert entry.to_dict()["quantizers"]["edge_weight"] == {"bits": 3}
    assert LayerRecipe.from_dict("", entry.to_dict()) == entry
