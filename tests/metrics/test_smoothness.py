from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.utils import get_laplacian

from tests.helpers.graphs import all_forms, dense, edge_lists, undirected
from torch_geometric_qlr.errors import ConfigError, InputError
from torch_geometric_qlr.metrics import (
    dirichlet_energy,
    mean_average_distance,
    sample_pairs,
    smoothness_change,
    sqnr,
)
from torch_geometric_qlr.metrics import smoothness as module
from torch_geometric_qlr.nn.propagation import SMP

PATH = undirected(torch.tensor([(0, 1), (1, 2), (2, 3), (3, 4)]).t())


def _laplacian(adjacency: Tensor, loops: bool) -> Tensor:
    num_nodes = adjacency.size(0)
    missing = (adjacency.diagonal() == 0).to(adjacency.dtype)
    adjacency = adjacency + torch.diag(missing) if loops else adjacency
    degree = adjacency.sum(dim=1)
    scale = torch.where(degree > 0, degree.rsqrt(), torch.zeros_like(degree))
    identity = torch.diag((degree > 0).to(adjacency.dtype))
    assert adjacency.shape == (num_nodes, num_nodes)
    return identity - scale[:, None] * adjacency * scale[None, :]


@given(edge_lists(), st.booleans(), st.integers(1, 3))
def test_energy_is_the_quadratic_form(
    graph: tuple[Tensor, int], loops: bool, num_features: int
) -> None:
    edge_index, num_nodes = graph
    edge_index = undirected(edge_index)
    x = torch.randn(num_nodes, num_features, dtype=torch.double)
    weight = torch.rand(edge_index.size(1), dtype=torch.double) + 0.1
    adjacency = dense(edge_index, weight, num_nodes)
    adjacency = (adjacency + adjacency.t()) / 2
    weight = adjacency[edge_index[1], edge_index[0]]
    expected = (x.t() @ _laplacian(adjacency, loops) @ x).trace()
    energy = dirichlet_energy(x, edge_index, weight, add_self_loops=loops)
    torch.testing.assert_close(energy, expected)
    relative = dirichlet_energy(x, edge_index, weight, add_self_loops=loops, relative=True)
    torch.testing.assert_close(relative, expected / x.square().sum())
    for name, adj in all_forms(edge_index, weight, num_nodes).items():
        torch.testing.assert_close(
            dirichlet_energy(x, adj, add_self_loops=loops), expected, msg=name
        )


def test_energy_agrees_with_pyg_and_with_smp() -> None:
    x = torch.randn(5, 3)
    index, value = get_laplacian(PATH, normalization="sym", num_nodes=5)
    expected = (x * (dense(index, value, 5) @ x)).sum()
    torch.testing.assert_close(dirichlet_energy(x, PATH, add_self_loops=False), expected)
    _, history = SMP(correction=False)(x, PATH, return_history=True)
    layers = [x, *history.states]
    _, corrected = SMP(init_lambda=0.0, eta_lambda=0.0)(x, PATH, return_history=True)
    torch.testing.assert_close(smoothness_change(layers, PATH), corrected.trace)


def test_small_energies_survive() -> None:
    # The smooth vector plus a ripple of 1e-5: the difference of two traces gives noise here.
    smooth = torch.tensor([2.0, 3.0, 3.0, 3.0, 2.0]).sqrt()
    ripple = 1e-5 * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    expected = dirichlet_energy(ripple.double()[:, None], PATH)
    energy = dirichlet_energy((1.0 * smooth + ripple)[:, None], PATH)
    assert float(energy) == pytest.approx(float(expected), rel=0.1)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 3)
    expected = dirichlet_energy(x, PATH), mean_average_distance(x, PATH)
    monkeypatch.setattr(module, "_CHUNK", 4)
    torch.testing.assert_close(
        (dirichlet_energy(x, PATH), mean_average_distance(x, PATH)), expected
    )


def test_energy_and_mad_have_gradients() -> None:
    x = torch.randn(5, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dirichlet_energy(x, PATH), (x,))
    assert torch.autograd.gradcheck(lambda x: mean_average_distance(x, PATH), (x,))


