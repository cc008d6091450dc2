"""Weights of edges as a point: every conv, every form of edges, training as inference."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch_geometric.nn.conv as convs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GCN, MessagePassing

import torch_geometric_qlr as qlr
from tests.helpers.graphs import all_forms, edge_index_object, edge_lists
from tests.helpers.packed_cases import TOLERANCE, deviation
from torch_geometric_qlr.quantizers import EdgeWeightQuant, fake_quantize
from torch_geometric_qlr.sparse import gcn_norm

F, N = 8, 20
rng = torch.Generator().manual_seed(0)
X = torch.randn(N, F, generator=rng)
EDGES = torch.randint(0, N - 2, (2, 90), generator=rng)  # two nodes are isolated
EDGES[:, 1] = EDGES[:, 0]  # a duplicate
W = torch.rand(90, generator=rng) + 0.1


class Scaled(MessagePassing):
    """A user's conv: copies times a weight, by any name."""

    def __init__(self, aggr: str = "add", flow: str = "source_to_target") -> None:
        super().__init__(aggr=aggr, flow=flow)

    def forward(self, x: Any, edge_index: Any, w: Any = None) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=x, strength=w)
        return out

    def message(self, x_j: Tensor, strength: Tensor) -> Tensor:
        return strength.unsqueeze(-1) * x_j


qlr.register_conv(Scaled, family="copy")

CONVS: dict[str, Callable[[], nn.Module]] = {
    "GCNConv": lambda: convs.GCNConv(F, 6),
    "GCNConv mean": lambda: convs.GCNConv(F, 6, aggr="mean"),
    "SGConv": lambda: convs.SGConv(F, 6, K=2),
    "SSGConv": lambda: convs.SSGConv(F, 6, 0.1, K=2),
    "APPNP": lambda: APPNP(3, 0.1),
    "TAGConv": lambda: convs.TAGConv(F, 6, K=2),
    "ChebConv": lambda: convs.ChebConv(F, 6, K=3),
    "ARMAConv": lambda: convs.ARMAConv(F, 6, num_stacks=2, num_layers=2),
    "GraphConv": lambda: convs.GraphConv(F, 6),
    "GraphConv mean": lambda: convs.GraphConv(F, 6, aggr="mean"),
    "LGConv": lambda: convs.LGConv(),
    "MixHopConv": lambda: convs.MixHopConv(F, 6),
    "SimpleConv": lambda: convs.SimpleConv(),
    "SMP": lambda: qlr.nn.SMP(3),
    "SMP, history": lambda: qlr.nn.SMP(2, correction=False),
    "EMP": lambda: qlr.nn.EMP(2, lambda1=0.1),
    "user's": Scaled,
}
UNWEIGHTED: dict[str, Callable[[], nn.Module]] = {
    "ClusterGCNConv": lambda: convs.ClusterGCNConv(F, 6)
}
names = pytest.mark.parametrize("name", CONVS)


def trained(layer: nn.Module, args: tuple[Any, ...], **config: Any) -> nn.Module:
    torch.manual_seed(1)
    model = qlr.quantize(layer, **{"bits": 4, **config}).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch, on layouts
        model(*args)
    return model.eval()


def converted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("error", qlr.errors.QLRWarning)
        return qlr.convert(model)


def assert_one_arithmetic(model: nn.Module, *args: Any) -> Tensor:
    """Evaluation is the conversion bit for bit, and training to float32 rounding."""
    with torch.no_grad():
        expected = model(*args)
    packed = converted(model)
    for _ in range(2):
        assert torch.equal(packed(*args), expected)
    with torch.enable_grad():
        in_floats = model(*args).detach()
    assert deviation([expected], [in_floats]) <= TOLERANCE
    return expected


# Which convs #####################################################################################


