"""What must hold for every convolution, at every width, for every form of the graph."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn import MessagePassing
from torch_geometric.typing import WITH_TORCH_SPARSE, SparseTensor

import torch_geometric_qlr as qlr
from tests.helpers.conv_zoo import EDGES, NODES, ZOO, build, flat
from tests.helpers.crossed import crossed
from torch_geometric_qlr.nn import QuantLayer
from torch_geometric_qlr.quantizers import LearnedRangeQuant

BITS = (8, 4, 2)
CONVS = sorted(ZOO)
WITH_GRAPH = [n for n in CONVS if any(a is EDGES for a in ZOO[n][1])]
#: One of each kind of message, which always runs at every width.
FAMILIES = ("GCNConv", "GATConv", "EdgeConv")
#: Layers of which PyG itself takes no second form, or gives another result for it.
ONE_FORM_ONLY = {"EGConv", "HypergraphConv", "PANConv"}


def seeded(layer: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    torch.manual_seed(7)  # dropout and sampled edges
    return flat(layer(*args))


def assert_same(left: list[Tensor], right: list[Tensor], **tolerance: float) -> None:
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize(("name", "bits"), crossed(CONVS, BITS, whole=FAMILIES))
class TestEveryConv:
    def test_forward_changes_and_approaches_float(self, name: str, bits: int) -> None:
        layer, args = build(name)
        expected = seeded(layer.eval(), args)
        out = seeded(qlr.quantize(layer, bits=bits), args)
        assert [o.shape for o in out] == [e.shape for e in expected]
        assert all(bool(o.isfinite().all()) for o in out)
        assert any(not torch.equal(o, e) for o, e in zip(out, expected, strict=True))
        if bits == 8:
            signal = sum(e.pow(2).sum() for e in expected)
            noise = sum((o - e).pow(2).sum() for o, e in zip(out, expected, strict=True))
            assert 10 * torch.log10(signal / noise) > 20  # dB

    def test_every_weight_and_some_range_learn(self, name: str, bits: int) -> None:
        layer, args = build(name)
        quantized = qlr.quantize(layer, bits=bits)
        if any(p.requires_grad for p in layer.parameters()):
            sum(o.square().sum() for o in seeded(layer, args)).backward()
        trains = {n for n, p in layer.named_parameters() if p.grad is not None}
        sum(o.square().sum() for o in seeded(quantized, args)).backward()
        grads = {n for n, p in quantized.named_parameters() if p.grad is not None}
        assert trains <= grads
        gammas = [p.grad for p in qlr.quant_parameters(quantized) if p.grad is not None]
        assert gammas and any(bool(g.abs().sum() > 0) for g in gammas)
        assert all(bool(g.isfinite().all()) for g in gammas)

    def test_copies_and_checkpoints_are_exact(self, name: str, bits: int) -> None:
        layer, args = build(name)
        quantized = qlr.quantize(layer, bits=bits)
        with (
            torch.no_grad()
        ):  # SuperGATConv keeps its last scores, which no layer copies with a graph
            seeded(quantized, args)
        expected = seeded(quantized.eval(), args)
        assert set(layer.state_dict()) <= set(quantized.state_dict())

        twin = copy.deepcopy(quantized)
        assert_same(seeded(twin, args), expected, rtol=0, atol=0)
        own = {id(m) for m in quantized.modules()}
        assert not own & {id(m) for m in twin.modules()}

        fresh = qlr.quantize(build(name)[0], bits=bits).eval()
        fresh.load_state_dict(quantized.state_dict())
        assert_same(seeded(fresh, args), expected, rtol=0, atol=0)

    def test_plan_covers_every_parameter(self, name: str, bits: int) -> None:
        layer, _ = build(name)
        plan = qlr.plan(layer, bits=bits)
        assert plan.parameters == sum(p.numel() for p in layer.parameters())
        for entry in plan.entries:
            assert entry.quantized_parameters == entry.parameters or entry.note


def graph_forms() -> dict[str, Any]:
    ones = torch.ones(EDGES.size(1))
    adj = torch.sparse_coo_tensor(EDGES.flip(0), ones, (NODES, NODES)).coalesce()
    forms: dict[str, Any] = {
        "EdgeIndex": EdgeIndex(EDGES, sparse_size=(NODES, NODES)),
        "EdgeIndex by col": EdgeIndex(EDGES, sparse_size=(NODES, NODES), sort_order="col"),
        "CSR": adj.to_sparse_csr(),
    }
    if WITH_TORCH_SPARSE:
        forms["SparseTensor"] = SparseTensor(
            row=EDGES[1], col=EDGES[0], sparse_sizes=(NODES, NODES)
        )
    return forms


@pytest.mark.parametrize(("name", "bits"), crossed(WITH_GRAPH, BITS, whole=FAMILIES))
def test_every_form_of_the_graph_gives_the_same(name: str, bits: int) -> None:
    layer, args = build(name)
    layer.eval()
    in_float = seeded(layer, args)
    quantized = qlr.quantize(layer, bits=bits)
    expected = seeded(quantized, args)
    gradients = backward(quantized, args)
    taken = []
    for form, graph in graph_forms().items():
        other = tuple(graph if a is EDGES else a for a in args)
        try:
            assert_same(seeded(layer, other), in_float, rtol=1e-4, atol=1e-4)
        except Exception:  # PyG itself does not take this form, or means another graph by it
            continue
        taken.append(form)
        assert_same(seeded(quantized, other), expected, rtol=1e-4, atol=1e-4)
        assert_same(backward(quantized, other), gradients, rtol=1e-3, atol=1e-3)
        assert_same(seeded(copy.deepcopy(quantized), other), expected, rtol=1e-4, atol=1e-4)
        fresh = qlr.quantize(build(name)[0], bits=bits).eval()
        fresh.load_state_dict(quantized.state_dict())
        assert_same(seeded(fresh, other), expected, rtol=1e-4, atol=1e-4)
    assert taken or name in ONE_FORM_ONLY


def backward(layer: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    """Gradients of all parameters, which a fresh copy of the layer forgets."""
    twin = copy.deepcopy(layer)
    sum(o.square().sum() for o in seeded(twin, args)).backward()
    return [p.grad for p in twin.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", CONVS)
def test_pickles(name: str) -> None:
    layer, args = build(name)
    quantized = qlr.quantize(layer.eval(), bits=4)
    expected = seeded(quantized, args)
    try:
        pickle.dumps(layer)
    except Exception as error:
        pytest.skip(f"the float layer does not pickle either: {error}")
    assert_same(seeded(pickle.loads(pickle.dumps(quantized)), args), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", CONVS)
def test_reset_parameters_resets_weights_and_ranges(name: str) -> None:
    layer, args = build(name)
    if not hasattr(layer, "reset_parameters") or not list(layer.parameters()):
        pytest.skip(f"{name} has nothing to reset")
    quantized = qlr.quantize(layer, bits=4)
    float_weights = [p.detach().clone() for p in layer.parameters()]
    layer.reset_parameters()
    resets = any(
        not torch.equal(a, b) for a, b in zip(float_weights, layer.parameters(), strict=True)
    )
    seeded(quantized, args)
    before = {n: p.detach().clone() for n, p in quantized.named_parameters() if "gamma" not in n}
    quantized.reset_parameters()
    after = dict(quantized.named_parameters())
    assert resets == any(not torch.equal(p, after[n]) for n, p in before.items())
    ranges = [m for m in quantized.modules() if isinstance(m, LearnedRangeQuant)]
    assert not any(bool(m.calibrated) for m in ranges)


@pytest.mark.parametrize("name", [n for n in CONVS if hasattr(qlr.nn, f"Quant{n}")])
def test_exists_by_name(name: str) -> None:
    layer, args = build(name)
    cls = getattr(qlr.nn, f"Quant{name}")
    quantized = qlr.quantize(layer, bits=4)
    assert type(quantized) is cls
    assert isinstance(quantized, type(layer)) and isinstance(quantized, QuantLayer)
    if isinstance(layer, MessagePassing):
        assert isinstance(quantized, qlr.nn.QuantMessagePassing)
