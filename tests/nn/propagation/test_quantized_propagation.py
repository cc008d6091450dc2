"""Propagation layers and the paper's model, quantized."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import torch_geometric_qlr as qlr
from tests.helpers.graphs import all_forms, edge_index_object, edge_lists, undirected
from torch_geometric_qlr.quantizers import LearnedRangeQuant

EDGES = undirected(torch.tensor([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)]).t())
NODES = 6  # the last two are isolated
LAYERS: dict[str, Any] = {
    "SMP": lambda: qlr.nn.SMP(K=3),
    "EMP": lambda: qlr.nn.EMP(K=3, lambda1=0.5),
    "SMPGNN": lambda: qlr.nn.SMPGNN(5, 8, 5, K=3, dropout=0.0),
}
EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def features() -> Tensor:
    return torch.randn(NODES, 5, generator=torch.Generator().manual_seed(1))


def quantizers(model: nn.Module) -> dict[str, LearnedRangeQuant]:
    return {n: q for n, q in model.named_modules() if isinstance(q, LearnedRangeQuant)}


@EVERY_LAYER
@pytest.mark.parametrize("truncation", [None, "bt", "bt*"])
@torch.no_grad()
def test_the_error_shrinks_with_the_bits(name: str, truncation: str | None) -> None:
    layer = LAYERS[name]().eval()
    x = features()
    exact = layer(x, EDGES)
    errors = [
        float((qlr.quantize(layer, bits=bits, truncation=truncation)(x, EDGES) - exact).norm())
        for bits in (8, 4, 2)
    ]
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 0.02 * float(exact.norm())


@EVERY_LAYER
@pytest.mark.parametrize("preset", ["int4", "paper"])
def test_every_form_of_the_adjacency(name: str, preset: str) -> None:
    weight = torch.rand(EDGES.size(1), generator=torch.Generator().manual_seed(2)) + 0.5
    model = qlr.quantize(LAYERS[name](), preset=preset, bits=4).eval()
    plain = model(features(), EDGES)
    assert torch.equal(model(features(), edge_index_object(EDGES, NODES)), plain)
    weighted = model(features(), EDGES, weight)
    assert not torch.equal(weighted, plain)
    for form in all_forms(EDGES, weight, NODES).values():
        torch.testing.assert_close(model(features(), form), weighted)


@EVERY_LAYER
def test_copies_and_checkpoints_give_the_same_answers(name: str) -> None:
    model = qlr.quantize(LAYERS[name](), bits=2, truncation="bt*")
    model(features(), EDGES)
    expected = model.eval()(features(), EDGES)
    assert torch.equal(copy.deepcopy(model)(features(), EDGES), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(features(), EDGES), expected)
    other = qlr.quantize(LAYERS[name](), bits=2, truncation="bt*").eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(features(), EDGES), expected)


@EVERY_LAYER
def test_the_ranges_and_the_input_get_gradients(name: str) -> None:
    model = qlr.quantize(LAYERS[name](), bits=4)
    x = features().requires_grad_()
    model(x, EDGES).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().sum() > 0
    # The last change that SMP propagates weighs 2e-4, and yet its range learns.
    for path, quantizer in quantizers(model).items():
        assert quantizer.gamma.grad is not None, path
        assert quantizer.gamma.grad.abs().sum() > 0, path


@EVERY_LAYER
@given(graph=edge_lists())
@settings(max_examples=15, deadline=None)
def test_any_graph(name: str, graph: tuple[Tensor, int]) -> None:
    edge_index, num_nodes = graph
    model = qlr.quantize(LAYERS[name](), bits=2)
    out = model(torch.randn(num_nodes, 5), undirected(edge_index))
    assert out.shape == (num_nodes, 5)
    assert out.isfinite().all()


def counts(layer: Any, **config: Any) -> dict[str, int]:
    found = qlr.quantize(layer, bits=2, **config).quantizers
    return {point: len(list(found[point].children())) or 1 for point in found}


def test_one_quantizer_per_product() -> None:
    one = {"edge_weight": 1}  # all hops multiply by the same weights
    assert counts(qlr.nn.SMP(K=3)) == {"source_x": 6} | one
    assert counts(qlr.nn.SMP(K=3, correction=False)) == {"source_x": 3} | one
    assert counts(qlr.nn.EMP(K=3)) == {"source_x": 3} | one
    assert counts(qlr.nn.SMP(K=3), preset="paper") == {"message": 6, "aggregate": 6}


def test_sharing_keeps_the_representation_and_its_change_apart() -> None:
    shared: dict[str, Any] = {"hop_quantizers": "shared"}
    one = {"edge_weight": 1}
    assert counts(qlr.nn.SMP(K=3), **shared) == {"source_x": 2} | one
    assert counts(qlr.nn.SMP(K=3), preset="paper", **shared) == {"message": 2, "aggregate": 2}
    assert counts(qlr.nn.SMP(K=3, correction=False), **shared) == {"source_x": 1} | one
    assert counts(qlr.nn.EMP(K=3), **shared) == {"source_x": 1} | one
    model = qlr.quantize(qlr.nn.SMP(K=3), bits=8, **shared)
    seen: list[tuple[str, float]] = []
    for kind, quantizer in zip(("state", "change"), model.quantizers["source_x"], strict=True):
        quantizer.register_forward_hook(
            lambda module, args, out, kind=kind: seen.append((kind, float(args[0].detach().norm())))
        )
    model(features(), EDGES)
    assert [kind for kind, _ in seen] == ["state", "change"] * 3
    # The later changes are small against the representation.
    assert seen[-1][1] < 0.2 * seen[-2][1]


def test_the_references_placement_acts_on_every_edge() -> None:
    model = qlr.quantize(qlr.nn.SMP(K=1), preset="paper", bits=4)
    shapes = []
    for quantizer in model.quantizers["message"]:
        quantizer.register_forward_hook(lambda m, args, out: shapes.append(args[0].shape))
    model(features(), EDGES)
    assert shapes == [(EDGES.size(1) + NODES, 5)] * 2


def test_named_quantized_layers() -> None:
    smp = qlr.nn.QuantSMP(K=2, bits=8)
    assert isinstance(smp, qlr.nn.SMP) and isinstance(smp, qlr.nn.QuantMessagePassing)
    torch.testing.assert_close(
        smp(features(), EDGES), qlr.nn.SMP(K=2)(features(), EDGES), atol=0.05, rtol=0
    )
    assert isinstance(qlr.nn.QuantEMP(bits=4), qlr.nn.EMP)
    assert {"QuantSMP", "QuantEMP"} <= set(qlr.nn.quant_conv_names())


def test_the_history_survives() -> None:
    out, history = qlr.nn.QuantSMP(K=2, bits=4)(features(), EDGES, return_history=True)
    assert torch.equal(history.states[-1], out)
    assert history.trace is not None and history.trace.shape == (2,)


def test_plan() -> None:
    entries = {e.name: e for e in qlr.plan(LAYERS["SMPGNN"](), bits=2).entries}
    assert entries["propagation"].layer == "SMP"
    assert entries["propagation"].family == "copy"
    assert entries["propagation"].points == {"source:x": 2, "edge_weight": 8}
    assert entries["lins.1"].points == {"input": 2, "weight:weight": 2}
    kept = qlr.plan(LAYERS["SMPGNN"](), bits=2, overrides={"propagation": None}).entries
    assert next(e for e in kept if e.name == "propagation").note.startswith("kept float")


def test_quantizers_live_where_the_model_does() -> None:
    model = qlr.quantize(LAYERS["SMPGNN"]().to("meta"), bits=2)
    assert {q.gamma.device.type for q in quantizers(model).values()} == {"meta"}