@pytest.mark.parametrize("edge_bits", [8, 4, 2, 32])
@names
def test_every_conv(name: str, edge_bits: int) -> None:
    model = trained(CONVS[name](), (X, EDGES, W), edge_weight_bits=edge_bits)
    assert ("edge_weight" in model.quantizers) == (edge_bits < 16)
    assert_one_arithmetic(model, X, EDGES, W)


@names
def test_weights_are_rounded_wherever_they_are_read(name: str) -> None:
    """With nothing else that rounds them away again, they make a difference, of their own size."""
    only = {"points": ("source", "edge_weight"), "bits": 8, "hop_quantizers": "shared"}
    models = {
        bits: trained(CONVS[name](), (X, EDGES, W), edge_weight_bits=bits, **only)
        for bits in (32, 8, 2)
    }
    torch.manual_seed(0)
    for model in models.values():
        model.load_state_dict(models[32].state_dict())
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            exact, fine, coarse = (model(X, EDGES, W).detach() for model in models.values())
        assert 0 < deviation([exact], [fine]) < 0.05 < deviation([exact], [coarse]) < 2


def test_convs_with_other_arguments() -> None:
    model = trained(convs.GCN2Conv(F, 0.1), (X, X, EDGES, W))
    assert "edge_weight" in model.quantizers
    assert_one_arithmetic(model, X, X, EDGES, W)
    model = trained(convs.GatedGraphConv(F, 2), (X, EDGES, W))  # its GRU stays float
    assert "edge_weight" in model.quantizers
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", qlr.errors.QLRWarning)
        assert torch.equal(qlr.convert(model)(X, EDGES, W), model(X, EDGES, W))


def test_weights_that_a_conv_makes_itself() -> None:
    model = trained(UNWEIGHTED["ClusterGCNConv"](), (X, EDGES))
    assert "edge_weight" in model.quantizers
    assert_one_arithmetic(model, X, EDGES)
    model = trained(
        convs.PDNConv(F, 6, edge_dim=3, hidden_channels=4), (X, EDGES, torch.rand(90, 3))
    )
    assert "edge_weight" in model.quantizers


@pytest.mark.parametrize(
    "layer",
    [
        lambda: convs.SAGEConv(F, 6),
        lambda: convs.GINConv(nn.Linear(F, 6)),
        lambda: convs.GATConv(F, 6, heads=2),
        lambda: convs.TransformerConv(F, 6),
        lambda: convs.EdgeConv(nn.Linear(2 * F, 6)),
        lambda: convs.RGCNConv(F, 6, 3),
        lambda: convs.GraphConv(F, 6, aggr="max"),
        lambda: convs.GraphConv(F, 6, aggr="median"),
        lambda: Scaled("min"),
        lambda: convs.LEConv(F, 6),
    ],
)
def test_others_have_none(layer: Callable[[], nn.Module]) -> None:
    plan = qlr.plan(layer(), bits=4)
    assert all("edge_weight" not in entry.points for entry in plan.entries)


@pytest.mark.parametrize(
    "config", [{"message_bits": 32}, {"points": ("source", "weight")}, {"preset": "paper"}]
)
def test_sources_in_float_have_none(config: dict[str, Any]) -> None:
    plan = qlr.plan(GCN(F, 6, 2, 3), **({"bits": 4} | config))
    assert all("edge_weight" not in e.points for e in plan.entries if e.family == "copy")


