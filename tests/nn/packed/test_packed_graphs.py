"""Every form of a graph, every shape of it, and what is remembered of it."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.nn import (
    APPNP,
    GATConv,
    GCNConv,
    GINConv,
    SAGEConv,
    SGConv,
    SimpleConv,
)

from tests.helpers.conv_zoo import EDGES, NODES, ZOO, build
from tests.helpers.crossed import crossed
from tests.helpers.graphs import all_forms, edge_index_object, edge_lists
from tests.helpers.packed_cases import TOLERANCE, assert_agrees, deviation, packed, quantized, run
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.sparse import csr_graph

WITH_GRAPH = [n for n in sorted(ZOO) if any(a is EDGES for a in ZOO[n][1])]


@pytest.mark.parametrize(
    ("name", "weighted"),
    crossed(WITH_GRAPH, [False, True], whole=("GCNConv", "GATConv"), ids=["ones", "weights"]),
)
def test_every_form(name: str, weighted: bool) -> None:
    layer, args = build(name)
    model = quantized(layer, args, bits=4)
    converted = packed(model)
    values = torch.linspace(0.5, 2, EDGES.size(1)) if weighted else torch.ones(EDGES.size(1))
    forms = all_forms(EDGES, values, NODES) | {"EdgeIndex": edge_index_object(EDGES, NODES)}
    taken = 0
    for graph in forms.values():
        other = tuple(graph if a is EDGES else a for a in args)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyG's, on converting layouts
                run(model, *other)
        except Exception:  # a form that this layer does not take, quantized or not
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_agrees(model, converted, *other)
        taken += 1
    assert taken or name in ("PANConv", "HypergraphConv")


def _layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "gcn": GCNConv(5, 4),
        "sage": SAGEConv(5, 4),
        "gin": GINConv(nn.Linear(5, 4)),
        "gat": GATConv(5, 4, heads=2),
        "appnp": APPNP(3, 0.1),
    }


@settings(max_examples=25, deadline=None)
@given(
    graph=edge_lists(), bits=st.sampled_from([8, 4, 2, 1]), name=st.sampled_from(list(_layers()))
)
def test_any_graph(graph: tuple[Tensor, int], bits: int, name: str) -> None:
    # Empty graphs, isolated nodes, duplicates, loops and hubs are among them.
    edge_index, num_nodes = graph
    x = torch.randn(num_nodes, 5, generator=torch.Generator().manual_seed(num_nodes))
    model = quantized(_layers()[name], (x, edge_index), bits=bits)
    assert_agrees(model, packed(model), x, edge_index)


@pytest.mark.parametrize("name", sorted(_layers()))
def test_no_nodes_at_all(name: str) -> None:
    x, edge_index = torch.randn(4, 5), torch.tensor([[0, 1], [1, 2]])
    converted = packed(quantized(_layers()[name], (x, edge_index), bits=4))
    out = converted(x[:0], edge_index[:, :0])
    assert out.size(0) == 0


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("name", ["sum", "mean", "weighted", "max"])
def test_a_hub_overflows_nothing(name: str, bits: int) -> None:
    num_nodes, features = 70_000, 17
    conv = {
        "sum": lambda: GINConv(nn.Identity()),
        "mean": lambda: SimpleConv(aggr="mean"),
        "weighted": lambda: APPNP(1, 0.1),
        "max": lambda: SimpleConv(aggr="max"),
    }[name]()
    edge_index = torch.stack([torch.arange(num_nodes), torch.zeros(num_nodes, dtype=torch.long)])
    x = torch.ones(num_nodes, features)  # the largest code, but for one node
    x[0] = -1
    model = quantized(conv, (x, edge_index), bits=bits)
    converted = packed(model)
    # Of so many numbers a float32 sum (as of the quantized model, and of the degrees that
    # normalise) is further from the truth than an integer one.
    expected = [out.float() for out in run(model.double(), x.double(), edge_index)]
    assert deviation(expected, run(converted, x, edge_index)) <= TOLERANCE


@pytest.mark.parametrize("conv", [SAGEConv, GATConv])
def test_bipartite(conv: Any) -> None:
    kwargs = {"add_self_loops": False} if conv is GATConv else {}
    layer = conv((5, 3), 4, **kwargs)
    x = (torch.randn(6, 5), torch.randn(2, 3))
    edge_index = torch.tensor([[0, 5, 5, 3], [0, 1, 1, 0]])
    model = quantized(layer, (x, edge_index), bits=4)
    converted = packed(model)
    assert_agrees(model, converted, x, edge_index)
    if conv is SAGEConv:
        layer = conv(5, 4, root_weight=False)
        source_only = ((torch.randn(6, 5), None), edge_index)
        model = quantized(layer, (*source_only, (6, 2)), bits=4)
        assert_agrees(model, packed(model), *source_only, (6, 2))


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_both_flows(flow: str) -> None:
    x, edge_index = torch.randn(5, 5), torch.tensor([[0, 1, 1, 4], [1, 2, 0, 3]])
    model = quantized(GCNConv(5, 4, flow=flow), (x, edge_index), bits=4)
    assert_agrees(model, packed(model), x, edge_index)


def test_an_index_out_of_range_is_refused() -> None:
    x, edge_index = torch.randn(4, 5), torch.tensor([[0, 1], [1, 2]])
    converted = packed(quantized(SAGEConv(5, 4), (x, edge_index), bits=4))
    with pytest.raises(InputError, match="there are 4"):
        converted(x, torch.tensor([[0, 9], [1, 2]]))


@pytest.mark.parametrize("name", ["gcn", "gat", "appnp"])
def test_a_graph_is_prepared_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_geometric_qlr.sparse.csr import CSRGraph

    x, edge_index = torch.randn(5, 5), torch.tensor([[0, 1, 1, 4], [1, 2, 0, 3]])
    model = quantized(_layers()[name], (x, edge_index), bits=4)
    converted = packed(model)
    built = []
    original = CSRGraph.from_edge_index.__func__
    monkeypatch.setattr(
        CSRGraph,
        "from_edge_index",
        classmethod(lambda cls, *args: built.append(1) or original(cls, *args)),
    )
    for _ in range(3):
        converted(x, edge_index)
    assert len(built) == 1

    edge_index[1, 0] = 3  # changed in place: prepared again, and right
    assert_agrees(model, converted, x, edge_index)
    assert len(built) == 2


PREPARING = (
    *("sort", "qlr::csr", "scatter", "unique", "bincount", "::coalesce", "convert_indices", "pow"),
)


def _preparation(model: nn.Module, x: Tensor, graph: Any) -> set[str]:
    """Operations of one call that sort or normalise."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        run(model, x, graph)
    names = {event.key for event in seen.key_averages()}
    return {name for name in names if any(word in name for word in PREPARING)}


