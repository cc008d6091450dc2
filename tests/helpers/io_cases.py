"""Models to save, and how tests write, read and compare them."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GAT, GCN, GIN, GCNConv, GraphSAGE, MessagePassing

import torch_geometric_qlr as qlr
from tests.helpers.files import written as written
from torch_geometric_qlr.nn import SMPGNN
from torch_geometric_qlr.quantizers import LearnedRangeQuant

NODES, FEATURES = 12, 8
_seeded = torch.Generator().manual_seed(0)
X = torch.randn(NODES, FEATURES, generator=_seeded)
EDGES = torch.randint(0, NODES, (2, 40), generator=_seeded)
ATTRIBUTES = torch.rand(EDGES.size(1), 2, generator=_seeded)
META = (["a", "b"], [("a", "to", "b"), ("b", "to", "a")])


class Double(MessagePassing):
    """A layer that nobody has registered."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(FEATURES, FEATURES))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=x @ self.w)
        return out


class ByName(nn.Module):
    """A model written with quantized layers."""

    def __init__(self, bits: int = 4) -> None:
        super().__init__()
        self.first = qlr.nn.QuantGCNConv(FEATURES, 6, bits=bits)
        self.second = qlr.nn.QuantSAGEConv(6, 3, bits=bits)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x, edge_index).relu(), edge_index)
        return out


class Shared(nn.Module):
    """One layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(FEATURES, FEATURES)
        self.two = nn.ModuleList([self.one])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.two[0](self.one(x).relu())
        return out


def basic(cls: Any, **kwargs: Any) -> nn.Module:
    out: nn.Module = cls(FEATURES, 6, num_layers=2, out_channels=3, **kwargs)
    return out


FLOAT: dict[str, Callable[[], nn.Module]] = {
    "gcn": lambda: basic(GCN, norm="batch_norm", dropout=0.3),
    "sage": lambda: basic(GraphSAGE, norm="layer_norm", jk="cat"),
    "gin": lambda: basic(GIN),
    "gat": lambda: basic(GAT, heads=2),
    "smp": lambda: SMPGNN(FEATURES, 6, 3, K=3),
    "appnp": lambda: APPNP(3, 0.1),
    "gcn conv": lambda: GCNConv(FEATURES, 6),
    "double": Double,
    "shared": Shared,
}


def trained(model: nn.Module, *args: Any) -> nn.Module:
    """A few steps, so that ranges, multipliers and statistics are their own."""
    args = args or (X, EDGES)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        sum(out.square().mean() for out in flat(model.train()(*args))).backward()
        optimizer.step()
    return model.eval()


def flat(out: Any) -> list[Tensor]:
    return list(out.values()) if isinstance(out, dict) else [out]


def make(name: str = "gcn", bits: int = 4, **config: Any) -> nn.Module:
    torch.manual_seed(1)
    return trained(qlr.quantize(FLOAT[name](), bits=bits, **config))


def converted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return qlr.convert(model)


def read(raw: bytes, model: nn.Module) -> nn.Module:
    return qlr.load(io.BytesIO(raw), model)


@torch.no_grad()
def run(model: nn.Module, *args: Any) -> list[Tensor]:
    return flat(model(*(args or (X, EDGES))))


def assert_same(model: nn.Module, twin: nn.Module, *args: Any) -> None:
    expected, state = model.state_dict(), twin.state_dict()
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert value.dtype == state[key].dtype and torch.equal(value, state[key]), key
    assert str(twin) == str(model)
    ranges = [[q for q in m.modules() if isinstance(q, LearnedRangeQuant)] for m in (model, twin)]
    for left, right in zip(*ranges, strict=True):
        assert (left.path, left.config) == (right.path, right.config)
    for left, right in zip(run(model, *args), run(twin.eval(), *args), strict=True):
        assert torch.equal(left, right)


def refused(raw: bytes, model: nn.Module, message: str, kind: Any = None) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind or qlr.errors.CheckpointError, match=message):
        read(raw, model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(v, after[k]) for k, v in before.items())
