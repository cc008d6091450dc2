from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn import APPNP

from tests.helpers.graphs import (
    all_forms,
    edge_index_object,
    edge_lists,
    needs_torch_sparse,
    undirected,
)
from torch_geometric_qlr.errors import ConfigError, InputError
from torch_geometric_qlr.nn.propagation import EMP, SMP

PAIRS = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)]
EDGES = undirected(torch.tensor(PAIRS).t())
NODES = 6  # the last two are isolated


def _dense_adjacency(edge_index: Tensor, num_nodes: int, weight: Tensor | None = None) -> Tensor:
    adjacency = torch.eye(num_nodes, dtype=torch.double)
    for index, (source, target) in enumerate(edge_index.t().tolist()):
        adjacency[target, source] += 1.0 if weight is None else weight[index]
    scale = adjacency.sum(dim=1).rsqrt()
    return scale[:, None] * adjacency * scale[None, :]


def _dense_smp(
    x: Tensor, a: Tensor, smp: SMP, num_entries: int
) -> tuple[list[Tensor], list[float], list[float], list[float], list[float]]:
    """The method as it is written down, with dense matrices and one number after the other."""
    laplacian = torch.eye(a.size(0), dtype=a.dtype) - a
    lam, s = smp.init_lambda, smp.init_slack
    h, h0 = x, x
    states, energies, traces, lams, slacks = [], [], [], [], []
    for _ in range(smp.K):
        energy = 0.5 * (h - h0).square().sum() + 0.5 * smp.mu * (h.t() @ laplacian @ h).trace()
        h_new = (1 - (1 + smp.mu) * smp.eta) * h + smp.mu * smp.eta * (a @ h) + smp.eta * h0
        g = h_new - h
        direction = laplacian @ g if smp.primal == "lagrangian" else a @ g
        h = h_new + 2 * smp.eta * lam * direction
        trace = float((g.t() @ laplacian @ g).trace())
        s = s + 2 * smp.eta_slack * lam * s
        lam = lam + smp.eta_lambda * (smp.tau * num_entries - s**2 - trace)
        if smp.projection == "nonnegative":
            lam = max(lam, 0.0)
        if smp.projection == "nonpositive":
            lam = min(lam, 0.0)
        states.append(h)
        energies.append(float(energy))
        traces.append(trace)
        lams.append(lam)
        slacks.append(s)
    return states, energies, traces, lams, slacks


