"""What is done to a model is said once: planned, applied, read off again and saved, it is equal."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import APPNP, GCN, HeteroDictLinear, SGConv

import torch_geometric_qlr as qlr
from tests.helpers.conv_zoo import ZOO, build
from torch_geometric_qlr.config import POINTS
from torch_geometric_qlr.nn.packed.kinds import KINDS
from torch_geometric_qlr.nn.read_back import recipe_of
from torch_geometric_qlr.nn.recipe import Point, Recipe
from torch_geometric_qlr.nn.rewrite import apply_recipe

CONFIGS: dict[str, dict[str, Any]] = {
    "int4": {"bits": 4},
    "paper": {"preset": "paper", "bits": 2},
    "everywhere": {"bits": 4, "points": POINTS, "output_bits": 8},
    "shared": {"bits": 4, "hop_quantizers": "shared"},
}


def same_everywhere(model: nn.Module, **config: Any) -> Recipe:
    """The recipe of a model, the same one wherever it is found."""
    planned = qlr.plan(model, **config).recipe
    quantized = qlr.quantize(model, **config)
    assert recipe_of(quantized) == planned
    assert Recipe.from_dict(json.loads(json.dumps(planned.to_dict()))) == planned
    return planned


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ZOO)
def test_planned_is_applied_is_saved(name: str, config: str) -> None:
    layer, _ = build(name)
    same_everywhere(layer, **CONFIGS[config])


MODELS: dict[str, Any] = {
    "dict of linears": lambda: HeteroDictLinear({"a": 4, "b": 4}, 8),
    "attention": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1
    ),
    "smooth": lambda: qlr.transforms.SmoothPropagation()(GCN(8, 6, 2, 4)),
    "embedding": lambda: nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4)),
    "conv1d": lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_of_other_layers(name: str) -> None:
    same_everywhere(MODELS[name](), bits=4)


def test_a_parent_goes_through_its_quantized_child() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    recipe = same_everywhere(model, bits=4, overrides={"0": None, "0.out_proj": {"bits": 4}})
    parent, child, linear = recipe.layers
    assert (parent.path, parent.kind, dict(parent.quantizers)) == ("0", "weights", {})
    assert list(child.quantizers) == [Point("weight", "weight")]
    assert list(linear.quantizers) == [Point("input"), Point("weight", "weight")]
    assert recipe.kept["0"].startswith("kept float: override")


def test_applied_to_another_model() -> None:
    model = GCN(8, 6, num_layers=2, out_channels=4)
    other = GCN(8, 6, num_layers=2, out_channels=4)
    recipe = qlr.plan(model, bits=2, overrides={"convs.1": {"bits": 4}}).recipe
    assert recipe_of(apply_recipe(other, recipe)) == recipe


def test_a_converted_model() -> None:
    x, edges = torch.rand(5, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])
    quantized = qlr.quantize(GCN(8, 6, num_layers=2, out_channels=4), bits=4).eval()
    quantized(x, edges)
    recipe = recipe_of(qlr.convert(quantized))
    assert recipe.converted and recipe != recipe_of(quantized)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    routes = {layer.path: layer.route for layer in recipe.layers if layer.route is not None}
    assert [route.kernel for route in routes.values()] == ["spmm", "spmm"]
    again = apply_recipe(GCN(8, 6, num_layers=2, out_channels=4), recipe)
    assert recipe_of(again) == recipe


def test_hops_may_be_shared_in_one_layer() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = SGConv(8, 8, K=3), APPNP(K=3, alpha=0.1)

    recipe = same_everywhere(Two(), bits=4, overrides={"first": {"hop_quantizers": "shared"}})
    source = Point("source", "x")
    hops = {layer.path: layer.quantizers.get(source) for layer in recipe.layers}
    assert len(hops["first"]) == 1 and len(hops["second"]) == 3  # type: ignore[arg-type]


def test_points_and_keys_are_one_to_one() -> None:
    names = ("x", "weight", "output", "source_x", "source", "w")
    points = [Point(kind) for kind in POINTS if kind not in ("weight", "source")]
    points += [Point(kind, name) for kind in ("weight", "source") for name in names]
    assert len({point.key for point in points}) == len(points)
    assert [Point.of_key(point.key) for point in points] == points


def test_every_kind_is_known_by_one_name() -> None:
    classes = [c for kind in KINDS.values() for c in kind if c is not None]
    assert len(set(classes)) == len(classes)
