"""Small results of a converted model that is called again, with everything but numbers prepared."""

from __future__ import annotations

import copy
import gc
import importlib
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCN, GIN, GCNConv, GINConv, GraphConv, SAGEConv

import torch_geometric_qlr as qlr
from tests.helpers.crossed import crossed
from torch_geometric_qlr.codes import repeated
from torch_geometric_qlr.codes.chains import Chains
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.sparse import limit_memory

_seeded = torch.Generator().manual_seed(0)
X = torch.randn(30, 8, generator=_seeded)
EDGES = torch.randint(0, 30, (2, 120), generator=_seeded)
WEIGHT = torch.rand(120, generator=_seeded)


def gin(**options: Any) -> nn.Module:
    child = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    return GINConv(child, **options)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "gin": lambda: gin(eps=0.3),
    "gin of means": lambda: gin(eps=-1.7, train_eps=True, aggr="mean"),
    "turned gin": lambda: gin(flow="target_to_source"),
    "sage": lambda: SAGEConv(8, 4),
    "graph": lambda: GraphConv(8, 4),
    "gcn": lambda: GCNConv(8, 4),
    "gin model": lambda: GIN(8, 8, 2, 4, norm="batch_norm"),
    "gcn model": lambda: GCN(8, 8, 2, 4),
}


