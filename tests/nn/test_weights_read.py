"""Weights that a model reads itself: the same values wherever the model runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch_geometric.nn import GATConv, GCNConv, Linear

import torch_geometric_qlr as qlr
from torch_geometric_qlr.errors import InputError, UnsupportedLayerError

torch.manual_seed(0)
X, EDGES = torch.randn(12, 8), torch.randint(0, 12, (2, 40))

# Linears of which only the weight is read never see features.
pytestmark = pytest.mark.filterwarnings("ignore::torch_geometric_qlr.errors.QLRWarning")


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(8, 8)
        self.lin = nn.Linear(8, 8)


class Decoder(_Model):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index) @ self.lin.weight + self.lin(x)


class ThroughConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(8, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return F.linear(self.conv(x, edge_index), self.conv.lin.weight.t())


class Helper(_Model):
    def mixing(self) -> Tensor:
        return self.lin.weight + self.lin.weight.t()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x @ self.mixing(), edge_index)


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.conv = nn.Embedding(12, 8), GCNConv(8, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        rows = self.emb(torch.arange(12)) + 0 * x
        return self.conv(rows, edge_index) @ self.emb.weight.t()


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.lin.weight.t()


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.decoder = GCNConv(8, 8), Product()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.decoder(self.conv(x, edge_index))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.b.weight, self.conv = self.a.weight, GCNConv(8, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.b(self.conv(self.a(x), edge_index)) + x @ self.a.weight


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GATConv(8, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index) * self.conv.att_src.view(-1) + x @ self.conv.lin.weight


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lins, self.conv = nn.ModuleList([nn.Linear(8, 8), Linear(8, 8)]), GCNConv(8, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        weights = torch.stack([lin.weight for lin in self.lins])
        return self.conv(torch.einsum("nf,kof->no", x, weights), edge_index)


MODELS = [Decoder, ThroughConv, Helper, Table, Inside, Shared, Attention, Stacked]


@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("cls", MODELS)
def test_quantized_and_converted_read_the_same(cls: type[nn.Module], bits: int) -> None:
    model = cls()
    quantized = qlr.quantize(model, bits=bits)
    quantized(X, EDGES).pow(2).sum().backward()
    for name, parameter in quantized.named_parameters():
        if name.endswith("weight"):
            assert parameter.grad is not None and parameter.grad.any(), name
    quantized.eval()
    with_gradients = quantized(X, EDGES).detach()
    converted = qlr.convert(quantized)
    with torch.no_grad():
        expected = quantized(X, EDGES)
        torch.testing.assert_close(with_gradients, expected, atol=1e-5, rtol=1e-5)
        for _ in range(3):
            torch.testing.assert_close(converted(X, EDGES), expected, atol=1e-5, rtol=1e-5)
        if bits == 8:
            off = (model(X, EDGES) - expected).abs().max()
            assert off < 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    "cls", [Decoder, *(pytest.param(c, marks=pytest.mark.heavy) for c in (Table, Inside))]
)
def test_compiled_models_read_the_same(cls: type[nn.Module]) -> None:
    torch._dynamo.reset()
    quantized = qlr.quantize(cls(), bits=2)
    quantized(X, EDGES)
    other = copy.deepcopy(quantized)
    compiled = torch.compile(other, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X, EDGES), quantized(X, EDGES))
    quantized.eval(), other.eval()
    torch.testing.assert_close(compiled(X, EDGES), quantized(X, EDGES))


def test_a_compiled_part_of_a_model_reads_the_same() -> None:
    torch._dynamo.reset()
    quantized = qlr.quantize(Inside(), bits=2)
    quantized(X, EDGES)
    quantized.eval()
    expected = quantized(X, EDGES)
    quantized.decoder.compile(backend="eager")
    torch.testing.assert_close(quantized(X, EDGES), expected)


def test_outside_of_a_model_it_is_the_parameter() -> None:
    quantized = qlr.quantize(Decoder(), bits=2)
    quantized(X, EDGES)
    assert quantized.lin.weight is quantized.lin._parameters["weight"]
    torch._dynamo.reset()
    norm = torch.compile(lambda: quantized.lin.weight.abs().sum(), backend="eager")
    torch.testing.assert_close(norm(), quantized.lin.weight.abs().sum())


def test_a_hook_that_computes_the_weight() -> None:
    quantized = qlr.quantize(nn.Linear(8, 6), bits=8)
    quantized(X)
    prune.l1_unstructured(quantized, "weight", amount=0.5)
    quantized.eval()
    expected = F.linear(X, quantized.weight, quantized.bias).detach()
    with torch.no_grad():
        assert (quantized(X) - expected).abs().max() < 0.05
    with pytest.raises(UnsupportedLayerError, match=r"a hook computes its weight.*prune\.remove"):
        qlr.convert(quantized)
    prune.remove(quantized, "weight")
    with torch.no_grad():
        assert qlr.convert(quantized)(X).equal(quantized(X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_in_evaluation(dtype: torch.dtype) -> None:
    for cls in (Decoder, Inside, ThroughConv):
        quantized = qlr.quantize(cls(), bits=8)
        quantized(X, EDGES)
        quantized.to(dtype).eval()
        expected = quantized(X.to(dtype), EDGES)
        with torch.no_grad():
            got = quantized(X.to(dtype), EDGES)
        assert got.dtype == expected.dtype == dtype
        torch.testing.assert_close(got, expected.detach(), atol=0.1, rtol=0.1)


ZERO = torch.zeros(6, 8)

WRITES: dict[str, Callable[[Any], Any]] = {
    "copy_": lambda lin: lin.weight.copy_(ZERO),
    "data.copy_": lambda lin: lin.weight.data.copy_(ZERO),
    "data": lambda lin: setattr(lin.weight, "data", ZERO),
    "item": lambda lin: lin.weight.__setitem__(0, 1.0),
    "slice": lambda lin: lin.weight[0].zero_(),
    "view": lambda lin: lin.weight.view(-1).fill_(0),
    "transpose": lambda lin: lin.weight.T.mul_(0),
    "detached": lambda lin: lin.weight.detach().zero_(),
    "init": lambda lin: nn.init.xavier_uniform_(lin.weight),
    "out": lambda lin: torch.add(ZERO, ZERO, out=lin.weight),
    "add": lambda lin: lin.weight.__iadd__(1),
    "unbind": lambda lin: lin.weight.unbind()[0].zero_(),
    "chunk": lambda lin: lin.weight.chunk(2)[0].zero_(),
    "iterate": lambda lin: next(iter(lin.weight)).zero_(),
    "foreach": lambda lin: torch._foreach_mul_([lin.weight], 0.0),
    "set_": lambda lin: lin.weight.set_(ZERO),
    "in place": lambda lin: F.relu(lin.weight, inplace=True),
    "numpy": lambda lin: lin.weight.numpy().__setitem__(0, 1.0),
    "asarray": lambda lin: np.asarray(lin.weight).__setitem__(0, 1.0),
    "parameter": lambda lin: setattr(lin, "weight", nn.Parameter(ZERO)),
    "tensor": lambda lin: setattr(lin, "weight", ZERO),
    "register": lambda lin: lin.register_parameter("weight", nn.Parameter(ZERO)),
    "delete": lambda lin: delattr(lin, "weight"),
}


@pytest.mark.parametrize("name", WRITES)
def test_writing_to_a_converted_weight_is_refused(name: str) -> None:
    quantized = qlr.quantize(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)), bits=4)
    quantized(X)
    lin = qlr.convert(quantized)[0]
    before = lin.weight.clone()
    by_numpy = name in ("numpy", "asarray")
    with pytest.raises(
        ValueError if by_numpy else InputError,
        match="read-only" if by_numpy else "packed codes, which cannot be written to",
    ):
        WRITES[name](lin)
    assert lin.weight.equal(before)


def test_a_copy_of_a_converted_weight_is_an_ordinary_tensor() -> None:
    quantized = qlr.quantize(nn.Linear(8, 6), bits=4)
    quantized(X)
    lin = qlr.convert(quantized)
    assert type(lin.weight.clone()) is Tensor
    lin.weight.clone().zero_()
    torch.from_dlpack(lin.weight).zero_()
    assert lin.weight.any()
