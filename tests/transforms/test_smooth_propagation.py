"""Any model with smoothness-aware propagation, alone and together with quantization."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch_geometric.nn import (
    APPNP,
    GAT,
    GCN,
    GIN,
    AGNNConv,
    EdgeConv,
    GATConv,
    GCNConv,
    GINConv,
    GraphSAGE,
    LGConv,
    MessagePassing,
    MixHopConv,
    SAGEConv,
    Sequential,
    SGConv,
    TAGConv,
    TransformerConv,
)

import torch_geometric_qlr as qlr
from tests.helpers.crossed import crossed
from tests.helpers.graphs import all_forms, edge_index_object, edge_lists, undirected
from torch_geometric_qlr.errors import ConfigError, InputError, UnsupportedLayerError
from torch_geometric_qlr.nn.propagation.smooth import SmoothMessagePassing
from torch_geometric_qlr.quantizers import LearnedRangeQuant
from torch_geometric_qlr.transforms import Compose, Quantize, SmoothPropagation

EDGES = undirected(torch.tensor([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)]).t())
NODES = 6  # the last two are isolated
MODELS: dict[str, Callable[[], nn.Module]] = {
    "GCN": lambda: GCN(5, 8, 2, 3),
    "GraphSAGE": lambda: GraphSAGE(5, 8, 2, 3),
    "GAT": lambda: GAT(5, 8, 2, 3, heads=2),
    "GATv2": lambda: GAT(5, 8, 2, 3, v2=True),
    "SGConv": lambda: SGConv(5, 3, K=3),
    "TAGConv": lambda: TAGConv(5, 3, K=2),
    "APPNP": lambda: APPNP(K=3, alpha=0.1),
    "LGConv": lambda: LGConv(),
    "AGNNConv": lambda: AGNNConv(),
    "MixHopConv": lambda: MixHopConv(5, 3),
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
SMOOTH = SmoothPropagation(tau=0.01, init_lambda=0.2, eta_lambda=0.01)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def features(num_nodes: int = NODES) -> Tensor:
    return torch.randn(num_nodes, 5, generator=torch.Generator().manual_seed(1))


def smooth_layers(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, SmoothMessagePassing)]


def quantizer_names(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, LearnedRangeQuant)]


# What it computes #################################################################################


@pytest.mark.parametrize("options", [{}, {"primal": "lagrangian"}, {"mu": 4.0, "eta": 0.05}])
def test_hops_of_one_layer_are_the_steps_of_smp(options: dict[str, Any]) -> None:
    options = {"init_lambda": 0.3, "eta_lambda": 0.01, "tau": 0.1, **options}
    smooth = SmoothPropagation(**options)(SGConv(5, 3, K=4))
    expected = smooth.lin(qlr.nn.SMP(4, **options)(features(), EDGES))
    torch.testing.assert_close(smooth(features(), EDGES), expected)


def test_one_hop_written_out() -> None:
    class Average(MessagePassing):
        def __init__(self) -> None:
            super().__init__(aggr="mean")

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.propagate(edge_index, x=x)

    conv, x = SAGEConv(5, 3), features()
    smooth = SmoothPropagation(mu=3.0, eta=0.2, init_lambda=0.5)(conv)
    average = Average()
    h = (1 - 4.0 * 0.2) * x + 3.0 * 0.2 * average(x, EDGES) + 0.2 * x
    h = h + 2 * 0.2 * 0.5 * average(h - x, EDGES)
    torch.testing.assert_close(smooth(x, EDGES), conv.lin_l(h) + conv.lin_r(x))


def test_without_correction_only_the_gradient_step_is_left() -> None:
    smooth = SmoothPropagation(correction=False)(LGConv())
    expected = 0.1 * features() + 0.9 * LGConv()(features(), EDGES)
    torch.testing.assert_close(smooth(features(), EDGES), expected)


def test_attention_keeps_its_coefficients_for_both_products() -> None:
    conv = GATConv(5, 3, heads=2, dropout=0.5)
    smooth = SMOOTH(conv)  # in training mode: dropout of coefficients
    calls: list[Tensor] = []
    smooth.register_message_forward_hook(lambda m, args, out: calls.append(args[0]["alpha"]))
    smooth(features(), EDGES)
    assert len(calls) == 2
    assert torch.equal(calls[0], calls[1])


def test_the_model_itself_is_not_changed() -> None:
    model = GCN(5, 8, 2, 3).eval()
    before = model(features(), EDGES)
    out = SMOOTH(model)
    assert torch.equal(model(features(), EDGES), before)
    assert not smooth_layers(model)
    assert len(smooth_layers(out)) == 2
    assert not torch.allclose(out(features(), EDGES), before)


def test_a_cache_of_propagated_features_is_dropped() -> None:
    conv = SGConv(5, 3, K=2, cached=True)
    conv(features(), EDGES)
    smooth = SMOOTH(conv)
    propagated = qlr.nn.SMP(2, tau=0.01, init_lambda=0.2, eta_lambda=0.01)(features(), EDGES)
    torch.testing.assert_close(smooth(features(), EDGES), smooth.lin(propagated))


def test_the_multiplier_starts_anew_or_persists() -> None:
    forward = SMOOTH(GCNConv(5, 3))
    assert torch.equal(forward(features(), EDGES), forward(features(), EDGES))
    options = {"init_lambda": 0.2, "eta_lambda": 0.1, "tau": 1.0}
    persistent = SmoothPropagation(multiplier_state="persistent", **options)(GCNConv(5, 3))
    assert "_qlr_multiplier" in persistent.state_dict()
    persistent(features(), EDGES)
    moved = persistent._qlr_multiplier.clone()
    assert float(moved) != pytest.approx(0.2)
    persistent.eval()(features(), EDGES)
    assert torch.equal(persistent._qlr_multiplier, moved)
    persistent.reset_parameters()
    assert float(persistent._qlr_multiplier) == pytest.approx(0.2)


@EVERY_MODEL
def test_every_form_of_the_adjacency(name: str) -> None:
    if name.startswith(("GAT", "AGNN")):
        pytest.skip("attention reads no weights; PyG takes few of these forms")
    weight = torch.ones(EDGES.size(1))
    model = SMOOTH(MODELS[name]()).eval()
    expected = model(features(), EDGES)
    assert torch.equal(model(features(), edge_index_object(EDGES, NODES)), expected)
    forms = all_forms(EDGES, weight, NODES)
    for form in forms.keys() & {"csr", "SparseTensor"}:
        torch.testing.assert_close(model(features(), forms[form]), expected)


@EVERY_MODEL
@given(graph=edge_lists())
@settings(max_examples=10, deadline=None)
def test_any_graph(name: str, graph: tuple[Tensor, int]) -> None:
    edge_index, num_nodes = graph
    out = SMOOTH(MODELS[name]())(torch.randn(num_nodes, 5), edge_index)
    assert out.size(0) == num_nodes
    assert out.isfinite().all()


@EVERY_MODEL
def test_gradients(name: str) -> None:
    model, x = SMOOTH(MODELS[name]()), features().requires_grad_()
    model(x, EDGES).square().sum().backward()
    for tensor in (x, *model.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


# Together with quantization #######################################################################


CONFIGS: list[dict[str, Any]] = [
    {"bits": 8},
    {"bits": 2, "truncation": "bt*"},
    {"preset": "paper", "bits": 4},
    {"bits": 4, "hop_quantizers": "shared"},
]


@pytest.mark.parametrize(("name", "config"), crossed(MODELS, CONFIGS, whole=("GCN", "APPNP")))
def test_the_order_of_smoothing_and_quantizing_does_not_matter(
    name: str, config: dict[str, Any]
) -> None:
    model = MODELS[name]().eval()
    first = Compose([SMOOTH, Quantize(**config)])(model)
    second = Compose([Quantize(**config), SMOOTH])(model)
    assert quantizer_names(first) == quantizer_names(second)
    assert list(first.state_dict()) == list(second.state_dict())
    assert torch.equal(first(features(), EDGES), second(features(), EDGES))
    assert [type(m) for m in first.modules()] == [type(m) for m in second.modules()]
    second.load_state_dict(first.state_dict())
    for a in (first, second):
        a.train()
        a(features(), EDGES)
        a.eval()
    if "GAT" not in name:  # which drops coefficients at random
        assert torch.equal(first(features(), EDGES), second(features(), EDGES))


def test_both_products_are_quantized() -> None:
    plain = qlr.quantize(GCN(5, 8, 2, 3), bits=4)
    both = SMOOTH(plain)
    assert len(quantizer_names(both)) == len(quantizer_names(plain)) + 2
    seen: list[float] = []
    for quantizer in both.convs[0].quantizers["source_x"]:
        quantizer.register_forward_hook(
            lambda m, args, out: seen.append(float(args[0].detach().norm()))
        )
    both(features(), EDGES)
    assert len(seen) == 2
    assert seen[0] != seen[1]
    assert len(quantizer_names(SmoothPropagation(correction=False)(plain))) == len(
        quantizer_names(plain)
    )


def test_ranges_that_were_learned_stay() -> None:
    model = qlr.quantize(SGConv(5, 3, K=2), bits=4)
    model(features(), EDGES)
    ranges = [q.hi.clone() for q in model.quantizers["source_x"]]
    smooth = SMOOTH(model)
    found = smooth.quantizers["source_x"]
    assert [q.hi for q in found[::2]] == ranges
    assert [bool(q.calibrated) for q in found] == [True, False, True, False]
    assert [q.path for q in found] == [f"SGConv.x (source, hop {hop})" for hop in range(4)]


@EVERY_MODEL
@pytest.mark.parametrize("quantized", [False, True])
def test_copies_pickles_and_checkpoints(name: str, quantized: bool) -> None:
    model = SMOOTH(MODELS[name]())
    if quantized:
        model = qlr.quantize(model, bits=2)
        model(features(), EDGES)
    expected = model.eval()(features(), EDGES)
    assert torch.equal(copy.deepcopy(model)(features(), EDGES), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(features(), EDGES), expected)
    other = SMOOTH(MODELS[name]())
    other = (qlr.quantize(other, bits=2) if quantized else other).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(features(), EDGES), expected)


def test_the_signature_of_the_forward_stays() -> None:
    import inspect

    layer = qlr.quantize(SMOOTH(GCNConv(5, 3)), bits=2)
    assert inspect.signature(layer.forward) == inspect.signature(GCNConv(5, 3).forward)


# What it refuses ##################################################################################


def mixed() -> nn.Module:
    return Sequential(
        "x, e",
        [
            (GCNConv(5, 5), "x, e -> x"),
            (GCNConv(5, 5, normalize=False), "x, e -> x"),
            (SAGEConv(5, 5, aggr="max"), "x, e -> x"),
            (GINConv(nn.Linear(5, 5)), "x, e -> x"),
            (EdgeConv(nn.Linear(10, 5)), "x, e -> x"),
            (TransformerConv(5, 5), "x, e -> x"),
            (qlr.nn.SMP(2), "x, e -> x"),
        ],
    )


def test_layers_are_skipped_by_rule_and_plans_say_why() -> None:
    model = mixed()
    plan = SMOOTH.plan(model)
    reasons = ["", "normalize=False", "'max'", "'add'", "not linear", "attention", "already"]
    for entry, reason in zip(plan.entries, reasons, strict=True):
        assert reason in entry.reason
        assert bool(entry.reason) == bool(reason)
    assert "smoothed: 1 of 7 layers" in str(plan)
    assert plan.to_dict()["entries"][0]["hops"] == 1
    out = SMOOTH(model)
    assert len(smooth_layers(out)) == 1
    notes = [e.note for e in qlr.plan(out, bits=4).entries if "smoothed" in e.note]
    assert "smoothed: mu=9.0" in notes[0]
    assert [("not smoothed" in note) for note in notes] == [False] + [True] * 6
    assert out(features(), EDGES).isfinite().all()
    assert qlr.quantize(out, bits=4)(features(), EDGES).isfinite().all()


def test_a_layer_of_the_users_own_qualifies_once_it_is_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch_geometric_qlr.nn import registry

    monkeypatch.setattr(registry, "_USER", {})

    class Average(MessagePassing):
        def __init__(self) -> None:
            super().__init__(aggr="mean")

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.propagate(edge_index, x=x)

    with pytest.raises(UnsupportedLayerError, match="not known to be normalised"):
        SMOOTH(Average())
    qlr.register_conv(Average, normalized=True)
    assert not torch.equal(SMOOTH(Average())(features(), EDGES), Average()(features(), EDGES))


def test_what_cannot_be_smoothed_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="'add' aggregation"):
        SMOOTH(GIN(5, 8, 2, 3))
    with pytest.raises(UnsupportedLayerError, match="none propagates"):
        SMOOTH(nn.Linear(2, 2))
    with pytest.raises(UnsupportedLayerError, match="smooth already"):
        SMOOTH(SMOOTH(GCNConv(5, 3)))
    with pytest.raises(ConfigError, match="primal"):
        SmoothPropagation(primal="dual")


def test_exclusion() -> None:
    model = GCN(5, 8, 2, 3)
    assert [e.reason for e in SmoothPropagation(exclude=["convs.0"]).plan(model).entries] == [
        "excluded by 'convs.0'",
        "",
    ]
    with pytest.raises(ConfigError, match=r"convs\.7"):
        SmoothPropagation(exclude=["convs.7"])(model)
    assert repr(SmoothPropagation(tau=0.5, exclude=["convs.0"])) == (
        "SmoothPropagation(tau=0.5, exclude=['convs.0'])"
    )


def test_two_sets_of_nodes_are_refused() -> None:
    smooth, x = SMOOTH(SAGEConv((5, 5), 3)), features()
    assert smooth((x, x), EDGES).shape == (NODES, 3)
    with pytest.raises(InputError, match="one set of nodes sending to another"):
        smooth((x, x[:4]), EDGES[:, :2])