# What a layer computes ###########################################################################


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_training_against_a_hand_written_gcn(bits: int) -> None:
    """Output and gradients, straight through both roundings."""
    conv = convs.GCNConv(F, 6, bias=False)
    model = qlr.quantize(conv, bits=4, points=("source", "edge_weight"), edge_weight_bits=bits)
    weight = W.clone().requires_grad_()
    out = model(X, EDGES, weight)
    torch.manual_seed(3)
    up = torch.randn_like(out)
    out.backward(up)

    h = X @ conv.lin.weight.t().detach()
    h.requires_grad_()
    scale, zero = (v.detach() for v in model.quantizers["source_x"][0](h)[1:3])
    h_hat = fake_quantize(h, scale, zero, 4)
    other = W.clone().requires_grad_()
    edges, norm = gcn_norm(EDGES, other, N)
    levels = 2 ** (bits - 1) - 1
    largest = torch.zeros(N).scatter_reduce(0, edges[1], norm.detach().abs(), "amax")
    t = largest[edges[1]] / levels
    n = (norm.detach() / t).round()
    norm_hat = norm + (t * n - norm.detach())
    expected = torch.zeros(N, 6).index_add(0, edges[1], norm_hat.view(-1, 1) * h_hat[edges[0]])
    expected.backward(up)
    torch.testing.assert_close(out, expected)
    assert weight.grad is not None and other.grad is not None
    torch.testing.assert_close(weight.grad, other.grad)
    assert bool((weight.grad != 0).any())


@settings(max_examples=40, deadline=None)
@given(
    edge_lists(max_nodes=10, max_edges=40),
    st.sampled_from(["tensor", "node", "feature"]),
    st.integers(2, 8),
    st.sampled_from(["add", "mean"]),
    st.sampled_from(["source_to_target", "target_to_source"]),
    st.integers(0, 1000),
)
def test_random_graphs(
    graph: tuple[Tensor, int], granularity: str, bits: int, aggr: str, flow: str, seed: int
) -> None:
    """Empty, with isolated nodes and duplicates, skewed, with negative weights and zeros."""
    edges, nodes = graph
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(nodes, F, generator=rng)
    weight = torch.randn(edges.size(1), generator=rng).exp() * torch.randn(
        edges.size(1), generator=rng
    )
    weight[::5] = 0.0
    conv = convs.GraphConv(F, 6, aggr=aggr, flow=flow)
    config = {"granularity": {"message": granularity}, "edge_weight_bits": bits}
    model = trained(conv, (x, edges, weight), **config)
    assert_one_arithmetic(model, x, edges, weight)


