"""What is remembered of edges, to whom edges belong, and numbers that are none."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg_nn
import torch_geometric.nn.conv as convs
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

import torch_geometric_qlr as qlr
from tests.helpers.conv_zoo import EDGES, ZOO, build, flat
from tests.helpers.crossed import crossed
from tests.helpers.optional import skip_for
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.sparse import CSRGraph, limit_memory

_seeded = torch.Generator().manual_seed(0)
X = torch.randn(6, 8, generator=_seeded)
GRAPH = torch.tensor([[0, 1, 2, 3, 4, 0, 1], [1, 2, 3, 4, 5, 2, 3]])
KINDS = ["quantized", "converted"]


def outputs(model: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    torch.manual_seed(7)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyG's, on layouts
        return [t.clone() for t in flat(model(*args, **kwargs))]


def converted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return qlr.convert(model)


def made(kind: str, layer: nn.Module, *args: Any, **config: Any) -> nn.Module:
    """A model that has seen its arguments, and has run on them often enough to remember."""
    model = qlr.quantize(layer, **({"bits": 8} | config)).eval()
    outputs(model, *args)
    if kind == "converted":
        model = converted(model)
    for _ in range(2):
        outputs(model, *args)
    return model


def fresh(model: nn.Module, *args: Any) -> list[Tensor]:
    """What a model gives that remembers nothing: a copy, and other objects."""
    return outputs(copy.deepcopy(model), *(copy.deepcopy(a) for a in args))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


# Whose edges ######################################################################################


class OwnForward(convs.GCNConv):
    """Normalises itself, and changes what it got afterwards."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Any = None) -> Tensor:
        edge_index, edge_weight = convs.gcn_conv.gcn_norm(edge_index, edge_weight, x.size(0))
        edge_weight.mul_(0.5)
        edge_index.clamp_(max=4)
        out: Tensor = self.propagate(edge_index, x=self.lin(x), edge_weight=edge_weight)
        edge_weight.zero_()
        edge_index.zero_()
        return out


