"""Weights of edges as integers: what training rounds to is what kernels multiply by."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.graphs import edge_lists
from torch_geometric_qlr.quantizers import EdgeWeightQuant
from torch_geometric_qlr.sparse import csr_graph
from torch_geometric_qlr.tensor import edge_codes

BITS = st.integers(2, 8)
#: Among them ties, zeros, and rows of nothing but tiny numbers.
NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 127.0, 63.5, 1e-31, -1e-20, 3e4]) | st.floats(
    -10, 10, width=32
)


@st.composite
def weighted(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    edges, nodes = draw(edge_lists())
    count = edges.size(1)
    return edges, torch.tensor(draw(st.lists(NUMBERS, min_size=count, max_size=count))), nodes


def by_hand(weight: list[float], target: list[int], rows: int, bits: int) -> Tensor:
    """In plain Python, in double precision; `round` is half to even."""
    out = []
    for w, i in zip(weight, target, strict=True):
        largest = max(abs(v) for v, j in zip(weight, target, strict=True) if j == i)
        t = largest / (2 ** (bits - 1) - 1) if largest > 1e-30 else 1.0
        out.append(t * round(w / t))
    return torch.tensor(out, dtype=torch.float64)


@given(weighted(), BITS)
def test_values_are_those_of_the_codes(graph: tuple[Tensor, Tensor, int], bits: int) -> None:
    edges, weight, nodes = graph
    weight = weight.float()
    csr = csr_graph(edges, weight, num_src=nodes, num_dst=nodes)
    assert csr.value is not None and csr.perm is not None
    codes, scale = edge_codes(csr.rowptr, csr.col, csr.value, bits=bits)
    target = edges[1][csr.perm.long()]
    rounded = EdgeWeightQuant(bits)(weight, edges[1], nodes)
    assert torch.equal(rounded[csr.perm.long()], codes * scale[target])
    assert codes.abs().max() <= 2 ** (bits - 1) - 1 if codes.numel() else True
    assert bool(((rounded - weight).abs() <= 0.5001 * scale[edges[1]]).all())


@given(weighted(), BITS)
def test_against_plain_python(graph: tuple[Tensor, Tensor, int], bits: int) -> None:
    edges, weight, nodes = graph
    weight = weight.float()
    rounded = EdgeWeightQuant(bits)(weight, edges[1], nodes).double()
    expected = by_hand(weight.tolist(), edges[1].tolist(), nodes, bits)
    step = EdgeWeightQuant(bits).codes(*_rows(edges, weight, nodes))[1][edges[1]].double()
    off = (rounded - expected).abs()
    # In float32 a quotient beside the middle may come to lie on it.
    halves = (weight.double() / step % 1 - 0.5).abs() < 1e-4
    assert bool((off <= 1e-5 * step.clamp_min(1e-12) * 127 + halves * step * 1.01).all())


def _rows(edges: Tensor, weight: Tensor, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    csr = csr_graph(edges, weight, num_src=nodes, num_dst=nodes)
    assert csr.value is not None
    return csr.rowptr, csr.col, csr.value


@given(weighted(), BITS, st.integers(0, 1000))
def test_scales_of_sources_go_into_the_codes(
    graph: tuple[Tensor, Tensor, int], bits: int, seed: int
) -> None:
    edges, weight, nodes = graph
    weight = weight.float()
    s = torch.rand(nodes, 1, generator=torch.Generator().manual_seed(seed)) + 0.01
    csr = csr_graph(edges, weight, num_src=nodes, num_dst=nodes)
    assert csr.value is not None and csr.perm is not None
    codes, scale = EdgeWeightQuant(bits).codes(csr.rowptr, csr.col, csr.value, s)
    of_source = s.view(-1)[edges[0]]
    rounded = EdgeWeightQuant(bits)(weight, edges[1], nodes, of_source)
    order = csr.perm.long()
    assert torch.equal(rounded[order], codes * scale[edges[1][order]] / of_source[order])


def test_gradients_pass_straight_through_and_change_no_value() -> None:
    weight = torch.tensor([0.3, -1.7, 1e-3, 12.0], requires_grad=True)
    target = torch.tensor([0, 0, 0, 1])
    rounded = EdgeWeightQuant(3)(weight, target, 2)
    assert torch.equal(rounded.detach(), EdgeWeightQuant(3)(weight.detach(), target, 2))
    (rounded * torch.tensor([2.0, 3.0, 5.0, 7.0])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0, 3.0, 5.0, 7.0]


def test_transforms_see_the_identity() -> None:
    quantizer, target = EdgeWeightQuant(4), torch.tensor([0, 1, 0])
    weight, tangent = torch.tensor([1.0, 2.0, 0.1]), torch.tensor([1.0, 10.0, 100.0])

    def run(w: Tensor) -> Tensor:
        return quantizer(w, target, 2)

    value, pushed = torch.func.jvp(run, (weight,), (tangent,))
    assert torch.equal(value, run(weight)) and torch.equal(pushed, tangent)
    assert torch.equal(torch.func.grad(lambda w: run(w).sum())(weight), torch.ones(3))
    batch = torch.stack([weight, 3 * weight])
    assert torch.equal(torch.func.vmap(run)(batch), torch.stack([run(w) for w in batch]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_none(bad: float) -> None:
    weight, target = torch.tensor([1.0, bad, 2.0]), torch.tensor([0, 0, 1])
    rounded = EdgeWeightQuant(8)(weight, target, 2)
    assert rounded.isnan().tolist() == [True, True, False]


def test_hubs_keep_their_edges() -> None:
    """GCN's weights into a leaf of a hub, and into the hub, whose degree is 30,000."""
    hub, degree = 0, 30_000
    into_leaf = torch.tensor([(degree * 2) ** -0.5, 0.5])
    into_hub = torch.cat([torch.full((degree,), (degree * 2) ** -0.5), torch.tensor([1 / degree])])
    weight = torch.cat([into_leaf, into_hub])
    target = torch.cat([torch.ones(2), torch.full((degree + 1,), hub)]).long()
    assert bool((EdgeWeightQuant(8)(weight, target, 2) != 0).all())


def test_types_and_shapes() -> None:
    target = torch.tensor([0, 0, 1])
    quantizer = EdgeWeightQuant(4)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        weight = torch.tensor([[1.0], [0.4], [3.0]], dtype=dtype)
        out = quantizer(weight, target, 2)
        assert out.dtype == dtype and out.shape == (3, 1)
    assert quantizer(torch.tensor([1, 3, 5]), target, 2).tolist() == pytest.approx([6 / 7, 3, 5])
    assert quantizer(torch.empty(0), target[:0], 0).shape == (0,)


def test_copies() -> None:
    quantizer = EdgeWeightQuant(4)
    for other in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert other.bits == 4 and not other.state_dict()
    assert repr(quantizer) == "EdgeWeightQuant(bits=4)"