# PyG's, of the quantized model's own call.
@pytest.mark.filterwarnings("ignore:Converting sparse tensor to CSR")
@pytest.mark.parametrize("name", ["gcn", "sage", "gin", "appnp", "sgc"])
def test_a_second_call_neither_sorts_nor_normalises(name: str) -> None:
    layer = (_layers() | {"sgc": SGConv(5, 4, K=2)})[name]
    x = torch.randn(NODES, 5)
    forms = all_forms(EDGES, torch.ones(EDGES.size(1)), NODES)
    if name in ("gcn", "appnp", "sgc"):
        del forms["csc"]  # which PyG's normalisation does not take
    forms |= {"edges": EDGES.clone(), "EdgeIndex": edge_index_object(EDGES, NODES)}
    for form, graph in forms.items():
        converted = packed(quantized(layer, (x, graph), bits=4))
        first, second = (_preparation(converted, x, graph) for _ in range(2))
        assert not second, (form, second)
        assert first or form in ("csr", "SparseTensor"), form  # whose rows are there already


def test_nothing_keeps_a_graph_alive() -> None:
    for name, layer in _layers().items():
        x, edge_index = torch.randn(5, 5), torch.tensor([[0, 1, 1, 4], [1, 2, 0, 3]])
        converted = packed(quantized(layer, (x, edge_index), bits=4))
        converted(x, edge_index)
        alive = weakref.ref(edge_index)
        del edge_index
        gc.collect()
        assert alive() is None, name


def test_weights_of_edges() -> None:
    x, edge_index = torch.randn(5, 5), torch.tensor([[0, 1, 1, 4], [1, 2, 0, 3]])
    weight = torch.tensor([0.5, 1.0, 2.0, 0.1])
    model = quantized(GCNConv(5, 4), (x, edge_index, weight), bits=4)
    converted = packed(model)
    assert_agrees(model, converted, x, edge_index, weight)
    first = run(converted, x, edge_index, weight)
    weight.mul_(2)
    assert_agrees(model, converted, x, edge_index, weight)
    assert deviation(first, run(converted, x, edge_index, weight)) > TOLERANCE
    assert csr_graph(edge_index).num_edges == 4
