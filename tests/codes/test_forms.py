"""Pairs of node sets, graphs without edges, sources of three dimensions, cached edges."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg_nn
import torch_geometric.nn.conv as convs
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

import torch_geometric_qlr as qlr
from tests.helpers.conv_zoo import flat
from tests.helpers.crossed import crossed
from tests.helpers.optional import skip_for
from torch_geometric_qlr.errors import ConfigError, InputError

_seeded = torch.Generator().manual_seed(0)
NONE = torch.empty(2, 0, dtype=torch.long)


def outputs(model: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyG's, on layouts
        return flat(model(*args, **kwargs))


def converted(model: nn.Module, **kwargs: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return qlr.convert(model, **kwargs)


def quantized(layer: nn.Module, **config: Any) -> nn.Module:
    return qlr.quantize(layer, **({"bits": 8} | config)).eval()


def assert_right(layer: nn.Module, model: nn.Module, *args: Any, near: float = 0.1) -> None:
    """The converted model is the quantized one, and at 8 bits near to the float one."""
    outputs(model, *args)
    expected, packed = outputs(model, *args), converted(model)
    for _ in range(3):
        got = outputs(packed, *args)
        assert len(got) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    for truth, out in zip(outputs(layer.eval(), *args), expected, strict=True):
        assert truth.shape == out.shape
        if truth.numel():
            assert (truth - out).abs().max() <= near * truth.abs().max().clamp_min(0.1)


# Two sets of nodes ################################################################################

SRC, DST = torch.randn(5, 16, generator=_seeded), torch.randn(3, 16, generator=_seeded)
PAIRS = torch.stack([torch.arange(8) % 5, torch.arange(8) % 3])
RELATION, ATTR = torch.arange(8) % 4, torch.rand(8, 4, generator=_seeded)


#: A pair of sets against the flow.
PAIRED = (((SRC, DST), PAIRS.flip(0)), ((DST, SRC), PAIRS), ((SRC, SRC), PAIRS))


class Copies(MessagePassing):
    """Sends what it is given; ``size`` tells how many receive."""

    def forward(self, x: Any, edge_index: Tensor, size: Any = None) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=x, size=size)
        return out

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


BIPARTITE: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "transformer": (lambda **k: convs.TransformerConv((16, 16), 8, heads=2, **k), ()),
    "rgcn": (lambda **k: convs.RGCNConv((16, 16), 8, 4, **k), (RELATION,)),
    "rgcn bases": (lambda **k: convs.RGCNConv((16, 16), 8, 4, num_bases=2, **k), (RELATION,)),
    "rgcn blocks": (lambda **k: convs.RGCNConv((16, 16), 8, 4, num_blocks=2, **k), (RELATION,)),
    "fast rgcn": (lambda **k: convs.FastRGCNConv((16, 16), 8, 4, **k), (RELATION,)),
    "gat": (lambda **k: convs.GATConv((16, 16), 8, 2, add_self_loops=False, **k), ()),
    "gat loops": (lambda **k: convs.GATConv((16, 16), 8, heads=2, **k), ()),
    "gat v2": (lambda **k: convs.GATv2Conv((16, 16), 8, 2, add_self_loops=False, **k), ()),
    "gat v2 loops": (lambda **k: convs.GATv2Conv((16, 16), 8, heads=2, **k), ()),
    "sage": (lambda **k: convs.SAGEConv((16, 16), 8, **k), ()),
    "sage max": (lambda **k: convs.SAGEConv((16, 16), 8, aggr="max", **k), ()),
    "sage project": (lambda **k: convs.SAGEConv((16, 16), 8, project=True, **k), ()),
    "graph": (lambda **k: convs.GraphConv((16, 16), 8, **k), (ATTR[:, 0],)),
    "mf": (lambda **k: convs.MFConv((16, 16), 8, **k), ()),
    "le": (lambda **k: convs.LEConv((16, 16), 8, **k), ()),
    "gin": (lambda **k: convs.GINConv(nn.Linear(16, 8), **k), ()),
    "gine": (lambda **k: convs.GINEConv(nn.Linear(16, 8), edge_dim=4, **k), (ATTR,)),
    "simple": (lambda **k: convs.SimpleConv(**k), ()),
    "general": (lambda **k: convs.GeneralConv((16, 16), 8, **k), ()),
    "general attention": (lambda **k: convs.GeneralConv((16, 16), 8, attention=True, **k), ()),
    "edge": (lambda **k: convs.EdgeConv(nn.Linear(32, 8), **k), ()),
    "gen": (lambda **k: convs.GENConv((16, 16), 8, **k), ()),
    "film": (lambda **k: convs.FiLMConv((16, 16), 8, **k), ()),
    "feast": (lambda **k: convs.FeaStConv(16, 8, add_self_loops=False, **k), ()),
    "nn": (lambda **k: convs.NNConv((16, 16), 8, nn.Linear(4, 128), **k), (ATTR,)),
    "cg": (lambda **k: convs.CGConv((16, 16), dim=4, **k), (ATTR,)),
    "gmm": (lambda **k: convs.GMMConv((16, 16), 8, 4, 2, **k), (ATTR,)),
    "res gated": (lambda **k: convs.ResGatedGraphConv((16, 16), 8, **k), ()),
    "own": (lambda **k: Copies(**k), ()),
}


@pytest.mark.parametrize("config", [{}, {"granularity": "tensor"}], ids=["default", "tensor"])
@pytest.mark.parametrize("name", sorted(BIPARTITE))
def test_a_pair_of_sets(name: str, config: dict[str, Any]) -> None:
    make, args = BIPARTITE[name]
    torch.manual_seed(0)
    layer = make()
    assert_right(layer, quantized(layer, **config), (SRC, DST), PAIRS, *args)


@pytest.mark.parametrize("name", sorted(BIPARTITE))
def test_a_pair_of_sets_against_the_flow(name: str) -> None:
    make, args = BIPARTITE[name]
    torch.manual_seed(0)
    layer = make(flow="target_to_source")
    pairs = () if name == "mf" else PAIRED  # PyG leaves rows of its result as the memory was
    for x, edges in (*pairs, (SRC, PAIRS)):
        try:
            outputs(layer.eval(), x, edges, *args)
        except Exception:  # not everything is possible against the flow in PyG either
            continue
        assert_right(layer, quantized(layer), x, edges, *args)


def test_one_source_and_a_size() -> None:
    assert_right(Copies(), quantized(Copies()), SRC, PAIRS, (5, 5))
    for size in ((5, 3), (5, 7)):
        for layer in (Copies(), convs.SAGEConv((16, 16), 8, root_weight=False)):
            assert_right(layer, quantized(layer), (SRC, None), PAIRS, size)


def test_a_first_source_and_a_size() -> None:
    class First(Copies):
        def forward(self, x: Any, edge_index: Tensor, size: Any = None) -> Tensor:
            out: Tensor = self.propagate(edge_index, x=x[0], size=size)
            return out

    for flow, size in (("source_to_target", (5, 3)), ("target_to_source", (3, 5))):
        edges = PAIRS if flow == "source_to_target" else PAIRS.flip(0)
        layer = First(flow=flow)
        model = quantized(layer)
        assert outputs(model, (SRC, DST), edges, size)[0].shape == (3, 16)
        assert_right(layer, model, (SRC, DST), edges, size)


def test_a_set_that_only_sends() -> None:
    for layer in (convs.GATConv((16, 16), 8, heads=2, add_self_loops=False),):
        assert_right(layer, quantized(layer), (SRC, None), PAIRS, None, (5, 3))


# Nothing to sum ###################################################################################

X = torch.randn(4, 16, generator=_seeded)
SOME = torch.tensor([[0, 1, 2, 3, 0, 1], [1, 2, 3, 0, 2, 0]])
LOOPLESS: dict[str, Any] = {
    "transformer": lambda: convs.TransformerConv(16, 8, heads=2),
    "agnn": lambda: convs.AGNNConv(add_self_loops=False),
    "agnn loops": lambda: convs.AGNNConv(),
    "gat": lambda: convs.GATConv(16, 8, heads=2, add_self_loops=False),
    "gat loops": lambda: convs.GATConv(16, 8, heads=2),
    "gat v2": lambda: convs.GATv2Conv(16, 8, heads=2, add_self_loops=False),
    "supergat": lambda: convs.SuperGATConv(16, 8, heads=2, add_self_loops=False),
    "gcn": lambda: convs.GCNConv(16, 8, add_self_loops=False),
    "gcn loops": lambda: convs.GCNConv(16, 8),
    "sage": lambda: convs.SAGEConv(16, 8),
    "sage max": lambda: convs.SAGEConv(16, 8, aggr="max"),
    "gin": lambda: convs.GINConv(nn.Linear(16, 8)),
    "appnp": lambda: convs.APPNP(2, 0.1, add_self_loops=False),
    "sgc": lambda: convs.SGConv(16, 8, K=2, add_self_loops=False),
    "tag": lambda: convs.TAGConv(16, 8),
    "cheb": lambda: convs.ChebConv(16, 8, 2),
    "edge": lambda: convs.EdgeConv(nn.Linear(32, 8)),
    "smp": lambda: qlr.nn.SMP(K=2),
}


@pytest.mark.parametrize("granularity", [{}, "tensor"], ids=["default", "tensor"])
@pytest.mark.parametrize("first", ["edges", "none"])
@pytest.mark.parametrize("name", sorted(LOOPLESS))
def test_no_edges(name: str, first: str, granularity: Any) -> None:
    torch.manual_seed(0)
    layer = LOOPLESS[name]()
    model = quantized(layer, **({"granularity": granularity} if granularity else {}))
    if first == "edges":
        outputs(model, X, SOME)
    elif name == "edge":  # whose messages nobody has seen
        with pytest.raises(ConfigError, match="EdgeConv.message has no range yet"):
            outputs(model, X, NONE)
            converted(model)
        return
    assert_right(layer, model, X, NONE)


TYPES = [("p", "to", "a"), ("a", "to", "p")]
META = (["a", "p"], TYPES)
HETERO: dict[str, Any] = {
    "HAN": lambda: convs.HANConv(16, 16, META, heads=2),
    "HGT": lambda: convs.HGTConv(16, 16, META, heads=2),
    "HeteroConv sage": lambda: convs.HeteroConv({t: convs.SAGEConv(16, 8) for t in TYPES}),
    "HeteroConv gat": lambda: convs.HeteroConv(
        {t: convs.GATConv((16, 16), 8, 2, add_self_loops=False) for t in TYPES}
    ),
    "to_hetero": lambda: pyg_nn.to_hetero(pyg_nn.GraphSAGE((16, 16), 8, 2, 4), META),
}


def _nodes(a: int, p: int) -> dict[str, Tensor]:
    return {"a": torch.randn(a, 16), "p": torch.randn(p, 16)}


@pytest.mark.parametrize("rare", ["no edges", "one type empty", "no nodes of a type"])
@pytest.mark.parametrize("name", sorted(HETERO))
def test_types_without_anything(name: str, rare: str) -> None:
    torch.manual_seed(0)
    try:
        layer = HETERO[name]()
    except ImportError as error:
        skip_for(name, error)
    edges = {t: torch.randint(4, (2, 6)) for t in TYPES}
    model = quantized(layer)
    outputs(model, _nodes(4, 4), edges)
    some = {TYPES[0]: NONE, TYPES[1]: NONE if rare != "one type empty" else edges[TYPES[1]]}
    x = _nodes(4, 0 if rare == "no nodes of a type" else 4)
    assert_right(layer, model, x, some, near=0.2)


def test_an_edge_type_that_calibration_did_not_see() -> None:
    torch.manual_seed(0)
    edges = {t: torch.randint(4, (2, 6)) for t in TYPES}
    for granularity in ("tensor", "node"):
        layer = HETERO["HeteroConv sage"]()
        model = quantized(layer, granularity=granularity)
        x = _nodes(4, 4)
        outputs(model, x, {TYPES[0]: edges[TYPES[0]]})
        packed = converted(model)
        with pytest.raises(ConfigError, match=r"p.*has never seen data|never seen data"):
            outputs(packed, x, edges)
        outputs(model, x, edges)  # the quantized one makes its range now
        assert_right(layer, model, x, edges)


# Three dimensions #################################################################################

STACKS = torch.randn(3, 4, 16, generator=_seeded) * torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1)
STATIC: dict[str, Any] = {
    "SAGE": lambda: pyg_nn.GraphSAGE(16, 32, 2, 7),
    "SAGE max": lambda: convs.SAGEConv(16, 8, aggr="max"),
    "GIN": lambda: pyg_nn.GIN(16, 32, 2, 7),
    "GCN": lambda: pyg_nn.GCN(16, 32, 2, 7),
    "Dir": lambda: convs.DirGNNConv(convs.SAGEConv(16, 32)),
    "TAG": lambda: convs.TAGConv(16, 8),
    "SGC": lambda: convs.SGConv(16, 8, K=2),
    "Cheb": lambda: convs.ChebConv(16, 8, 2),
    "APPNP": lambda: convs.APPNP(3, 0.1),
    "ARMA": lambda: convs.ARMAConv(16, 8, num_stacks=2, num_layers=2),
    "GraphConv": lambda: convs.GraphConv(16, 8),
    "LE": lambda: convs.LEConv(16, 8),
}
ROLES: list[Any] = [
    {},
    *(g for g in ("tensor", "node", "feature")),
    *({role: g} for role in ("input", "message") for g in ("tensor", "node", "feature")),
]


def _quantized_with(layer: nn.Module, bits: int, granularity: Any) -> nn.Module:
    options = {"granularity": granularity} if granularity else {}
    try:
        return qlr.quantize(layer, bits=bits, **options).eval()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("name", "granularity"), crossed(sorted(STATIC), ROLES, whole=("GCN",)))
def test_static_graphs(name: str, granularity: Any) -> None:
    for bits in (8, 2):
        torch.manual_seed(0)
        layer = STATIC[name]()
        model = _quantized_with(layer, bits, granularity)
        first = outputs(model, STACKS, SOME)
        near = 0.1 if bits == 8 and granularity != "feature" else 10.0
        assert_right(layer, model, STACKS, SOME, near=near)
        # The first batch made the ranges: what it gave is what they give.
        assert all(map(torch.equal, first, outputs(model, STACKS, SOME)))


HEADS: dict[str, Any] = {
    "gat": lambda: convs.GATConv(16, 8, heads=4),
    "gat v2": lambda: convs.GATv2Conv(16, 8, heads=4),
    "gat mean": lambda: convs.GATConv(16, 8, heads=4, concat=False),
    "transformer": lambda: convs.TransformerConv(16, 8, heads=4),
    "supergat": lambda: convs.SuperGATConv(16, 8, heads=4),
    "one head": lambda: convs.GATConv(16, 8),
}


@pytest.mark.parametrize(("name", "granularity"), crossed(sorted(HEADS), ROLES, whole=("gat",)))
def test_heads(name: str, granularity: Any) -> None:
    for config in ({"bits": 8}, {"bits": 2, "truncation": "bt*"}):
        torch.manual_seed(0)
        layer = HEADS[name]()
        options = {"granularity": granularity} if granularity else {}
        model = quantized(layer, **config, **options)
        first = outputs(model, STACKS[1], SOME)
        assert_right(layer, model, STACKS[1], SOME, near=0.1 if config["bits"] == 8 else 10.0)
        assert all(map(torch.equal, first, outputs(model, STACKS[1], SOME)))


@pytest.mark.parametrize("granularity", ["tensor", "node", "feature"])
def test_heads_agree_with_the_float_form_of_training(granularity: str) -> None:
    # Codes of heads are those that training rounds to: the two forms differ by sums only.
    torch.manual_seed(0)
    model = quantized(convs.GATConv(16, 8, heads=4), bits=4, granularity={"message": granularity})
    out = outputs(model, X, SOME)[0]
    torch.testing.assert_close(out, model(X, SOME).detach(), rtol=1e-5, atol=1e-5)


# Zero columns #####################################################################################


@pytest.mark.parametrize("config", [{}, {"granularity": "tensor"}], ids=["default", "tensor"])
@pytest.mark.parametrize("name", ["simple", "simple max", "appnp", "lg", "gin"])
def test_no_columns(name: str, config: dict[str, Any]) -> None:
    layers: dict[str, Any] = {
        "simple": lambda: convs.SimpleConv(),
        "simple max": lambda: convs.SimpleConv(aggr="max"),
        "appnp": lambda: convs.APPNP(2, 0.1),
        "lg": lambda: convs.LGConv(),
        "gin": lambda: convs.GINConv(nn.Linear(0, 8)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on initialising nothing
        layer = layers[name]()
    model, empty = quantized(layer, **config), torch.empty(4, 0)
    if name != "gin":
        outputs(model, X, SOME)
    want = outputs(layer.eval(), empty, SOME)[0]
    for _ in range(2):
        assert torch.equal(outputs(model, empty, SOME)[0], want)
    if name == "gin":
        with pytest.raises(ConfigError, match="has no range yet"):
            converted(model)
        return
    packed = converted(model)
    for _ in range(3):
        assert torch.equal(outputs(packed, empty, SOME)[0], want)


# Edges that a layer caches ########################################################################

CACHING: dict[str, Any] = {
    "gcn": (lambda: convs.GCNConv(16, 4, cached=True), X),
    "appnp": (lambda: convs.APPNP(2, 0.1, cached=True), X),
    "sgc": (lambda: convs.SGConv(16, 4, K=2, cached=True), X),
    "ssg": (lambda: convs.SSGConv(16, 4, 0.1, K=2, cached=True), X),
    "gcn2": (lambda: convs.GCN2Conv(16, 0.1, cached=True), X),
    "dna": (lambda: convs.DNAConv(16, cached=True), X.view(4, 1, 16).repeat(1, 2, 1)),
    "fa": (lambda: convs.FAConv(16, cached=True), X),
    "eg": (lambda: convs.EGConv(16, 8, num_heads=2, num_bases=2, cached=True), X),
}


def _form(name: str, edges: Tensor = SOME) -> Any:
    if name == "edges":
        return edges.clone()
    if name == "SparseTensor":
        try:
            return SparseTensor.from_edge_index(edges, sparse_sizes=(4, 4)).t()
        except ImportError as error:
            skip_for(name, error)
    make = to_torch_csr_tensor if name == "csr" else to_torch_coo_tensor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(edges.flip(0), size=(4, 4))


@pytest.mark.parametrize("form", ["edges", "csr", "coo", "SparseTensor"])
@pytest.mark.parametrize("name", sorted(CACHING))
def test_cached_edges(name: str, form: str) -> None:
    make, x = CACHING[name]
    torch.manual_seed(0)
    layer, adj = make().eval(), _form(form)
    args = (x, x, adj) if name in ("gcn2", "fa") else (x, adj)
    try:
        want = outputs(copy.deepcopy(layer), *args)[0]
    except Exception as error:
        pytest.skip(f"PyG: {error}")
    model = quantized(layer)
    outputs(model, *args)
    out = outputs(model, *args)[0]
    assert (out - want).abs().max() <= 0.1 * want.abs().max()
    # As in PyG the first graph goes on being used, whatever comes in its form.
    other = (*args[:-1], _form(form, torch.tensor([[0], [1]])))
    assert torch.equal(outputs(model, *other)[0], out)
    for again in (copy.deepcopy(model), converted(model), converted(model, fuse=False)):
        assert torch.equal(outputs(again, *args)[0], out)
        assert torch.equal(outputs(again, *other)[0], out)
        assert torch.equal(outputs(copy.deepcopy(again), *args)[0], out)
    outputs(layer, *args)
    assert torch.equal(outputs(quantized(layer), *args)[0], out)  # from a float layer that cached


def test_input_error_is_clear_for_wrong_sizes() -> None:
    model = quantized(Copies())
    outputs(model, SRC, PAIRS)
    for broken in (model, converted(model)):
        with pytest.raises((InputError, ValueError, IndexError)):
            outputs(broken, SRC, torch.tensor([[0], [9]]))


# Other types ######################################################################################


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["sage", "gcn", "gat", "linear", "embedding", "gru"])
def test_other_types_run_in_eval(name: str, dtype: torch.dtype) -> None:
    # Codes are made of float32; a quantized model of another type computes in floats, as ever.
    torch.manual_seed(0)
    layers: dict[str, Any] = {
        "sage": (convs.SAGEConv(16, 8), (X.to(dtype), SOME)),
        "gcn": (convs.GCNConv(16, 8), (X.to(dtype), SOME)),
        "gat": (convs.GATConv(16, 8, heads=2), (X.to(dtype), SOME)),
        "linear": (nn.Linear(16, 8), (X.to(dtype),)),
        "embedding": (nn.Embedding(9, 16), (torch.arange(5),)),
        "gru": (nn.GRUCell(16, 8), (X.to(dtype),)),
    }
    layer, args = layers[name]
    layer = layer.to(dtype).eval()
    model = quantized(layer)
    outputs(model, *args)
    (out,), (truth,) = outputs(model, *args), outputs(layer, *args)
    assert out.dtype == dtype
    assert (out - truth).abs().max() <= 0.05 * truth.abs().max()
    torch.testing.assert_close(out, model(*args).detach(), rtol=0.02, atol=0.02)
    try:
        outputs(converted(model), *args)
    except InputError as error:
        assert "float32" in str(error) and ".float()" in str(error)


# A user's propagate ###############################################################################


class Scaled(convs.GCNConv):
    def propagate(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Tensor:
        return super().propagate(edge_index, size=size, **kwargs) * 4


class ScaledInherited(Scaled):
    """Says nothing of its own. PyG generates a propagate() for it, without the factor, which is
    what the float layer computes and so the others do."""


@pytest.mark.parametrize("cls", [Scaled, ScaledInherited])
def test_a_propagate_of_a_subclass_is_respected(cls: Any) -> None:
    torch.manual_seed(0)
    layer = cls(16, 8)  # only after the first object has PyG written into the class
    assert_right(layer, quantized(layer), X, SOME)
    packed = converted(_seen(layer))
    (entry,) = [e for e in qlr.report(packed).entries if e.layer.endswith(cls.__name__)]
    if cls is Scaled:
        assert not entry.is_packed and "propagate()" in entry.note
    with torch.no_grad():
        truth = layer(X, SOME)
        assert (packed(X, SOME) - truth).abs().max() < 0.2 * truth.abs().max()


def _seen(layer: nn.Module) -> nn.Module:
    model = quantized(layer)
    outputs(model, X, SOME)
    return model