class OwnLoops(convs.GATConv):
    """Adds loops outside, and changes them after the call."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        edges, _ = pyg_nn.conv.gat_conv.add_self_loops(edge_index, num_nodes=x.size(0))
        out: Tensor = super().forward(x, edges)
        edges.zero_()
        return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", [OwnForward, OwnLoops])
def test_edges_made_in_a_forward_are_its_own(cls: Any, kind: str) -> None:
    torch.manual_seed(0)
    layer = cls(8, 4).eval()
    graph = GRAPH.clone()
    truth = outputs(layer, X, graph)
    model = made(kind, layer, X, graph)
    first = outputs(model, X, graph)
    for _ in range(3):
        assert same(outputs(model, X, graph), first)
    assert torch.equal(graph, GRAPH)
    assert (first[0] - truth[0]).abs().max() < 0.1 * truth[0].abs().max()


ATTENDING: dict[str, Any] = {
    "gat": lambda: convs.GATConv(8, 4, heads=2),
    "gat without loops": lambda: convs.GATConv(8, 4, heads=2, add_self_loops=False),
    "gat v2": lambda: convs.GATv2Conv(8, 4, heads=2),
    "transformer": lambda: convs.TransformerConv(8, 4, heads=2),
    "fa": lambda: convs.FAConv(8),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(ATTENDING))
def test_returned_edges_are_the_callers(name: str, kind: str) -> None:
    torch.manual_seed(0)
    layer, graph = ATTENDING[name](), GRAPH.clone()
    args = (X, X, graph) if name == "fa" else (X, graph)
    model = made(kind, layer, *args)
    expected = outputs(model, *args)
    for _ in range(3):
        with torch.no_grad():
            out, (edges, alpha) = model(*args, return_attention_weights=True)
        assert torch.equal(out, expected[0])
        alpha.zero_()
        if edges is not graph:
            edges.zero_()
        assert same(outputs(model, *args), expected)
    assert torch.equal(graph, GRAPH)


# A graph that changes #############################################################################


def _form(name: str, weight: Tensor) -> Any:
    if name == "SparseTensor":
        try:
            row, col = GRAPH
            return SparseTensor(row=col, col=row, value=weight.clone(), sparse_sizes=(6, 6))
        except ImportError as error:
            skip_for(name, error)
    make = to_torch_csr_tensor if name == "csr" else to_torch_coo_tensor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(GRAPH.flip(0), weight.clone(), size=(6, 6))


CHANGING: dict[str, Any] = {
    "gcn": lambda: convs.GCNConv(8, 4),
    "sage": lambda: convs.SAGEConv(8, 4),
    "gin": lambda: convs.GINConv(nn.Linear(8, 4)),
    "gat": lambda: convs.GATConv(8, 4),
    "agnn": lambda: convs.AGNNConv(),
    "supergat": lambda: convs.SuperGATConv(8, 4),
    "appnp": lambda: convs.APPNP(2, 0.1),
    "sgc": lambda: convs.SGConv(8, 4, K=2),
    "tag": lambda: convs.TAGConv(8, 4),
    "cheb": lambda: convs.ChebConv(8, 4, 3),
    "arma": lambda: convs.ARMAConv(8, 4),
    "smp": lambda: qlr.nn.SMP(K=2),
    "cluster": lambda: convs.ClusterGCNConv(8, 4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(CHANGING))
def test_edges_changed_in_place(name: str, kind: str) -> None:
    torch.manual_seed(0)
    graph = GRAPH.clone()
    model = made(kind, CHANGING[name](), X, graph)
    before = outputs(model, X, graph)
    for change in (lambda: graph[1].clamp_(max=3), lambda: graph[0, :3].fill_(5)):
        change()
        after = outputs(model, X, graph)
        assert same(after, fresh(model, X, graph)) and not same(after, before)
        before = after


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gcn", "appnp", "sgc", "tag", "cheb", "arma", "smp"])
def test_weights_changed_in_place(name: str, kind: str) -> None:
    torch.manual_seed(0)
    graph, weight = GRAPH.clone(), torch.rand(7) + 0.5
    model = made(kind, CHANGING[name](), X, graph, weight)
    before = outputs(model, X, graph, weight)
    weight[:3].mul_(3)
    after = outputs(model, X, graph, weight)
    assert same(after, fresh(model, X, graph, weight)) and not same(after, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["csr", "coo", "SparseTensor"])
@pytest.mark.parametrize("name", ["gcn", "appnp", "sgc", "gin", "sage"])
def test_values_of_a_matrix_changed_in_place(name: str, form: str, kind: str) -> None:
    torch.manual_seed(0)
    weight = torch.rand(7) + 0.5
    adj = _form(form, weight)
    model = made(kind, CHANGING[name](), X, adj)
    values = adj.storage.value() if form == "SparseTensor" else adj.values()
    values[:3].mul_(3)
    weight = values.clone()
    order = GRAPH[:, (GRAPH[1] * 6 + GRAPH[0]).argsort()]
    other = copy.deepcopy(model)
    expected = outputs(other, X, _ordered(form, order, weight))
    assert same(outputs(model, X, adj), expected)


def _ordered(form: str, edges: Tensor, weight: Tensor) -> Any:
    if form == "SparseTensor":
        return SparseTensor(row=edges[1], col=edges[0], value=weight, sparse_sizes=(6, 6))
    make = to_torch_csr_tensor if form == "csr" else to_torch_coo_tensor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(edges.flip(0), weight, size=(6, 6))


# Options ##########################################################################################


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fill", ["mean", "min", 2.0, [1.0, 2.0], torch.tensor([1.0, 2.0])], ids=str
)
@pytest.mark.parametrize("cls", [convs.GATConv, convs.GATv2Conv])
def test_options_of_any_type(cls: Any, fill: Any, kind: str) -> None:
    torch.manual_seed(0)
    attr = torch.rand(7, 2)
    layer = cls(8, 4, edge_dim=2, fill_value=torch.tensor(fill) if type(fill) is list else fill)
    graph = GRAPH.clone()
    model = made(kind, layer, X, graph, attr)
    before = outputs(model, X, graph, attr)
    assert same(before, fresh(model, X, graph, attr))
    model.fill_value = torch.tensor([5.0, -5.0])
    after = outputs(model, X, graph, attr)
    assert same(after, fresh(model, X, graph, attr)) and not same(before, after)
    model.fill_value[1] = 3.0
    assert same(outputs(model, X, graph, attr), fresh(model, X, graph, attr))


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_differ_by_little(kind: str) -> None:
    torch.manual_seed(0)
    attr, graph = torch.rand(7, 2000), GRAPH.clone()
    layer = convs.GATConv(8, 4, edge_dim=2000, fill_value=torch.ones(2000))
    model = made(kind, layer, X, graph, attr)
    for change in (lambda: model.fill_value[1000].add_(50), lambda: model.fill_value[0].add_(1e-5)):
        change()
        assert same(outputs(model, X, graph, attr), fresh(model, X, graph, attr))


def test_one_graph_for_several_types_and_layouts() -> None:
    torch.manual_seed(0)
    graph, layer = GRAPH.clone(), convs.GCNConv(8, 4)
    model = made("quantized", layer, X, graph)
    wide = copy.deepcopy(model).double()
    for _ in range(2):
        assert same(outputs(wide, X.double(), graph), fresh(wide, X.double(), graph))
        assert same(outputs(model, X, graph), fresh(model, X, graph))
    # Nodes first or stacks first: the same shape means two numbers of nodes.
    x, other = torch.randn(7, 6, 8), convs.GCNConv(8, 4, node_dim=0)
    first, second = made("quantized", layer, x, graph), made("quantized", other, x, graph)
    for m in (first, second):
        assert same(outputs(m, x, graph), fresh(m, x, graph))
    assert outputs(second, x, graph)[0].shape == (7, 6, 4)


FLAGS: dict[str, tuple[str, list[Any]]] = {
    "gcn": ("add_self_loops", [False, True]),
    "gcn improved": ("improved", [True, False]),
    "gcn normalize": ("normalize", [False, True]),
    "gat": ("add_self_loops", [False, True]),
    "gat slope": ("negative_slope", [0.9, 0.2]),
    "appnp": ("alpha", [0.5, 0.1]),
    "appnp K": ("K", [1, 3]),
    "sgc": ("add_self_loops", [False, True]),
    "sgc K": ("K", [2]),
    "tag": ("normalize", [False, True]),
    "agnn": ("add_self_loops", [False, True]),
    "smp": ("mu", [0.3, 0.1]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(FLAGS))
def test_flags_changed_later(name: str, kind: str) -> None:
    torch.manual_seed(0)
    layer, graph = CHANGING[name.split()[0]](), GRAPH.clone()
    option, values = FLAGS[name]
    model = made(kind, layer, X, graph)
    for value in values:
        setattr(model, option, value)
        setattr(layer, option, value)
        out = outputs(model, X, graph)
        assert same(out, fresh(model, X, graph))
        truth = outputs(layer.eval(), X, graph)[0]
        # Without normalisation the sums of several hops leave the ranges.
        assert name == "tag" or (out[0] - truth).abs().max() < 0.25 * truth.abs().max()
        assert getattr(model, option) == value


# What is remembered ###############################################################################


class Sorts(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "sort" in func.__name__ or func is torch.ops.qlr.csr.default
        return func(*args, **(kwargs or {}))


def _sorts(model: nn.Module, *args: Any) -> int:
    with Sorts() as sorts:
        outputs(model, *args)
    return sorts.count


@pytest.mark.parametrize(
    ("name", "kind"),
    crossed(sorted(n for n in ZOO if any(a is EDGES for a in ZOO[n][1])), KINDS),
)
def test_a_warm_call_sorts_no_more_than_the_layer_itself(name: str, kind: str) -> None:
    layer, args = build(name)
    layer.eval()
    outputs(layer, *args)
    assert _sorts(made(kind, layer, *args), *args) <= _sorts(layer, *args)


@pytest.mark.parametrize(("name", "kind"), crossed(sorted(CHANGING), KINDS, whole=("gcn", "gat")))
def test_what_is_remembered_goes_with_the_graph(name: str, kind: str) -> None:
    torch.manual_seed(0)
    graph = GRAPH.clone()
    model = made(kind, CHANGING[name](), X, graph)
    alive = weakref.ref(graph)
    del graph
    gc.collect()
    assert alive() is None
    memory = []
    for _ in range(2):  # nor does anything of it stay
        for _ in range(8):
            outputs(model, X, GRAPH.clone())
        gc.collect()
        memory.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
    assert memory[1] <= memory[0] + 2, memory


@pytest.mark.parametrize("name", ["gcn", "gat", "cheb"])
def test_memory_has_a_bound(name: str) -> None:
    torch.manual_seed(0)
    graph = GRAPH.clone()
    model = made("converted", CHANGING[name](), X, graph)
    expected = outputs(model, X, graph)
    try:
        limit_memory(0)
        other = GRAPH.clone()
        for _ in range(3):
            assert same(outputs(model, X, other), expected)
        assert _sorts(model, X, other) > 0  # nothing was kept
    finally:
        limit_memory(4 << 30)
    assert same(outputs(model, X, graph), expected)


# Numbers that are none ############################################################################


class Propagated(nn.Module):
    def __init__(self, propagation: nn.Module) -> None:
        super().__init__()
        self.mlp, self.propagation = pyg_nn.MLP([8, 16, 4], norm="batch_norm"), propagation

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Any = None) -> Tensor:
        out: Tensor = self.propagation(self.mlp(x), edge_index, edge_weight)
        return out


MODELS: dict[str, Any] = {
    "GCN": lambda: pyg_nn.GCN(8, 16, 2, 4, norm="batch_norm"),
    "SAGE": lambda: pyg_nn.GraphSAGE(8, 16, 2, 4, norm="batch_norm"),
    "SAGE max": lambda: pyg_nn.GraphSAGE(8, 16, 2, 4, aggr="max"),
    "GIN": lambda: pyg_nn.GIN(8, 16, 2, 4),
    "GAT": lambda: pyg_nn.GAT(8, 16, 2, 4, heads=2),
    "APPNP": lambda: Propagated(convs.APPNP(2, 0.1)),
    "SGC": lambda: Propagated(convs.SGConv(4, 4, K=2)),
}
WEIGHTED = ("GCN", "APPNP", "SGC")
UNKNOWN_WIDTH = ("GIN", "APPNP")


def _places(name: str, model: nn.Module) -> list[str]:
    own = [n for n, _ in [*model.named_parameters(), *model.named_buffers()]]
    kept = [n for n in own if "num_batches" not in n]
    return ["x", *(["edge_weight"] if name in WEIGHTED else []), *kept]


def _poisoned(model: nn.Module, inputs: dict[str, Tensor], place: str, value: float) -> Any:
    """Copies with one number that is none; :obj:`None` if the model has no such place."""
    model = copy.deepcopy(model)
    inputs = {name: t.clone() for name, t in inputs.items()}
    tensors = inputs | dict(model.named_parameters()) | dict(model.named_buffers())
    if place not in tensors:
        return None
    with torch.no_grad():
        tensors[place].view(-1)[3 % tensors[place].numel()] = value
    return model, inputs


@pytest.mark.parametrize(
    ("name", "granularity"),
    crossed(sorted(MODELS), [{}, "tensor", "feature"]),
)
def test_no_number_comes_from_what_is_none(name: str, granularity: Any) -> None:
    if granularity == "feature" and name in UNKNOWN_WIDTH:
        pytest.skip("its layers do not tell how many features they are given")
    torch.manual_seed(0)
    layer = MODELS[name]().eval()
    inputs = {"x": X, "edge_index": GRAPH}
    if name in WEIGHTED:
        inputs["edge_weight"] = torch.rand(7)
    options = {"granularity": granularity} if granularity else {}
    for bits, value in ((8, float("nan")), (2, float("inf")), (8, -float("inf"))):
        model = qlr.quantize(layer, bits=bits, **options).eval()
        outputs(model, **inputs)
        packed = converted(model)
        for _ in range(2):
            outputs(packed, **inputs)
        for place in _places(name, layer):
            _check_place(layer, model, packed, inputs, place, value)


def _check_place(
    layer: nn.Module,
    model: nn.Module,
    packed: nn.Module,
    inputs: dict[str, Tensor],
    place: str,
    value: float,
) -> None:
    found = _poisoned(layer, inputs, place, value)
    lost = ~outputs(found[0], **found[1])[0].isfinite()
    for kind in (model, packed, "convert"):
        found = _poisoned(model if kind == "convert" else kind, inputs, place, value)
        if found is None:  # a converted model has no such weight any more
            continue
        try:
            ready = converted(found[0]) if kind == "convert" else found[0]
            for _ in range(2):
                out = outputs(ready, **found[1])[0]
                assert not (lost & out.isfinite()).any(), (place, value)
        except InputError as error:
            assert str(error).split(":")[0].split(".")[0] in dict(layer.named_children()), error


def test_edges_that_stay_are_not_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, edges = torch.randn(20, 8), torch.randint(0, 20, (2, 90))
    q = qlr.quantize(pyg_nn.GCN(8, 4, 2), bits=8).eval()
    with torch.no_grad():
        q(x, edges)  # the float layers make edges of their own, with the same values
        packed = qlr.convert(q)
        first = [packed(x, edges) for _ in range(3)][-1]
        compared: list[int] = []
        equal = torch.equal
        monkeypatch.setattr(torch, "equal", lambda a, b: compared.append(1) or equal(a, b))
        again = packed(x, edges)
        monkeypatch.undo()
        assert torch.equal(again, first) and not compared
        edges[0, 0] = (edges[0, 0] + 1) % 20  # but a change in place is seen
        torch.testing.assert_close(packed(x, edges), qlr.convert(q)(x, edges), rtol=0, atol=0)


@pytest.mark.parametrize("make", [pyg_nn.GCNConv, pyg_nn.GraphConv], ids=["made", "given"])
def test_weights_are_brought_into_order_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, edges, weight = torch.randn(20, 8), torch.randint(0, 20, (2, 90)), torch.rand(90)
    q = qlr.quantize(make(8, 4), bits=8).eval()
    with torch.no_grad():
        q(x, edges, weight)
        packed = qlr.convert(q)
        first = [packed(x, edges, weight) for _ in range(2)][-1]
        calls: list[int] = []
        in_order = CSRGraph.in_order
        monkeypatch.setattr(
            CSRGraph, "in_order", lambda graph, v: calls.append(1) or in_order(graph, v)
        )
        assert torch.equal(packed(x, edges, weight), first) and not calls
        weight.mul_(2)  # a change in place is seen
        out = packed(x, edges, weight)
        torch.testing.assert_close(out, q(x, edges, weight), rtol=0, atol=1e-5)
        assert len(calls) >= 1 and not (make is pyg_nn.GraphConv and torch.equal(out, first))