@pytest.fixture(autouse=True)
def results_of_any_size_may_wait() -> None:
    """Here they do not, as on small graphs."""
    assert Chains.smallest > X.numel()


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was called of the code that knows all cases."""
    names: list[str] = []
    messages = importlib.import_module("torch_geometric_qlr.nn.message_passing")

    def spied(module: Any, name: str) -> Any:
        own = getattr(module, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            names.append(name)
            return own(*args, **kwargs)

        return run

    monkeypatch.setattr(messages, "gather", spied(messages, "gather"))
    for name in ("product", "_prepared_product", "_prepared_sum"):
        monkeypatch.setattr(repeated, name, spied(repeated, name))
    return names


def both(layer: nn.Module, *args: Any, **config: Any) -> tuple[nn.Module, nn.Module]:
    """A quantized model and the converted one, which has met its graph twice and is prepared."""
    model = qlr.quantize(layer.eval(), **({"bits": 8} | config)).eval()
    with torch.no_grad():
        model(*args)
        packed = qlr.convert(model)
        for _ in range(3):
            packed(*args)
    return model, packed


def agree(model: nn.Module, packed: nn.Module, *args: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = packed(*args)
        assert torch.equal(out, model(*args))
    return out


@pytest.mark.parametrize(("name", "granularity"), crossed(sorted(LAYERS), ["tensor", "node"]))
def test_the_same_bits(name: str, granularity: str, entered: list[str]) -> None:
    torch.manual_seed(0)
    bits = 2 if "model" in name else 8
    model, packed = both(LAYERS[name](), X, EDGES, granularity=granularity, bits=bits)
    expected = []
    with torch.no_grad():
        scaled = [scale * X for scale in (1.0, 0.1, 7.0)]
        expected = [model(x, EDGES) for x in scaled]
        entered.clear()
        assert all(torch.equal(packed(x, EDGES), y) for x, y in zip(scaled, expected, strict=True))
    if "gcn" in name and granularity == "node":
        assert "gather" in entered  # scales of sources go into the weights of edges
    else:
        assert not entered


def test_another_graph_in_every_call(entered: list[str]) -> None:
    torch.manual_seed(0)
    model, packed = both(LAYERS["gin model"](), X, EDGES)
    batches = [(torch.randn(n, 8), torch.randint(0, n, (2, 3 * n))) for n in (5, 30, 12, 1)]
    for x, edges in batches:
        agree(model, packed, x, edges)
    entered.clear()
    with torch.no_grad():
        for x, edges in batches:
            packed(x, edges.clone())
    assert not entered


@torch.no_grad()
@pytest.mark.parametrize("correction", [False, True])
def test_propagation_of_several_steps(correction: bool) -> None:
    torch.manual_seed(0)
    smooth = qlr.transforms.SmoothPropagation(correction=correction)(gin(eps=0.3, aggr="mean"))
    model, packed = both(smooth, X, EDGES, granularity="tensor")
    for _ in range(3):
        agree(model, packed, X, EDGES)


@torch.no_grad()
def test_edges_that_are_none() -> None:
    model, packed, edges = prepared_gin()
    with pytest.raises(ValueError, match="integer type"):
        packed(X, edges.float())
    with pytest.raises(ValueError, match="two-dimensional"):
        packed(X, edges.view(-1))
    with pytest.raises(InputError, match="GINConv"):
        packed(X, edges + 1000)
    agree(model, packed, X, edges)
    agree(model, packed, X, edges[:, :0])


@pytest.mark.parametrize("kind", [GCNConv, GraphConv])
def test_weights_of_edges(kind: Any, entered: list[str]) -> None:
    torch.manual_seed(0)
    weight = WEIGHT.clone()
    model, packed = both(kind(8, 4), X, EDGES, weight, granularity="tensor")
    entered.clear()
    first = agree(model, packed, X, EDGES, weight)
    weight[3] = 5.0
    assert not torch.equal(agree(model, packed, X, EDGES, weight), first)
    assert not torch.equal(agree(model, packed, X, EDGES, 2 * weight), first)
    agree(model, packed, X, EDGES)


def prepared_gin() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    edges = EDGES.clone()
    return *both(gin(eps=0.3), X, edges, granularity="tensor"), edges


def test_edges_that_were_written_to() -> None:
    model, packed, edges = prepared_gin()
    before = agree(model, packed, X, edges)
    edges[:, 5:] = edges[:, 5:].flip(0)
    assert not torch.equal(agree(model, packed, X, edges), before)


def test_more_nodes_on_the_same_edges() -> None:
    model, packed, edges = prepared_gin()
    for rows in (40, 30, 35):
        agree(model, packed, torch.randn(rows, 8), edges)
    with pytest.raises(InputError), torch.no_grad():
        packed(X[:3], edges)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "eps": lambda conv: conv.eps.fill_(2.5),
    "eps of its own": lambda conv: setattr(conv, "eps", torch.full((1,), 4.0)),
    "eps per feature": lambda conv: setattr(conv, "eps", torch.rand(8)),
    "flow": lambda conv: setattr(conv, "flow", "target_to_source"),
    "bias": lambda conv: conv.nn[2].bias.add_(1.0),
    "another bias": lambda conv: setattr(conv.nn[2], "bias", nn.Parameter(torch.ones(4))),
    "no bias": lambda conv: setattr(conv.nn[2], "bias", None),
    "child": lambda conv: setattr(conv, "nn", nn.Tanh()),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
@torch.no_grad()
def test_what_a_user_changes(name: str) -> None:
    model, packed, edges = prepared_gin()
    before = agree(model, packed, X, edges)
    torch.manual_seed(1)
    CHANGES[name](model)
    torch.manual_seed(1)
    CHANGES[name](packed)
    for _ in range(4):
        assert not torch.equal(agree(model, packed, X, edges), before)


@pytest.mark.parametrize("place", ["nn.0._qlr.input", "_qlr.source_x.0"])
@pytest.mark.parametrize("in_place", [True, False])
@torch.no_grad()
def test_ranges_that_were_changed(place: str, in_place: bool) -> None:
    _, packed, edges = prepared_gin()
    before = packed(X, edges)
    quantizer: Any = packed.get_submodule(place)
    if in_place:
        quantizer.hi.mul_(0.25)
    else:
        quantizer.hi = 0.25 * quantizer.hi
    after = packed(X, edges)
    assert not torch.equal(after, before)
    assert torch.equal(copy.deepcopy(packed)(X, edges.clone()), after)


@torch.no_grad()
def test_another_state_is_loaded() -> None:
    _, packed, edges = prepared_gin()
    torch.manual_seed(5)
    _, other = both(gin(eps=0.3), 2 * X, edges, granularity="tensor")
    expected = other(X, edges)
    assert not torch.equal(packed(X, edges), expected)
    packed.load_state_dict(other.state_dict())
    assert torch.equal(packed(X, edges), expected)


@torch.no_grad()
def test_other_codes_of_one_weight_are_loaded() -> None:
    _, packed, edges = prepared_gin()
    torch.manual_seed(5)
    _, other = both(gin(eps=0.3), X, edges, granularity="tensor")
    before = packed(X, edges)
    weights: list[Any] = [conv.get_submodule("nn.0._qlr.weight") for conv in (packed, other)]
    weights[0].load_state_dict(weights[1].state_dict())
    after = packed(X, edges)
    assert not torch.equal(after, before)
    assert torch.equal(copy.deepcopy(packed)(X, edges.clone()), after)


@torch.no_grad()
def test_who_watches_the_messages_is_told() -> None:
    model, packed, edges = prepared_gin()
    layer: Any = packed
    expected, seen = agree(model, packed, X, edges), []
    handle = layer.register_propagate_forward_hook(lambda *args: seen.append(args[-1]))
    with pytest.warns(qlr.errors.QLRWarning, match="a hook sits on its messages"):
        torch.testing.assert_close(packed(X, edges), expected)
    handle.remove()
    assert len(seen) == 1
    own = layer.message

    def message(x_j: Tensor) -> Tensor:
        seen.append(x_j)
        out: Tensor = own(x_j)
        return out

    layer.message = message
    with pytest.warns(qlr.errors.QLRWarning, match=r"message\(\) was replaced"):
        torch.testing.assert_close(packed(X, edges), expected)
    del layer.message
    assert len(seen) == 2
    assert torch.equal(packed(X, edges), expected)


@torch.no_grad()
def test_hooks_of_torch_run() -> None:
    model, packed, edges = prepared_gin()
    layer: Any = packed
    seen: list[Any] = []
    layer.nn[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    layer.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    out = agree(model, packed, X, edges)
    assert len(seen) == 2 and torch.equal(seen[1], out)


def test_what_is_refused() -> None:
    _, packed, edges = prepared_gin()
    with torch.no_grad():
        for x, message in (
            (X.double(), "float64"),
            (torch.full_like(X, float("nan")), "NaN"),
            (X[:, :3], "columns|3"),
        ):
            with pytest.raises(InputError, match=message):
                packed(x, edges)
    with pytest.raises(InputError, match="requires grad"):
        packed(X.clone().requires_grad_(), edges)
    with pytest.raises(InputError, match="training"), torch.no_grad():
        packed.train()(X, edges)
    with pytest.raises(InputError, match="cast to float64"), torch.no_grad():
        packed.eval().double()(X, edges)


@torch.no_grad()
def test_the_graph_is_forgotten_with_its_edges() -> None:
    _, packed, edges = prepared_gin()
    state: Any = packed._modules["_qlr"]
    entry = state.prepared.met.terms
    assert entry() is not None
    gone = weakref.ref(edges)
    del edges
    gc.collect()
    assert gone() is None and entry() is None


@torch.no_grad()
def test_nothing_is_remembered_where_it_must_not_be() -> None:
    model, packed, edges = prepared_gin()
    try:
        limit_memory(0)
        other = edges.clone()
        for _ in range(4):
            agree(model, packed, X, other)
    finally:
        limit_memory(4 << 30)
    with torch.inference_mode():
        inner = edges.clone()
        for _ in range(4):
            out = packed(X, inner)
            inner[0, 0] = (inner[0, 0] + 1) % 30
    assert not torch.equal(out, model(X, edges))


@torch.no_grad()
def test_threads_with_graphs_of_their_own() -> None:
    model, packed, _ = prepared_gin()
    graphs = [torch.randint(0, 30, (2, 90)) for _ in range(3)]
    expected = [model(X, graph) for graph in graphs]
    wrong: list[int] = []

    def run(i: int) -> None:
        with torch.no_grad():
            for _ in range(60):
                if not torch.equal(packed(X, graphs[i]), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@torch.no_grad()
def test_large_results_take_the_way_of_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, packed, edges = prepared_gin()
    monkeypatch.setattr(Chains, "smallest", 0)
    monkeypatch.setattr(torch.ops.qlr, "quantize_linear", None)
    seen: list[Tensor] = []
    for _ in range(3):
        seen.append(packed(X, edges))
    monkeypatch.undo()
    assert all(torch.equal(out, model(X, edges)) for out in seen)


def test_a_linear_takes_other_inputs_in_between() -> None:
    torch.manual_seed(0)
    model = qlr.quantize(nn.Linear(8, 4), bits=8).eval()
    with torch.no_grad():
        model(X)
    packed = qlr.convert(model)
    codes = qlr.pack_features(packed, X)
    batch = X.view(5, 6, 8)
    for _ in range(2):
        agree(model, packed, X)
        agree(model, packed, batch)
        with torch.no_grad():
            torch.testing.assert_close(packed(codes), model(X))
            torch.testing.assert_close(packed(X.to_sparse()), model(X.to_sparse()))
        agree(model, packed, X[:0])