OPTIONS: list[dict[str, Any]] = [
    {},
    {"primal": "lagrangian"},
    {"mu": 4.0, "eta": 0.05, "tau": 0.2},
    {"eta_lambda": 1e-2, "eta_slack": 1e-2, "init_lambda": 0.3, "init_slack": 0.5},
    {"eta_lambda": 0.05, "projection": "nonnegative", "tau": 0.0},
    {"eta_lambda": 0.05, "projection": "nonpositive", "tau": 10.0, "primal": "lagrangian"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_trajectory_of_the_dense_method(options: dict[str, Any], dtype: torch.dtype) -> None:
    x = torch.randn(NODES, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    smp = SMP(**options)
    out, history = smp(x.to(dtype), EDGES, return_history=True)
    expected = _dense_smp(x, _dense_adjacency(EDGES, NODES), smp, EDGES.size(1) + NODES)
    for got, want in zip(history.states, expected[0], strict=True):
        torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)
    assert torch.equal(out, history.states[-1])
    columns = (history.energy, history.trace, history.multiplier, history.slack)
    for column, series in zip(columns, expected[1:], strict=True):
        torch.testing.assert_close(
            column.double(), torch.tensor(series, dtype=torch.double), atol=1e-5, rtol=1e-5
        )


def test_the_options_make_a_difference() -> None:
    x = torch.randn(NODES, 5)
    outs = [SMP(**options)(x, EDGES) for options in OPTIONS]
    for index, out in enumerate(outs):
        assert not any(torch.equal(out, other) for other in outs[:index])


@given(edge_lists(), st.booleans(), st.integers(0, 3))
@settings(max_examples=50)
def test_without_correction_it_is_appnp(
    graph: tuple[Tensor, int], weighted: bool, num_features: int
) -> None:
    edge_index, num_nodes = graph
    weight = torch.rand(edge_index.size(1)) if weighted else None
    x = torch.randn(num_nodes, num_features)
    expected = APPNP(10, 0.1)(x, edge_index, weight)
    torch.testing.assert_close(SMP(correction=False)(x, edge_index, weight), expected)
    corrected = SMP()(x, edge_index, weight)
    assert corrected.shape == x.shape and corrected.isfinite().all()


@given(edge_lists(loops=False))
@settings(max_examples=20)
def test_every_form_of_a_graph(graph: tuple[Tensor, int]) -> None:
    edge_index, num_nodes = graph
    weight = torch.rand(edge_index.size(1)) + 0.1
    x = torch.randn(num_nodes, 3)
    smp = SMP(eta_lambda=1e-2, tau=0.1)
    expected = smp(x, edge_index, weight)
    forms = all_forms(edge_index, weight, num_nodes)
    forms["EdgeIndex"] = edge_index_object(edge_index, num_nodes)
    for name, adj in forms.items():
        out = smp(x, adj, weight if name == "EdgeIndex" else None)
        torch.testing.assert_close(out, expected, msg=name)
        smp.fuse = False
        torch.testing.assert_close(smp(x, adj, weight if name == "EdgeIndex" else None), expected)
        smp.fuse = True


def test_two_calls_a_step_first_the_state_then_its_change() -> None:
    class Counting(SMP):
        def propagate(self, edge_index: Any, x: Tensor, edge_weight: Any, size: Any = None) -> Any:
            calls.append(x)
            return super().propagate(edge_index, x=x, edge_weight=edge_weight, size=size)

    x = torch.randn(NODES, 3)
    for correction in (True, False):
        calls: list[Tensor] = []
        layer = Counting(K=3, correction=correction)
        _, history = layer(x, EDGES, return_history=True)
        assert len(calls) == (6 if correction else 3)
        inputs = [x, *history.states[:-1]]
        for got, want in zip(calls[:: 2 if correction else 1], inputs, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("form", ["edges", "csr"])
def test_gradients(form: str) -> None:
    smp = SMP(K=3, eta_lambda=1e-2, init_lambda=0.2, tau=0.1, primal="lagrangian")
    x = torch.randn(NODES, 2, dtype=torch.double, requires_grad=True)
    weight = torch.rand(EDGES.size(1), dtype=torch.double, requires_grad=form == "edges")
    if form == "edges":
        assert torch.autograd.gradcheck(lambda x, w: smp(x, EDGES, w), (x, weight))
    else:
        adj = all_forms(EDGES, weight, NODES)["csr"]
        assert torch.autograd.gradcheck(lambda x: smp(x, adj), (x,))


@needs_torch_sparse
def test_gradients_reach_the_values_of_a_matrix() -> None:
    weight = torch.rand(EDGES.size(1), requires_grad=True)
    x = torch.randn(NODES, 2)
    SMP()(x, EDGES, weight).sum().backward()
    expected, weight.grad = weight.grad, None
    SMP()(x, all_forms(EDGES, weight, NODES)["SparseTensor"]).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, expected)


def test_a_detached_multiplier_changes_the_gradient_and_not_the_output() -> None:
    grads, outs = [], []
    for detach in (False, True):
        x = torch.linspace(0, 1, NODES * 2, dtype=torch.double).view(NODES, 2).requires_grad_()
        smp = SMP(K=3, eta_lambda=0.1, init_lambda=0.2, detach_multiplier=detach)
        out = smp(x, EDGES)
        out.square().sum().backward()
        grads.append(x.grad)
        outs.append(out.detach())
    assert torch.equal(*outs)
    assert not torch.equal(*grads)


def test_persistent_multiplier() -> None:
    x = torch.randn(NODES, 3)
    smp = SMP(multiplier_state="persistent", eta_lambda=1e-2)
    assert sorted(smp.state_dict()) == ["multiplier", "slack"]
    first, history = smp(x, EDGES, return_history=True)
    torch.testing.assert_close(smp.multiplier, history.multiplier[-1])
    second = smp(x, EDGES)
    assert not torch.equal(first, second)
    smp.eval()
    before = smp.multiplier.clone()
    assert torch.equal(smp(x, EDGES), smp(x, EDGES))
    assert torch.equal(smp.multiplier, before)
    other = SMP(multiplier_state="persistent", eta_lambda=1e-2).eval()
    other.load_state_dict(smp.state_dict())
    assert torch.equal(other(x, EDGES), smp(x, EDGES))
    smp.reset_parameters()
    smp.train()
    torch.testing.assert_close(smp(x, EDGES), first)


def test_persistent_multiplier_under_backward() -> None:
    smp = SMP(multiplier_state="persistent", eta_lambda=1e-2)
    x = torch.randn(NODES, 3, requires_grad=True)
    (smp(x, EDGES) + smp(x, EDGES)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_dropout_of_edges_and_features() -> None:
    x = torch.randn(NODES, 3)
    csr = all_forms(EDGES, torch.ones(EDGES.size(1)), NODES)["csr"]
    for adj in (EDGES, csr):
        for options in ({"dropout": 0.5}, {"feature_dropout": 0.5}):
            smp = SMP(**options)
            assert not torch.equal(smp(x, adj), smp(x, adj))
            smp.eval()
            torch.testing.assert_close(smp(x, adj), SMP()(x, adj))
    with_all_dropped = SMP(K=1, dropout=1.0, correction=False)(x, EDGES)
    torch.testing.assert_close(with_all_dropped, 0.1 * x)
    one_step = SMP(K=1, feature_dropout=1.0)
    torch.testing.assert_close(one_step(x, EDGES), SMP(K=1)(x, EDGES))
    unweighted = SMP(K=1, dropout=1.0, normalize=False, correction=False)
    torch.testing.assert_close(unweighted(x, EDGES), 0.1 * x)


@pytest.mark.parametrize("layer", [SMP(), EMP()], ids=str)
@pytest.mark.parametrize("form", ["edges", "coo"])
def test_training_after_inference_mode(layer: torch.nn.Module, form: str) -> None:
    weight = torch.ones(EDGES.size(1))
    adj = EDGES.clone() if form == "edges" else all_forms(EDGES, weight, NODES)[form]
    x = torch.randn(NODES, 3, requires_grad=True)
    with torch.inference_mode():
        expected = layer(x, adj)
    out = layer(x, adj)
    out.sum().backward()
    assert torch.equal(out.detach(), expected)
    assert x.grad is not None


def test_cached_keeps_the_first_graph() -> None:
    x = torch.randn(NODES, 3)
    for adj in (EDGES, all_forms(EDGES, torch.ones(EDGES.size(1)), NODES)["coo"]):
        smp = SMP(cached=True)
        first = smp(x, adj)
        assert torch.equal(smp(x, EDGES[:, :2]), first)
        smp.reset_parameters()
        assert not torch.equal(smp(x, EDGES[:, :2]), first)


@pytest.mark.parametrize("options", [{}, {"normalize": False}, {"add_self_loops": False}])
def test_normalisation_options_are_those_of_appnp(options: dict[str, Any]) -> None:
    x, weight = torch.randn(NODES, 3), torch.rand(EDGES.size(1))
    expected = APPNP(10, 0.1, **options)(x, EDGES, weight)
    torch.testing.assert_close(SMP(correction=False, **options)(x, EDGES, weight), expected)


def test_flow_from_target_to_source() -> None:
    x, directed = torch.randn(NODES, 3), torch.tensor(PAIRS).t()
    turned = SMP(flow="target_to_source")(x, directed.flip(0))
    torch.testing.assert_close(turned, SMP()(x, directed))


def test_compiles_as_one_graph() -> None:
    x = torch.randn(NODES, 3)
    smp = SMP(K=3)
    compiled = torch.compile(smp, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, EDGES), smp(x, EDGES))
    torch.testing.assert_close(
        compiled(x, EDGES, torch.ones(EDGES.size(1))), smp(x, EDGES, torch.ones(EDGES.size(1)))
    )


def test_copies_and_text() -> None:
    x = torch.randn(NODES, 3)
    smp = SMP(K=4, mu=3.0, eta=0.25, tau=0.1)
    assert str(smp) == "SMP(K=4, mu=3.0, eta=0.25, tau=0.1)"
    assert not smp.state_dict()
    assert torch.equal(copy.deepcopy(smp)(x, EDGES), smp(x, EDGES))
    assert type(smp).propagate.__module__.endswith("SMP_propagate"), "PyG's template did not apply"


def test_low_precision_sums_wide() -> None:
    x = torch.full((NODES, 64), 100.0, dtype=torch.bfloat16)
    x[::2] = -100.0
    out, history = SMP()(x, EDGES, return_history=True)
    assert out.dtype == torch.bfloat16
    assert history.trace.dtype == torch.float32 and history.trace.isfinite().all()


def test_no_steps() -> None:
    x = torch.randn(NODES, 3)
    out, history = SMP(K=0)(x, EDGES, return_history=True)
    assert torch.equal(out, x)
    assert history.states == () and history.trace.numel() == 0
    out, history = SMP(K=0, correction=False)(x, EDGES, return_history=True)
    assert history.trace is None and history.energy.numel() == 0


@pytest.mark.parametrize(
    "options",
    [{"K": -1}, {"primal": "dual"}, {"multiplier_state": "global"}, {"projection": "sideways"}],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="SMP"):
        SMP(**options)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(3), torch.zeros(NODES, 2, dtype=torch.long), torch.eye(NODES).to_sparse()],
)
def test_features_it_cannot_take(x: Tensor) -> None:
    with pytest.raises(InputError, match="SMP"):
        SMP()(x, EDGES)
    with pytest.raises(InputError, match="bipartite"):
        SMP()((x, x), EDGES)


def test_adjacencies_that_do_not_fit() -> None:
    x = torch.randn(NODES, 3)
    with pytest.raises(InputError, match="nodes"):
        SMP()(x, torch.eye(NODES + 1).to_sparse())
    with pytest.raises(InputError, match="weights into the matrix"):
        SMP()(x, torch.eye(NODES).to_sparse(), torch.ones(NODES))
