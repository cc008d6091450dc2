"""A quantized model in eval computes what its conversion computes, bit for bit."""

from __future__ import annotations

import warnings
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.nn import (
    APPNP,
    GAT,
    GCN,
    GIN,
    GATConv,
    GCNConv,
    GINConv,
    GraphSAGE,
    SAGEConv,
    SGConv,
    TransformerConv,
)

import torch_geometric_qlr as qlr
from tests.helpers.conv_zoo import ZOO, build, flat
from tests.helpers.crossed import crossed
from tests.helpers.model_zoo import ZOO as MODELS
from tests.helpers.model_zoo import complete_graphs, params  # noqa: F401
from torch_geometric_qlr.codes.chains import Chains
from torch_geometric_qlr.nn import SMPGNN

CONFIGS: list[dict[str, Any]] = [
    {"bits": 8},
    {"bits": 2, "truncation": "bt*"},
    {"bits": 4, "granularity": "tensor"},  # what kernels fuse
]
IDS = ["8", "2bt*", "4tensor"]
GRANULARITIES = ["tensor", "node", "feature"]


def outputs(model: nn.Module, call: Any) -> list[Tensor]:
    torch.manual_seed(7)  # sampled edges
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [t.clone() for t in flat(call(model))]


def converted(model: nn.Module, **kwargs: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what runs in floats is not the question
        return qlr.convert(model, **kwargs)


def trained(model: nn.Module, call: Any) -> nn.Module:
    """One step of a quantized model."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.manual_seed(7)
    sum((t * t).mean() for t in flat(call(model))).backward()
    optimizer.step()
    return model.eval()


def assert_same(model: nn.Module, call: Any) -> None:
    """The quantized model, and the converted one with and without chains, call after call; and as
    it computes small graphs."""
    model.eval()
    outputs(model, call)  # makes the ranges, unless it was trained
    expected = outputs(model, call)
    for smallest, fuse in ((0, True), (0, False), (2**18, True)):
        packed = converted(model, fuse=fuse)
        for number in range(3 if fuse and not smallest else 1):
            with mock.patch.object(Chains, "smallest", smallest):
                found = outputs(packed, call)
            for a, b in zip(expected, found, strict=True):
                assert torch.equal(a.nan_to_num(), b.nan_to_num()), (smallest, fuse, number)
                assert torch.equal(a.isnan(), b.isnan())


WAYS = [(config, is_trained) for config in CONFIGS for is_trained in (False, True)]
WAY_IDS = [f"{name}-{how}" for name in IDS for how in ("calibrated", "trained")]


@pytest.mark.parametrize(
    ("name", "way"),
    crossed(sorted(ZOO), WAYS, whole=("GCNConv", "SAGEConv", "GATConv", "EdgeConv"), ids=WAY_IDS),
)
def test_convs(name: str, way: tuple[dict[str, Any], bool]) -> None:
    config, is_trained = way
    layer, args = build(name)
    model = qlr.quantize(layer, **config).eval()

    def call(m: nn.Module) -> Any:
        return m(*args)

    if is_trained and any(p.requires_grad for p in model.parameters()):
        trained(model, call)
    assert_same(model, call)


@pytest.mark.usefixtures("complete_graphs")
@pytest.mark.parametrize(
    ("name", "config"),
    crossed(params(sorted(MODELS)), CONFIGS, whole=("GCN", "GIN", "GAT"), ids=IDS),
)
def test_models(name: str, config: dict[str, Any]) -> None:
    make, call = MODELS[name]
    torch.manual_seed(1)
    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.eval()
        outputs(model, call)  # lazy parts
        model = qlr.quantize(model, **config)
    assert_same(model, call)


# Small graphs of every kind #######################################################################


class Chain(nn.Module):
    """What a kernel can take along: bias, ReLU, dropout, an addend, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GCNConv(5, 8), SAGEConv(8, 8)
        self.lin, self.skip = nn.Linear(8, 4), nn.Linear(5, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = nn.functional.dropout(self.first(x, edge_index).relu(), training=self.training)
        h = (self.second(h, edge_index) + self.skip(x)).relu()
        out: Tensor = self.lin(h).mean(dim=0)
        return out


class Predict(nn.Module):
    """Answers that are propagated."""

    def __init__(self, propagation: nn.Module) -> None:
        super().__init__()
        self.lin, self.propagation = nn.Linear(5, 4), propagation

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.propagation(self.lin(x).relu(), edge_index)
        return out


SMALL: dict[str, Any] = {
    "GCN": lambda: GCN(5, 8, 2, 4),
    "SAGE": lambda: GraphSAGE(5, 8, 2, 4),
    "SAGE max": lambda: GraphSAGE(5, 8, 2, 4, aggr="max"),
    "GIN": lambda: GIN(5, 8, 2, 4),
    "GAT": lambda: GAT(5, 8, 2, 4, heads=2),
    "GAT v2": lambda: GAT(5, 8, 2, 4, heads=2, v2=True),
    "transformer": lambda: TransformerConv(5, 4, heads=2),
    "gin": lambda: GINConv(nn.Linear(5, 4)),
    "chain": Chain,
    "SGC": lambda: Predict(SGConv(4, 4, K=2)),
    "APPNP": lambda: Predict(APPNP(3, 0.1)),
    "SMP": lambda: SMPGNN(5, 8, 4),
    "attention": lambda: GATConv(5, 4, heads=2, concat=False),
}

#: With layers that do not tell how many features they are given.
UNKNOWN_WIDTH = {"GIN", "gin", "APPNP", "SMP"}


@st.composite
def graphs(draw: Any) -> tuple[Tensor, int]:
    """Empty rows, duplicates, loops and isolated nodes are among them."""
    nodes = draw(st.integers(1, 9))
    ends = st.integers(0, nodes - 1)
    edges = draw(st.lists(st.tuples(ends, ends), max_size=25))
    return torch.tensor(edges, dtype=torch.long).view(-1, 2).t().contiguous(), nodes


@settings(max_examples=30, deadline=None)
@given(
    graph=graphs(),
    name=st.sampled_from(sorted(SMALL)),
    bits=st.sampled_from([8, 4, 2, 1]),
    truncation=st.sampled_from([None, "bt", "bt*"]),
    granularity=st.sampled_from([{}, "tensor", "node", "feature"]),
    seed=st.integers(0, 1000),
    is_trained=st.booleans(),
)
def test_small_graphs(
    graph: tuple[Tensor, int],
    name: str,
    bits: int,
    truncation: str | None,
    granularity: Any,
    seed: int,
    is_trained: bool,
) -> None:
    torch.manual_seed(seed)
    edge_index, nodes = graph
    x = torch.randn(nodes, 5)
    assume(granularity != "feature" or name not in UNKNOWN_WIDTH)
    options = {"granularity": granularity} if granularity else {}
    model = qlr.quantize(SMALL[name](), bits=bits, truncation=truncation, **options)

    def call(m: nn.Module) -> Any:
        return m(x, edge_index)

    if is_trained:
        trained(model, call)
    assert_same(model, call)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("config", CONFIGS[:2], ids=IDS[:2])
@pytest.mark.parametrize("name", ["GCN", "SAGE"])
def test_batch_norm_moves_only_ties(name: str, config: dict[str, Any], granularity: str) -> None:
    # A kernel multiplies by one factor per column where the model divides by the deviation first.
    torch.manual_seed(3)
    edge_index, x = torch.randint(0, 30, (2, 90)), torch.randn(30, 5)
    make = {"GCN": GCN, "SAGE": GraphSAGE}[name]
    model = qlr.quantize(make(5, 8, 3, 4, norm="batch_norm"), granularity=granularity, **config)

    def call(m: nn.Module) -> Any:
        return m(x, edge_index)

    trained(model, call)
    expected = outputs(model, call)
    packed = converted(model)
    for got in (outputs(packed, call) for _ in range(3)):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    # Where every result is computed at once, batch norm is torch's own in both.
    assert_equal(expected, outputs(converted(model, fuse=False), call))


def assert_equal(expected: list[Tensor], got: list[Tensor]) -> None:
    assert len(expected) == len(got)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
