"""Layers that users write, and every form of input a layer takes."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg_nn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, GraphConv, MessagePassing, SAGEConv
from torch_geometric.utils import spmm

import torch_geometric_qlr as qlr
from tests.helpers.conv_zoo import EDGES, FEATURES, HIDDEN, NODES, X
from torch_geometric_qlr.errors import ConfigError, InputError, UnsupportedLayerError
from torch_geometric_qlr.nn import find_spec
from torch_geometric_qlr.quantizers import LearnedRangeQuant

F, H = FEATURES, HIDDEN
LOCAL_EDGES = torch.stack([EDGES[0] % 5, EDGES[1] % 7])  # from 5 sources to 7 targets


def ranges(model: nn.Module) -> dict[str, LearnedRangeQuant]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LearnedRangeQuant)}


def assert_quantized(model: nn.Module, *args: Any, bits: int = 2, **kwargs: Any) -> nn.Module:
    """Every quantizer acts, trains, and the result is not the float one."""
    torch.manual_seed(3)
    quantized = qlr.quantize(model, bits=bits)
    out = quantized(*args, **kwargs)
    assert not torch.equal(out, model(*args, **kwargs)) and out.isfinite().all()
    out.square().sum().backward()
    assert all(bool(q.calibrated) for q in ranges(quantized).values())
    assert any(bool(p.grad.abs().sum() > 0) for p in qlr.quant_parameters(quantized))
    return quantized


# Layers that users write ##########################################################################


class Plain(MessagePassing):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)


class OwnMessage(MessagePassing):
    def __init__(self) -> None:
        super().__init__(aggr="max")
        self.lin = pyg_nn.Linear(2 * F, H)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)

    def message(self, x_i: Tensor, x_j: Tensor) -> Tensor:
        return self.lin(torch.cat([x_i, x_j - x_i], dim=-1))


class Weighted(MessagePassing):
    """With a fused path of its own."""

    def forward(self, x: Tensor, edge_index: Any, weight: Tensor | None = None) -> Tensor:
        return self.propagate(edge_index, x=x, weight=weight)

    def message(self, x_j: Tensor, weight: Tensor | None) -> Tensor:
        return x_j if weight is None else weight.view(-1, 1) * x_j

    def message_and_aggregate(self, adj_t: Any, x: Tensor) -> Tensor:
        return spmm(adj_t, x, reduce=self.aggr)


class TupleMessages(MessagePassing):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return torch.cat(self.propagate(edge_index, x=x), dim=-1)

    def message(self, x_i: Tensor, x_j: Tensor) -> tuple[Tensor, Tensor]:
        return x_j, x_j - x_i

    def aggregate(  # type: ignore[override]
        self, inputs: tuple[Tensor, Tensor], index: Tensor, dim_size: int
    ) -> tuple[Tensor, Tensor]:
        first, second = inputs
        return (
            super().aggregate(first, index, dim_size=dim_size),
            super().aggregate(second, index, dim_size=dim_size),
        )


class RawParameters(MessagePassing):
    def __init__(self) -> None:
        super().__init__(aggr="mean")
        self.kernel = nn.Parameter(torch.randn(F, H))
        self.att = nn.Parameter(torch.randn(1, H))
        self.bias = nn.Parameter(torch.zeros(H))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x @ self.kernel) + self.bias

    def message(self, x_j: Tensor) -> Tensor:
        return x_j * (x_j * self.att).sum(dim=-1, keepdim=True).sigmoid()


class OtherMessage(GCNConv):
    def message(self, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        return 2 * x_j


class OtherForward(GCNConv):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(x.relu(), edge_index) + 1


@pytest.mark.parametrize(
    ("make", "family", "points"),
    [
        (Plain, "copy", {"source:x"}),
        (OwnMessage, "edge", {"message"}),
        (Weighted, "edge", {"message"}),
        (TupleMessages, "edge", {"message"}),
        (RawParameters, "edge", {"message", "weight:kernel", "weight:att"}),
        (lambda: OtherMessage(F, H), "edge", {"message"}),
        (lambda: OtherForward(F, H), "copy", {"source:x", "edge_weight"}),
    ],
)
def test_user_layers(make: Any, family: str, points: set[str]) -> None:
    layer = make()
    quantized = assert_quantized(layer, X, EDGES)
    entry = qlr.plan(layer, bits=2).entries[0]
    assert entry.family == family and set(entry.points) == points
    assert isinstance(quantized, type(layer))


def test_user_layer_with_fused_path_materialises_its_messages() -> None:
    adj_t = torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(EDGES.size(1)), (NODES, NODES))
    adj_t = adj_t.coalesce().to_sparse_csr()
    quantized = qlr.quantize(Weighted(), bits=2)
    expected = quantized(X, EDGES)
    torch.testing.assert_close(quantized.eval()(X, adj_t), expected)


def test_raw_vectors_of_unknown_layers_keep_8_bits() -> None:
    points = qlr.plan(RawParameters(), bits=2).entries[0].points
    assert points["weight:kernel"] == 2 and points["weight:att"] == 8


def test_register_conv_moves_the_quantizer_to_the_source() -> None:
    @qlr.register_conv
    class Mine(Weighted):
        pass

    layer = Mine()
    assert find_spec(layer).family == "copy"
    quantized = assert_quantized(layer, X, EDGES)
    assert list(quantized.quantizers) == ["source_x", "edge_weight"]

    class Same(Mine):
        pass

    class Other(Mine):
        def message(self, x_j: Tensor) -> Tensor:
            return -x_j

    # Subclasses follow as long as they send the same messages.
    assert find_spec(Same()).family == "copy"
    assert find_spec(Other()).family == "edge"


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"sources": ("h",)}, UnsupportedLayerError, r"no message is made of the source 'h'.*'x'"),
        ({"logit_sources": ("q",)}, UnsupportedLayerError, "source 'q'"),
        ({"family": "edge", "sources": ("h",)}, UnsupportedLayerError, "quantizes messages"),
        ({"family": "edgy"}, ConfigError, "choose one of 'copy', 'attention', 'edge'"),
        ({"weights": {"w": 1}}, ConfigError, "choose one of 0, -1"),
    ],
)
def test_register_conv_refuses(kwargs: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        qlr.register_conv(Weighted, **kwargs)
    assert find_spec(Weighted()).family == "edge"


def test_register_refuses_what_is_no_layer() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"register_linear\(\.\.\.\)"):
        qlr.register_conv(nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedLayerError, match="no torch.nn.Module class"):
        qlr.register_linear(torch.relu)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedLayerError, match=r"register it with register_conv"):
        qlr.register_linear(Weighted)
    with pytest.raises(ConfigError, match="choose one of 0, -1"):
        qlr.register_linear(type("Lin", (nn.Module,), {}), channel_dim=3)


def test_register_linear_with_a_weight_that_is_not_there() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(3, 3))

    qlr.register_linear(Odd, weight="weight")
    with pytest.raises(UnsupportedLayerError, match=r"Odd.*no parameter 'weight'.*kernel"):
        qlr.quantize(nn.Sequential(Odd()), bits=2)


def test_a_class_of_the_same_name_is_another_class() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(F, H)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    class GCNConv(MessagePassing):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.propagate(edge_index, x=x)

        def message(self, x_j: Tensor) -> Tensor:
            return x_j.exp()

    assert find_spec(Linear()) is None
    assert find_spec(GCNConv()).family == "edge"
    assert_quantized(GCNConv(), X, EDGES)
    assert_quantized(Linear(), X)


def test_hooks_of_message_passing_still_see_everything() -> None:
    seen: list[str] = []
    conv = GCNConv(F, H)
    conv.register_propagate_forward_pre_hook(lambda m, i: seen.append("propagate"))
    quantized = qlr.quantize(conv, bits=2)
    quantized.register_message_forward_hook(lambda m, i, out: seen.append("message"))
    quantized.register_aggregate_forward_hook(lambda m, i, out: seen.append("aggregate"))
    quantized.register_forward_hook(lambda m, i, out: seen.append("forward"))
    quantized(X, EDGES)
    assert seen == ["propagate", "message", "aggregate", "forward"]


# Every form of input ##############################################################################


@pytest.mark.parametrize("make", [SAGEConv, GraphConv, GATConv])
@pytest.mark.parametrize("with_target", [True, False])
def test_bipartite(make: Any, with_target: bool) -> None:
    if make is GATConv:
        conv = GATConv((F, F), H, add_self_loops=False)
    else:
        conv = make((F, F), H, root_weight=with_target) if make is SAGEConv else make((F, F), H)
    target = X[5:12] if with_target else None
    kwargs = {} if with_target else {"size": (5, 7)}
    quantized = qlr.quantize(conv, bits=2)
    out = quantized((X[:5], target), LOCAL_EDGES, **kwargs)
    assert out.shape == (7, H)
    source = ranges(quantized)["_qlr.source_x.0"]
    assert bool(source.calibrated)
    out.square().sum().backward()


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_flow(flow: str) -> None:
    conv = SAGEConv(F, H, flow=flow, root_weight=False)
    quantized = assert_quantized(conv, X, EDGES)
    # What is quantized is what is sent: PyG sends the first of a pair, whatever the flow.
    assert torch.equal(conv((X, X + 100), EDGES), conv((X, X), EDGES))
    fresh = qlr.quantize(conv, bits=2)
    fresh((X, X + 100), EDGES)
    assert float(ranges(fresh)["_qlr.source_x.0"].hi) < 100
    assert float(ranges(quantized)["_qlr.source_x.0"].hi) == float(X.max())


def test_static_graph() -> None:
    static = torch.stack([X, 2 * X])
    conv = GCNConv(F, H, node_dim=-2)
    quantized = assert_quantized(conv, static, EDGES)
    assert quantized(static, EDGES).shape == (2, NODES, H)


@pytest.mark.parametrize("layers", [1, 2])
def test_decomposed_layers(layers: int) -> None:
    torch.manual_seed(0)
    conv = GCNConv(F, H, decomposed_layers=layers)
    torch.manual_seed(0)
    whole = qlr.quantize(GCNConv(F, H), bits=2)
    quantized = assert_quantized(conv, X, EDGES)
    torch.testing.assert_close(quantized.eval()(X, EDGES), whole(X, EDGES))


def test_cached_features_and_norms_are_made_anew() -> None:
    gcn = GCNConv(F, H, cached=True)
    gcn(X, EDGES)
    assert_quantized(gcn, X, EDGES)
    sgc = pyg_nn.SGConv(F, H, K=2, cached=True)
    sgc(X, EDGES)
    quantized = qlr.quantize(sgc, bits=2)
    assert sgc._cached_x is not None  # the float model keeps its own
    quantized(X, EDGES)
    assert all(bool(q.calibrated) for q in ranges(quantized).values())
    assert not torch.equal(quantized._cached_x, sgc._cached_x)


@pytest.mark.parametrize("make", [GCNConv, SAGEConv, GATConv, GraphConv])
def test_degenerate_graphs(make: Any) -> None:
    none = torch.empty(2, 0, dtype=torch.long)
    for x, edges in (
        (X[:1], none),  # one node
        (X[:1], torch.zeros(2, 1, dtype=torch.long)),  # with a loop
        (X, none),  # isolated nodes only
        (X, EDGES.repeat(1, 3)),  # every edge three times
        (X.new_zeros(0, F), none),  # nothing at all
        (torch.zeros_like(X), EDGES),  # features without a range
    ):
        for bits in (8, 1):
            quantized = qlr.quantize(make(F, H), bits=bits)
            out = quantized(x, edges)
            assert out.shape == (x.size(0), H) and bool(out.isfinite().all())
            out.sum().backward()
            assert quantized.eval()(X, EDGES).isfinite().all()


@settings(max_examples=15, deadline=None)
@given(
    nodes=st.integers(1, 6),
    edges=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12),
    truncation=st.sampled_from([None, "bt", "bt*"]),
)
def test_any_graph(nodes: int, edges: list[tuple[int, int]], truncation: str | None) -> None:
    pairs = torch.tensor([(a % nodes, b % nodes) for a, b in edges], dtype=torch.long)
    model = qlr.quantize(pyg_nn.GIN(F, H, 2, 2), bits=2, truncation=truncation)
    out = model(torch.randn(nodes, F), pairs.view(-1, 2).t())
    assert out.shape == (nodes, 2) and bool(out.isfinite().all())
    out.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.uint8, torch.int8])
@pytest.mark.parametrize("make", [GCNConv, SAGEConv, GATConv, GraphConv])
def test_features_that_are_no_floats(make: Any, dtype: torch.dtype) -> None:
    model = nn.ModuleList([qlr.quantize(make(F, H), bits=2)])
    for call in (lambda x: model[0](x, EDGES), lambda x: model[0](x=x, edge_index=EDGES)):
        with pytest.raises(InputError, match=rf"{dtype}.*x\.float\(\)"):
            call((X > 0).to(dtype))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_features(layout: torch.layout) -> None:
    dense = torch.relu(X)
    sparse = dense.to_sparse(layout=layout)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GCNConv(F, H)
    expected = qlr.quantize(model, bits=4)(dense, EDGES)
    out = qlr.quantize(model, bits=4)(sparse, EDGES)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for truncation in ("bt", "bt*"):
        places = ("input", "weight")  # what is sent has no exact zero
        truncated = qlr.quantize(model, bits=2, truncation=truncation, points=places)
        assert truncated(sparse, EDGES).isfinite().all()
        empty = torch.sparse_coo_tensor(torch.empty(2, 0), torch.empty(0), (NODES, F))
        # No stored value becomes none of them: what comes out is the bias.
        out = truncated(empty.to(torch.float).to_sparse(layout=layout), EDGES)
        torch.testing.assert_close(out, model.bias.expand(NODES, H), atol=1e-6, rtol=0)


def test_sparse_features_that_are_propagated_say_so() -> None:
    sparse = torch.relu(X).to_sparse()
    for conv in (SAGEConv(F, H), GINConv(nn.Linear(F, H)), pyg_nn.SimpleConv()):
        with pytest.raises(InputError, match=r"x \(source\).*sparse.*to_dense"):
            qlr.quantize(conv, bits=2)(sparse, EDGES)


def test_indices_of_nodes_are_no_features() -> None:
    conv = pyg_nn.RGCNConv(NODES, H, 2)
    kind = torch.arange(EDGES.size(1)) % 2
    assert_quantized(conv, None, EDGES, kind)
    assert_quantized(conv, torch.arange(NODES), EDGES, kind)

    class Embeds(MessagePassing):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(NODES, F)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.propagate(edge_index, x=self.emb(x))

    assert_quantized(Embeds(), torch.arange(NODES), EDGES)


def test_weights_that_a_hook_computes() -> None:
    layer = nn.utils.spectral_norm(nn.Linear(F, H))
    model = nn.Sequential(layer, nn.Linear(H, 2))
    plan = qlr.plan(model, bits=2)
    assert "a hook computes its weight" in plan.entries[0].note and not plan.entries[0].points
    assert_quantized(model, X)
    # Put on a quantized layer, its result is what is quantized.
    quantized = nn.utils.spectral_norm(qlr.quantize(nn.Linear(F, H, bias=False), bits=1))
    quantized(X)
    assert bool(quantized.quantizers["weight"].calibrated)


def test_edge_weights_reach_the_messages() -> None:
    weight = torch.linspace(0, 1, EDGES.size(1), requires_grad=True)
    quantized = assert_quantized(GCNConv(F, H), X, EDGES, weight)
    assert not torch.equal(quantized(X, EDGES, weight), quantized(X, EDGES))
    quantized(X, EDGES, weight).sum().backward()
    assert bool(weight.grad.abs().sum() > 0)


def test_attention_weights_come_back_unquantized() -> None:
    conv = GATConv(F, H, heads=2)
    quantized = qlr.quantize(conv, bits=8, output_bits=1)
    out, (_, alpha) = quantized(X, EDGES, return_attention_weights=True)
    assert out.unique().numel() == 2
    assert alpha.unique().numel() > 2


@pytest.mark.parametrize("make", [GCNConv, SAGEConv, GATConv, GraphConv])
def test_deepcopy_of_a_copy_and_signature(make: Any) -> None:
    quantized = qlr.quantize(make(F, H), bits=4)
    quantized(X, EDGES)
    twin = copy.deepcopy(copy.deepcopy(quantized))
    assert type(twin) is type(quantized)
    torch.testing.assert_close(twin.eval()(X, EDGES), quantized.eval()(X, EDGES), rtol=0, atol=0)
    names = list(inspect.signature(make.forward).parameters)
    assert list(inspect.signature(quantized.forward).parameters) == names[1:]