@given(edge_lists(), st.integers(1, 3))
def test_mad_is_the_average_of_averages(graph: tuple[Tensor, int], num_features: int) -> None:
    edge_index, num_nodes = graph
    x = torch.randn(num_nodes, num_features, dtype=torch.double)

    def expected(pairs: list[tuple[int, int]]) -> float:
        rows = []
        for i in range(num_nodes):
            others = [second for first, second in pairs if first == i and second != i]
            if others:
                similar = [float(F.cosine_similarity(x[i], x[j], dim=0)) for j in others]
                rows.append(sum(1 - value for value in similar) / len(similar))
        return sum(rows) / len(rows) if rows else 0.0

    pairs = [tuple(pair) for pair in edge_index.t().tolist()]
    assert float(mean_average_distance(x, edge_index)) == pytest.approx(expected(pairs), abs=1e-9)
    every = [(i, j) for i in range(num_nodes) for j in range(num_nodes)]
    assert float(mean_average_distance(x)) == pytest.approx(expected(every), abs=1e-9)


def test_mad_of_a_collapsed_representation_is_zero() -> None:
    x = torch.ones(5, 3)
    assert float(mean_average_distance(x, PATH)) == pytest.approx(0.0, abs=1e-6)
    assert float(mean_average_distance(x)) == pytest.approx(0.0, abs=1e-6)


def _distances(edge_index: Tensor, num_nodes: int) -> Tensor:
    distance = torch.full((num_nodes, num_nodes), math.inf)
    distance.fill_diagonal_(0)
    for source, target in edge_index.t().tolist():
        if source != target:
            distance[source, target] = 1
    for k in range(num_nodes):
        distance = torch.minimum(distance, distance[:, k, None] + distance[None, k])
    return distance


@given(edge_lists(), st.integers(1, 3), st.booleans())
def test_sampled_pairs_are_as_far_apart_as_asked(
    graph: tuple[Tensor, int], hops: int, remote: bool
) -> None:
    edge_index, num_nodes = graph
    pairs = sample_pairs(
        edge_index, hops, remote=remote, num_nodes=num_nodes, num_sources=4, num_targets=16
    )
    distance = _distances(edge_index, num_nodes)
    wanted = distance > hops if remote else (distance <= hops) & (distance > 0)
    assert wanted[pairs[0], pairs[1]].all()
    counts = torch.bincount(pairs[0], minlength=num_nodes)
    assert set(counts.tolist()) <= {0, 16}
    served = int(wanted.any(dim=1).sum())
    if num_nodes <= 4:  # every source was drawn
        assert int((counts > 0).sum()) == served


def test_sampled_pairs_reach_all_targets_and_repeat() -> None:
    star = undirected(torch.tensor([(0, leaf) for leaf in range(1, 6)]).t())
    draw = [
        sample_pairs(star, 2, num_targets=200, generator=torch.Generator().manual_seed(0))
        for _ in range(2)
    ]
    assert torch.equal(*draw)
    assert {tuple(pair) for pair in draw[0].t().tolist()} == {
        (i, j) for i in range(6) for j in range(6) if i != j
    }
    with pytest.raises(ConfigError):
        sample_pairs(star, 0)


def test_smoothness_change_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="1 layers"):
        smoothness_change([torch.zeros(5, 2)], PATH)
    with pytest.raises(InputError, match="shapes"):
        smoothness_change([torch.zeros(5, 2), torch.zeros(5, 3)], PATH)


def test_sqnr() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(100_000, generator=generator)
    for bits in (2, 4, 8):
        levels = 2**bits
        midpoints = ((x * levels).floor() + 0.5) / levels
        # Uniform in [0, 1]: power 1/3, noise 1/12 of a squared step.
        expected = 10 * math.log10(4 * levels**2)
        assert float(sqnr(x, midpoints)) == pytest.approx(expected, abs=0.1)
    assert float(sqnr(x, x)) == math.inf
    with pytest.raises(InputError):
        sqnr(x, x[:10])
