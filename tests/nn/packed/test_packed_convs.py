"""A converted conv gives what the quantized one gives: every conv, every width."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch_geometric.nn import GraphConv, MessagePassing, SAGEConv

import torch_geometric_qlr as qlr
from tests.helpers.conv_zoo import EDGES, ZOO, X, build
from tests.helpers.crossed import crossed
from tests.helpers.packed_cases import (
    ALL_CONFIGS,
    CONFIGS,
    assert_agrees,
    config_name,
    deviation,
    forbid_float_messages,
    packed,
    quantized,
    run,
)
from torch_geometric_qlr.nn.packed import PackedLayer, PackedMessagePassing
from torch_geometric_qlr.transforms.report import conversion

CONVS = sorted(ZOO)

#: Convs whose messages are gathered from packed rows.
PACKED_SUM = set(
    (
        "APPNP ARMAConv ChebConv ClusterGCNConv GCN2Conv GCNConv GINConv GatedGraphConv GraphConv "
        "LGConv MFConv MixHopConv PANConv PDNConv RGCNConv SAGEConv SGConv SSGConv SignedConv "
        "SimpleConv TAGConv WLConvContinuous"
    ).split()
)
PACKED_ATTENTION = {
    "AGNNConv",
    "FAConv",
    "GATConv",
    "GATv2Conv",
    "HANConv",
    "HGTConv",
    "TransformerConv",
}


@pytest.mark.parametrize(
    ("name", "config"),
    crossed(
        CONVS,
        CONFIGS,
        whole=("GCNConv", "SAGEConv", "GATConv", "EdgeConv"),
        ids=[config_name(config) for config in CONFIGS],
    ),
)
def test_fake_equals_packed(name: str, config: dict[str, Any], monkeypatch: Any) -> None:
    layer, args = build(name)
    model = quantized(layer, args, **config)
    converted = packed(model)
    if name not in ("HeteroConv", "GPSConv", "DirGNNConv", "AntiSymmetricConv"):
        entry = conversion(converted).entries[0]
        expected = "packed sum" if name in PACKED_SUM else "packed attention"
        if name in PACKED_SUM | PACKED_ATTENTION:
            assert (entry.runs_as, entry.note) == (expected, "") or "never saw" in entry.note
        else:
            assert not entry.is_packed and entry.note
    assert_agrees(model, converted, *args)
    forbid_float_messages(monkeypatch)
    once, again = run(converted, *args), run(converted, *args)
    assert deviation(once, again) == 0.0


@pytest.mark.parametrize("config", ALL_CONFIGS, ids=config_name)
@pytest.mark.parametrize("name", ["GCNConv", "SAGEConv", "GINConv", "GATConv", "APPNP"])
def test_every_width_and_truncation(name: str, config: dict[str, Any]) -> None:
    layer, args = build(name)
    model = quantized(layer, args, **config)
    assert_agrees(model, packed(model), *args)


@pytest.mark.parametrize("points", ["paper", ("source",), ("weight",), ("input", "source")])
@pytest.mark.parametrize("name", ["GCNConv", "SAGEConv", "GATConv", "TransformerConv"])
def test_every_placement(name: str, points: Any) -> None:
    layer, args = build(name)
    model = quantized(layer, args, bits=4, points=points)
    assert_agrees(model, packed(model), *args)


@pytest.mark.parametrize("granularity", ["tensor", "feature", "node"])
def test_every_granularity(granularity: str) -> None:
    layer, args = build("GCNConv")
    model = quantized(
        layer, args, bits=4, granularity={"activation": granularity, "message": granularity}
    )
    assert_agrees(model, packed(model), *args)


@pytest.mark.parametrize("aggr", ["sum", "mean", "max", "min", ["mean", "max"]])
def test_every_aggregation(aggr: Any) -> None:
    weight = torch.linspace(-1, 1, EDGES.size(1))
    several = isinstance(aggr, list)
    conv = SAGEConv(8, 6, aggr=aggr) if several else GraphConv(8, 6, aggr=aggr)
    for args in ((X, EDGES),) if several else ((X, EDGES), (X, EDGES, weight)):
        model = quantized(copy.deepcopy(conv), args, bits=4)
        assert_agrees(model, packed(model), *args)


@pytest.mark.parametrize("name", ["GCNConv", "GATConv", "MFConv", "GPSConv", "HGTConv", "GMMConv"])
def test_copies_and_checkpoints_are_exact(name: str) -> None:
    layer, args = build(name)
    model = quantized(layer, args, bits=2)
    converted = packed(model)
    expected = run(converted, *args)
    for twin in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert deviation(expected, run(twin, *args)) == 0.0
        assert [type(m) for m in twin.modules()] == [type(m) for m in converted.modules()]
    other = quantized(build(name)[0], tuple(args), bits=2)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    fresh = packed(other)
    fresh.load_state_dict(converted.state_dict())
    assert deviation(expected, run(fresh, *args)) == 0.0


def test_user_convs_are_tried() -> None:
    class Doubled(MessagePassing):
        def forward(self, x: Any, edge_index: Any) -> Any:
            return self.propagate(edge_index, x=x)

        def message(self, x_j: Any) -> Any:
            return 2 * x_j

    class Copied(Doubled):
        def message(self, x_j: Any) -> Any:
            return x_j

    qlr.register_conv(Doubled)
    qlr.register_conv(Copied)
    for cls, is_packed in ((Doubled, False), (Copied, True)):
        model = quantized(cls(), (X, EDGES), bits=4)
        converted = packed(model)
        assert conversion(converted).entries[0].is_packed is is_packed
        assert isinstance(converted, PackedMessagePassing) and isinstance(converted, PackedLayer)
        assert_agrees(model, converted, X, EDGES)