@pytest.mark.parametrize(
    "first", [lambda: APPNP(3, 0.1), lambda: APPNP(1, 0.1), lambda: convs.SGConv(F, 6, K=2)]
)
def test_sources_with_a_scale_per_node(first: Callable[[], nn.Module]) -> None:
    """As features have them that enter the model: their scales go into the integers."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = first(), nn.Linear(8 if isinstance(first(), APPNP) else 6, 3)

        def forward(self, x: Tensor, *edges: Any) -> Tensor:
            out: Tensor = self.last(self.first(x, *edges))
            return out

    x = X * torch.logspace(-3, 3, N).view(-1, 1)
    model = trained(Model(), (x, EDGES, W))
    expected = assert_one_arithmetic(model, x, EDGES, W)
    packed = converted(model)
    features = qlr.pack_features(packed, x)
    assert torch.equal(packed(features, EDGES, W), expected)


def test_stacks_with_a_scale_per_node_share_their_weights() -> None:
    model = trained(CONVS["ARMAConv"](), (X, EDGES, W), granularity={"message": "node"})
    assert_one_arithmetic(model, X, EDGES, W)


# Forms of edges ##################################################################################

FORMS = [
    "coo",
    "csr",
    "csc",
    *(["SparseTensor"] if "SparseTensor" in all_forms(EDGES, W, N) else []),
]


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", ["GraphConv", "GCNConv", "TAGConv", "SMP", "EMP", "GraphConv mean"]
)
def test_matrices(name: str, form: str, fuse: bool) -> None:
    edges = torch.unique(EDGES, dim=1)  # what PyG does to duplicates depends on the form
    w = W[: edges.size(1)]
    adj = all_forms(edges, w, N)[form]
    if form == "coo":
        adj = adj.coalesce()
    layer: Any = CONVS[name]()
    if form == "csc" and (name in ("GCNConv", "TAGConv") or (not fuse and "GraphConv" in name)):
        pytest.skip("PyG takes no CSC matrix here")
    layer.fuse = fuse and layer.fuse
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = trained(layer, (X, adj))
        out = assert_one_arithmetic(model, X, adj)
        if "conv" in name.lower() and name != "GCNConv":  # which adds its loops elsewhere
            with torch.no_grad():
                assert deviation([out], [model(X, edges, w)]) <= TOLERANCE


def test_edge_index_objects() -> None:
    for name in ("GCNConv", "GraphConv"):
        order = EDGES[1].argsort(stable=True)
        edges, w = EDGES[:, order], W[order]
        adj = edge_index_object(edges, N)
        adj = type(adj)(edges, sparse_size=(N, N), sort_order="col")
        model = trained(CONVS[name](), (X, adj, w))
        assert torch.equal(
            assert_one_arithmetic(model, X, adj, w), assert_one_arithmetic(model, X, edges, w)
        )


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_pairs_and_flows(flow: str) -> None:
    """Rows are those that receive, of which there may be more or fewer than of the others."""
    a, b = X[:7], X[7:]
    edges = torch.stack([torch.arange(40) % 7, torch.arange(40) % 13])
    layer = convs.GraphConv((F, F), 6)
    model = trained(layer, ((a, b), edges, W[:40]))
    assert_one_arithmetic(model, (a, b), edges, W[:40])
    model = trained(convs.GraphConv(F, 6, flow=flow), (X, EDGES, W))
    out = assert_one_arithmetic(model, X, EDGES, W)
    turned = trained(convs.GraphConv(F, 6), (X, EDGES, W))
    turned.load_state_dict(model.state_dict())
    with torch.no_grad():
        same = turned(X, EDGES if flow == "source_to_target" else EDGES.flip(0), W)
    torch.testing.assert_close(out, same)


def test_weights_with_a_gradient() -> None:
    model = trained(convs.SimpleConv(), (X, EDGES, W))
    weight = W.clone().requires_grad_()
    with torch.no_grad():
        assert torch.equal(model(X, EDGES, weight), model(X, EDGES, W))
    model(X, EDGES, weight).sum().backward()
    assert weight.grad is not None
    before = weight.grad.clone()
    with torch.no_grad():
        weight += 0.5
    weight.grad = None
    model(X, EDGES, weight).sum().backward()  # nothing was remembered
    torch.testing.assert_close(weight.grad, before)
    values = W[: torch.unique(EDGES, dim=1).size(1)].clone().requires_grad_()
    adj = torch.sparse_coo_tensor(torch.unique(EDGES, dim=1).flip(0), values, (N, N)).coalesce()
    model(X, adj).sum().backward()
    assert values.grad is not None and bool((values.grad != 0).any())


# What is remembered ###############################################################################


def test_codes_are_made_once_for_a_graph() -> None:
    model = trained(convs.GraphConv(F, 6), (X, EDGES, W))
    packed, edges, weight = converted(model), EDGES.clone(), W.clone()
    calls: list[int] = []
    codes = EdgeWeightQuant.codes

    def counted(self: EdgeWeightQuant, *args: Any) -> Any:
        calls.append(1)
        return codes(self, *args)

    with mock.patch.object(EdgeWeightQuant, "codes", counted), torch.no_grad():
        first = packed(X, edges, weight)
        assert torch.equal(packed(X, edges, weight), first) and len(calls) == 1
        assert torch.equal(model(X, edges, weight), first) and len(calls) == 1
        weight[:40] *= 3  # in place
        assert torch.equal(packed(X, edges, weight), packed(X, edges.clone(), weight.clone()))
        assert len(calls) == 3


def test_rounded_weights_are_made_once_for_a_graph() -> None:
    model = qlr.quantize(APPNP(4, 0.1), bits=4).train()
    edges, weight = gcn_norm(EDGES, W, N)
    model.normalize = False
    calls: list[int] = []
    forward = EdgeWeightQuant.forward

    def counted(self: EdgeWeightQuant, *args: Any) -> Any:
        calls.append(1)
        return forward(self, *args)

    with mock.patch.object(EdgeWeightQuant, "forward", counted):
        first = model(X, edges, weight)
        assert len(calls) == 1
        assert model(X, edges, weight).shape == first.shape and len(calls) == 1
        weight.mul_(2)
        model(X, edges, weight)
        assert len(calls) == 2


@pytest.mark.parametrize("form", [*FORMS, "SparseTensor without values"])
def test_nothing_remembered_keeps_a_graph_alive(form: str) -> None:
    model = qlr.quantize(convs.GraphConv(F, 6), bits=4).train()
    matrix: Any = all_forms(EDGES, W, N).get(form)
    if matrix is None:
        matrix = pytest.importorskip("torch_sparse").SparseTensor.from_edge_index(
            EDGES.flip(0), sparse_sizes=(N, N)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model(X, matrix)
        model.eval()
        with torch.no_grad():
            model(X, matrix)
    alive = weakref.ref(matrix)
    del matrix
    gc.collect()
    assert alive() is None


def test_a_number_that_is_none_stays_none() -> None:
    model = trained(convs.SimpleConv(), (X, EDGES, W))
    weight = W.clone()
    weight[3] = float("nan")
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            bad = model(X, EDGES, weight).isnan().any(dim=1)
        assert bad.nonzero().view(-1).tolist() == [int(EDGES[1, 3])]


# Copies, files, tracing ##########################################################################


def test_copies_and_pickles() -> None:
    model = trained(GCN(F, 6, 2, 3), (X, EDGES))
    for one in (model, converted(model)):
        expected = one(X, EDGES).detach()
        for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert torch.equal(other(X, EDGES).detach(), expected)
            assert other.convs[0].quantizers["edge_weight"].bits == 8


@pytest.mark.parametrize("name", ["GCNConv", "APPNP", "GraphConv", "SMP"])
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    model = trained(CONVS[name](), (X, EDGES, W))
    options: dict[str, Any] = {"fullgraph": True, "dynamic": True, "backend": "eager"}
    packed = converted(model)
    with torch.no_grad():
        assert torch.equal(torch.compile(packed, **options)(X, EDGES, W), packed(X, EDGES, W))
    weight = W.clone().requires_grad_()
    expected = model(X, EDGES, weight)
    (wanted,) = torch.autograd.grad(expected.sum(), weight)
    out = torch.compile(model, **options)(X, EDGES, weight)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), weight)[0], wanted)


def test_exported() -> None:
    packed = converted(trained(convs.GraphConv(F, 6), (X, EDGES, W)))
    edges = torch.export.Dim("edges", min=2)
    with torch.no_grad():
        program = torch.export.export(
            packed, (X, EDGES, W), dynamic_shapes=({}, {1: edges}, {0: edges})
        )
        for count in (90, 31):
            args = (X, EDGES[:, :count], W[:count])
            assert torch.equal(program.module()(*args), packed(*args))


def test_hooks_and_own_products_round_the_same() -> None:
    """What falls back to floating point multiplies by the same numbers."""
    model = trained(convs.GraphConv(F, 6), (X, EDGES, W))
    with torch.no_grad():
        expected = model(X, EDGES, W)
        handle = model.register_message_forward_hook(lambda layer, args, out: None)
        assert deviation([expected], [model(X, EDGES, W)]) <= TOLERANCE
        handle.remove()


def test_smooth_propagation() -> None:
    smooth = qlr.transforms.SmoothPropagation()(GCN(F, 6, 2, 3))
    model = trained(smooth, (X, EDGES))
    assert "edge_weight" in model.convs[0].quantizers
    assert_one_arithmetic(model, X, EDGES)
    other = qlr.transforms.SmoothPropagation()(qlr.quantize(GCN(F, 6, 2, 3), bits=4))
    assert "edge_weight" in other.convs[0].quantizers
