from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn import APPNP

from tests.helpers.graphs import all_forms, edge_index_object, edge_lists, undirected
from torch_geometric_qlr.errors import ConfigError, InputError
from torch_geometric_qlr.nn.propagation import EMP

EDGES = undirected(torch.tensor([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)]).t())
NODES = 6


def _dense_emp(x: Tensor, adjacency: Tensor, emp: EMP, add_self_loops: bool = True) -> Tensor:
    """Elastic message passing with a dense matrix for everything, from a symmetric adjacency."""
    num_nodes = x.size(0)
    loops = (adjacency.diagonal() == 0).double() if add_self_loops else torch.zeros(num_nodes)
    with_loops = adjacency + torch.diag(loops)
    degree = with_loops.sum(dim=1)
    scale = torch.where(degree > 0, degree.rsqrt(), torch.zeros_like(degree))
    a = scale[:, None] * with_loops * scale[None, :]
    rows = []
    for i in range(num_nodes):
        for j in range(i):
            if adjacency[i, j] > 0:
                row = torch.zeros(num_nodes, dtype=torch.double)
                row[i] = adjacency[i, j].sqrt() * scale[i]
                row[j] = -adjacency[i, j].sqrt() * scale[j]
                rows.append(row)
    delta = torch.stack(rows) if rows else torch.zeros(0, num_nodes, dtype=torch.double)
    gamma = 1 / (1 + emp.lambda2)
    beta = 1 / (2 * gamma)
    h, z = x, torch.zeros(delta.size(0), x.size(1), dtype=torch.double)
    for _ in range(emp.K):
        y = gamma * x + (1 - gamma) * a @ h
        h_bar = y - gamma * delta.t() @ z
        z = z + beta * delta @ h_bar
        for e in range(z.size(0)):
            if emp.norm == "l21":
                z[e] *= min(1.0, emp.lambda1 / max(float(z[e].norm()), 1e-30))
            else:
                z[e] = z[e].clamp(-emp.lambda1, emp.lambda1)
        h = y - gamma * delta.t() @ z
    return h


def _symmetric(edge_index: Tensor, num_nodes: int) -> Tensor:
    count = torch.zeros(num_nodes, num_nodes, dtype=torch.double)
    for source, target in edge_index.t().tolist():
        count[target, source] += 1
    both = (count > 0) & (count.t() > 0)
    return torch.where(both, (count + count.t()) / 2, count + count.t())


@given(
    edge_lists(),
    st.sampled_from(["l1", "l21"]),
    st.sampled_from([0.0, 0.05, 0.5, 50.0]),
    st.sampled_from([0.0, 1.0, 9.0]),
    st.booleans(),
)
@settings(max_examples=80)
def test_the_dense_method(
    graph: tuple[Tensor, int], norm: Any, lambda1: float, lambda2: float, loops: bool
) -> None:
    edge_index, num_nodes = graph
    x = torch.randn(num_nodes, 3, dtype=torch.double)
    emp = EMP(5, lambda1, lambda2, norm, add_self_loops=loops)
    expected = _dense_emp(x, _symmetric(edge_index, num_nodes), emp, loops)
    torch.testing.assert_close(emp(x, edge_index), expected)


@given(edge_lists())
@settings(max_examples=30)
def test_every_form_of_a_graph(graph: tuple[Tensor, int]) -> None:
    edge_index, num_nodes = graph
    weight = torch.rand(edge_index.size(1)) + 0.1
    x = torch.randn(num_nodes, 3)
    emp = EMP(4, 0.3, 3.0)
    expected = emp(x, edge_index, weight)
    for name, adj in all_forms(edge_index, weight, num_nodes).items():
        torch.testing.assert_close(emp(x, adj), expected, msg=name)
    out = emp(x, edge_index_object(edge_index, num_nodes), weight)
    torch.testing.assert_close(out, expected)


def test_without_the_elastic_term_it_is_appnp() -> None:
    x = torch.randn(NODES, 3)
    torch.testing.assert_close(EMP(10, 0.0, 9.0)(x, EDGES), APPNP(10, 0.1)(x, EDGES))


@pytest.mark.parametrize("norm", ["l1", "l21"])
def test_it_lowers_its_objective(norm: Any) -> None:
    x = torch.randn(NODES, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    emp = EMP(400, 0.4, 2.0, norm)
    _, _, incidence = emp._graph(x, EDGES, None)

    def objective(h: Tensor) -> float:
        difference = incidence.difference(h)
        smooth = 0.5 * (h - x).square().sum() + difference.square().sum()
        norms = difference.abs() if norm == "l1" else difference.norm(dim=-1)
        return float(smooth + 0.4 * norms.sum())

    out = emp(x, EDGES)
    best = objective(out)
    assert best < objective(x)
    assert best < objective(EMP(400, 0.0, 2.0)(x, EDGES))
    for seed in range(20):  # a minimum of a convex function: no direction leads down
        noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
        assert best <= objective(out + 1e-2 * noise)


@pytest.mark.parametrize("norm", ["l1", "l21"])
def test_gradients(norm: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NODES, 2, dtype=torch.double, generator=generator, requires_grad=True)
    weight = torch.rand(EDGES.size(1), dtype=torch.double, generator=generator) + 0.5
    weight.requires_grad_()
    emp = EMP(3, 0.4, 2.0, norm)
    assert torch.autograd.gradcheck(lambda x, w: emp(x, EDGES, w), (x, weight))
    zero = torch.zeros(NODES, 2, requires_grad=True)
    emp(zero, EDGES).sum().backward()
    assert zero.grad is not None and zero.grad.isfinite().all()


def test_cache_copies_and_text() -> None:
    x = torch.randn(NODES, 3)
    emp = EMP(3, 0.2, 3.0, "l1", cached=True)
    assert str(emp) == "EMP(K=3, lambda1=0.2, lambda2=3.0, norm='l1')"
    out = emp(x, EDGES)
    assert torch.equal(emp(x, EDGES[:, :0]), out)
    assert torch.equal(copy.deepcopy(emp)(x, EDGES[:, :0]), out)
    emp.reset_parameters()
    assert not torch.equal(emp(x, EDGES[:, :0]), out)
    assert not emp.state_dict()
    assert type(emp).propagate.__module__.endswith("EMP_propagate"), "PyG's template did not apply"


def test_compiles_as_one_graph_once_cached() -> None:
    x = torch.randn(NODES, 3)
    emp = EMP(3, 0.2, 3.0, cached=True)
    out = emp(x, EDGES)
    compiled = torch.compile(emp, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, EDGES), out)


def test_dropout() -> None:
    x = torch.randn(NODES, 3)
    emp = EMP(3, dropout=0.5)
    assert not torch.equal(emp(x, EDGES), emp(x, EDGES))
    emp.eval()
    assert torch.equal(emp(x, EDGES), EMP(3)(x, EDGES))


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigError, match="norm"):
        EMP(norm="l0")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="0 or more"):
        EMP(lambda1=-1.0)
    with pytest.raises(InputError, match="non-negative"):
        EMP()(torch.randn(NODES, 2), EDGES, -torch.ones(EDGES.size(1)))
