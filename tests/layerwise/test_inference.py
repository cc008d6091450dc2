"""Inference layer by layer gives what the model gives for the whole graph, and never holds that."""

from __future__ import annotations

import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg_nn
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import (
    APPNP,
    GAT,
    GCN,
    GIN,
    PNA,
    DirGNNConv,
    EdgeCNN,
    GATConv,
    GCNConv,
    GraphNorm,
    GraphSAGE,
    SAGEConv,
    Sequential,
)
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import degree

import torch_geometric_qlr as qlr
from tests.helpers.optional import needs_torch_sparse
from torch_geometric_qlr.errors import ConfigError, InputError, UnsupportedLayerError
from torch_geometric_qlr.layerwise import rows as rows_module
from torch_geometric_qlr.layerwise.blocks import WholeGraph
from torch_geometric_qlr.loader import PackedFeatureStore
from torch_geometric_qlr.transforms import PackFeatures

NODES, EDGES, IN, OUT = 300, 2000, 16, 8
SMALL: dict[str, Any] = {"batch_size": 37, "progress": False}

pytestmark = pytest.mark.cpu


def graph(**extras: Any) -> Data:
    """With duplicates of edges, self loops, and nodes without edges."""
    rng = torch.Generator().manual_seed(0)
    edges = torch.randint(NODES - 20, (2, EDGES), generator=rng)
    edges[:, :50] = edges[:, 50:100]
    edges[1, 100:110] = edges[0, 100:110]
    return Data(x=torch.randn(NODES, IN, generator=rng), edge_index=edges, **extras)


def made(cls: Any, data: Data, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    if cls is PNA:
        deg = degree(data.edge_index[1], NODES, dtype=torch.long).bincount()
        options |= {"aggregators": ["mean", "max"], "scalers": ["identity", "linear"], "deg": deg}
    model: nn.Module = cls(IN, 32, 3, OUT, **options)
    return model.eval()


def trained(model: nn.Module, *args: Any, **options: Any) -> nn.Module:
    """A quantized model after one step."""
    quantized = qlr.quantize(model, **{"bits": 4, **options}).train()
    groups = qlr.parameter_groups(quantized, lr=0.01, weight_decay=0.0)
    optimizer = torch.optim.Adam(groups)
    quantized(*args).pow(2).sum().backward()
    optimizer.step()
    return quantized.eval()


def converted(quantized: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qlr.errors.QLRWarning)  # of layers that are slow
        return qlr.convert(quantized)


def check(model: nn.Module, data: Data, *args: Any, **options: Any) -> None:
    with torch.no_grad():
        expected = model(*args)
    found = qlr.inference(model, data, **{**SMALL, **options})
    assert torch.equal(found, expected)
    assert not found.requires_grad and not found.is_inference()


def check_all(model: nn.Module, data: Data, *args: Any, **options: Any) -> None:
    """The float model, the quantized and the converted one."""
    quantized = trained(model, *args)
    check(quantized, data, *args, **options)
    check(converted(quantized), data, *args, **options)
    with torch.no_grad():
        expected = model(*args)
    found = qlr.inference(model, data, **{**SMALL, **options})
    torch.testing.assert_close(found, expected)


# The models that are known ########################################################################


@pytest.mark.parametrize(
    "cls, options",
    [
        *((cls, {}) for cls in (GCN, GraphSAGE, GIN, GAT, PNA, EdgeCNN)),
        *((cls, {"norm": "batch_norm", "act_first": True}) for cls in (GCN, GIN)),
        *((GraphSAGE, {"jk": jk}) for jk in ("last", "cat", "max", "lstm")),
        (GAT, {"jk": "cat", "heads": 2, "norm": "batch_norm"}),
    ],
)
def test_answers_are_those_of_the_whole_graph(cls: Any, options: Any) -> None:
    data = graph()
    check_all(made(cls, data, **options), data, data.x, data.edge_index)


@pytest.mark.parametrize("per", ["tensor", "node", "feature"])
@pytest.mark.parametrize("cls", [GCN, GraphSAGE])
def test_every_kind_of_range(cls: Any, per: str) -> None:
    data = graph()
    ranges = {"granularity": {"input": per, "message": per, "activation": per}}
    quantized = trained(made(cls, data), data.x, data.edge_index, **ranges)
    check(converted(quantized), data, data.x, data.edge_index)


@pytest.mark.parametrize("batch_size", [None, 1, NODES, 10 * NODES])
def test_any_blocks(batch_size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_geometric_qlr.layerwise.blocks.WholeGraph.budget", 100)
    data = graph()
    model = converted(trained(made(GCN, data), data.x, data.edge_index))
    check(model, data, data.x, data.edge_index, batch_size=batch_size)


def test_a_graph_whose_results_wait_in_the_whole_model() -> None:
    torch.manual_seed(0)
    data = Data(x=torch.randn(6000, IN), edge_index=torch.randint(6000, (2, 30_000)))
    model = GraphSAGE(IN, 64, 3, OUT)
    model = converted(trained(model, data.x, data.edge_index))
    for _ in range(2):  # the first call only looks what can wait
        check(model, data, data.x, data.edge_index, batch_size=None)


@pytest.mark.parametrize("num_nodes", [0, 5])
def test_no_edges(num_nodes: int) -> None:
    data = graph()
    model = converted(trained(made(GCN, data), data.x, data.edge_index))
    empty = Data(x=data.x[:num_nodes], edge_index=data.edge_index[:, :0])
    check(model, empty, empty.x, empty.edge_index)


# Forms of a graph #################################################################################


def matrix(data: Data, values: Tensor | None = None) -> SparseTensor:
    source, target = data.edge_index
    return SparseTensor(row=target, col=source, value=values, sparse_sizes=(NODES, NODES))


@needs_torch_sparse
@pytest.mark.parametrize("cls", [GCN, GraphSAGE, GAT])
@pytest.mark.parametrize("weighted", [False, True])
def test_sparse_tensors(cls: Any, weighted: bool) -> None:
    data = graph()
    data.adj_t = matrix(data, torch.rand(EDGES) if weighted and cls is not GAT else None)
    del data.edge_index
    check_all(made(cls, data), data, data.x, data.adj_t)


@pytest.mark.parametrize("cls", [GCN, GraphSAGE])
@pytest.mark.parametrize("layout", ["csr", "coo"])
def test_sparse_matrices_of_torch(cls: Any, layout: str) -> None:
    data = graph()
    coo = torch.sparse_coo_tensor(data.edge_index.flip(0), torch.rand(EDGES), (NODES, NODES))
    data.adj_t = coo.coalesce() if layout == "coo" else coo.to_sparse_csr()
    check_all(made(cls, data), data, data.x, data.adj_t)


def test_edge_index_that_knows_its_order() -> None:
    data = graph()
    edges = EdgeIndex(data.edge_index, sparse_size=(NODES, NODES)).sort_by("col")[0]
    data.edge_index = edges
    model = converted(trained(made(GraphSAGE, data), data.x, edges))
    check(model, data, data.x, edges)


def test_weights_and_features_of_edges() -> None:
    data = graph(edge_weight=torch.rand(EDGES))
    check_all(made(GCN, data), data, data.x, data.edge_index, data.edge_weight)
    data = graph(edge_attr=torch.rand(EDGES, 3))
    for fill in ("mean", 1.0):
        model = made(GAT, data, edge_dim=3, fill_value=fill)
        check_all(model, data, data.x, data.edge_index, None, data.edge_attr)


# Layers that the user names #######################################################################


class Net(nn.Module):
    """As many are written."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = GCNConv(IN, 32, **options), SAGEConv(32, 32)
        self.conv3, self.lin = GATConv(32, 16, heads=2), nn.Linear(32, OUT)

    def forward(self, x: Tensor, edge_index: Any) -> Any:
        x = F.dropout(self.conv1(x, edge_index).relu(), training=self.training)
        x = self.conv2(x, edge_index).relu() + 1.0
        return self.lin(F.elu(self.conv3(x, edge_index)))


LAYERS = [
    lambda model, x, edge_index: model.conv1(x, edge_index).relu(),
    lambda model, x, edge_index: model.conv2(x, edge_index).relu() + 1.0,
    lambda model, x, edge_index: model.lin(F.elu(model.conv3(x, edge_index))),
]


@pytest.mark.parametrize("cached", [False, True])
def test_functions_of_the_model(cached: bool) -> None:
    data = graph()
    check_all(Net(cached=cached).eval(), data, data.x, data.edge_index, layers=LAYERS)


def test_modules_of_the_model() -> None:
    data = graph()
    model = Sequential(
        "x, edge_index, edge_weight",
        [
            (nn.Linear(IN, 24), "x -> x"),
            (GCNConv(24, 32), "x, edge_index, edge_weight -> h"),
            nn.ReLU(),
            (SAGEConv(32, 32), "h, edge_index -> x"),
            (nn.ReLU(), "x -> x"),
            nn.Linear(32, OUT),
        ],
    ).eval()
    data.edge_weight = torch.rand(EDGES)
    check_all(model, data, data.x, data.edge_index, data.edge_weight)
    check_all(GCNConv(IN, OUT).eval(), data, data.x, data.edge_index, data.edge_weight)
    two = Sequential("x, edge_index", [(GCNConv(IN, 32), "x, edge_index -> x"), nn.ReLU()])
    two = converted(trained(two.eval(), data.x, data.edge_index))
    check(two, Data(x=data.x, edge_index=data.edge_index), data.x, data.edge_index)
    relu = lambda model, x, edge_index: x.relu()  # noqa: E731
    layers = [two.get_submodule("module_0"), relu]
    found = qlr.inference(two, graph(), layers=layers, **SMALL)
    assert torch.equal(found, two(data.x, data.edge_index))


@pytest.mark.parametrize("name", ["GraphConv", "GATv2Conv", "GINEConv", "TransformerConv"])
def test_convolutions_alone(name: str) -> None:
    cls = getattr(pyg_nn, name)
    data = graph(edge_attr=torch.rand(EDGES, IN))
    if name == "GraphConv":
        check_all(cls(IN, OUT).eval(), graph(), data.x, data.edge_index)
    elif name == "GINEConv":
        check_all(cls(nn.Linear(IN, OUT)).eval(), data, data.x, data.edge_index, data.edge_attr)
    else:
        model = cls(IN, OUT, heads=2, edge_dim=IN).eval()
        check_all(model, data, data.x, data.edge_index, data.edge_attr)


def test_a_chain_that_is_none() -> None:
    first = (SAGEConv(IN, IN), "x, edge_index -> h")
    model = Sequential("x, edge_index", [first, (SAGEConv(IN, OUT), "x, edge_index -> x")])
    with pytest.raises(UnsupportedLayerError, match="no chain from features to features"):
        qlr.inference(model.eval(), graph(), **SMALL)


def test_convolutions_side_by_side_are_one_layer() -> None:
    data = graph()
    data.edge_index = torch.cat([data.edge_index, data.edge_index.flip(0)], dim=1)
    both = lambda model, x, edge_index: model.conv1(x, edge_index) + model.conv2(x, edge_index)  # noqa: E731

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = GCNConv(IN, OUT), SAGEConv(IN, OUT)

        def forward(self, x: Tensor, edge_index: Any) -> Any:
            return both(self, x, edge_index)

    check_all(Both().eval(), data, data.x, data.edge_index, layers=[both])


# What is in memory ################################################################################


class Largest(TorchDispatchMode):
    """Notes the largest floating-point tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value.is_floating_point():
                self.numel = max(self.numel, value.numel())
        return out


@pytest.mark.parametrize("cls", [GCN, GraphSAGE])
def test_floats_are_those_of_a_block(cls: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    count = 2000
    edges = torch.arange(count).repeat(2, 3)  # neighbours are near, so blocks are small
    edges[1] = (edges[1] + torch.arange(3).repeat_interleave(count)) % count
    x = torch.randn(count, 64)
    model = converted(trained(cls(64, 64, 3, 4), x, edges, granularity={"input": "tensor"}))
    path = tmp_path / "x.safetensors"
    PackedFeatureStore.write(path, x, bits=4)
    store = PackedFeatureStore(path)
    data = Data(edge_index=edges)
    with Largest() as largest:
        found = qlr.inference(model, data, features=store, batch_size=50, progress=False)
    # The answers, scales of rows and weights of edges; no row of 64 floats for each node.
    assert count * 4 <= largest.numel <= count * 8
    assert torch.equal(found, model(store[None, "x", None], edges))


def kinds_of_rows(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    kept: list[Any] = []

    def noting(*args: Any) -> Any:
        kept.append(keep(*args))
        return kept[-1]

    keep = rows_module.keep
    monkeypatch.setattr("torch_geometric_qlr.layerwise.infer.keep", noting)
    return kept


def test_rows_between_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    data, kept = graph(), kinds_of_rows(monkeypatch)

    def kinds(model: nn.Module, **options: Any) -> list[str]:
        kept.clear()
        check(model, data, data.x, data.edge_index, **options)
        return [type(rows).__name__ for rows in kept]

    packed, floats = "PackedRows", "FloatRows"
    sage = trained(made(GraphSAGE, data), data.x, data.edge_index)
    assert kinds(sage) == [floats] * 3
    assert kinds(converted(sage)) == [packed, packed, floats]
    # The source of messages and the Linear of the nodes themselves round differently.
    assert [len(rows.codes) for rows in kept[:2]] == [2, 2]
    assert kinds(made(GraphSAGE, data)) == [floats] * 3
    gin = trained(made(GIN, data), data.x, data.edge_index)
    assert kinds(converted(gin)) == [floats] * 3  # a node's own features are added
    net = converted(trained(Net().eval(), data.x, data.edge_index))
    assert kinds(net, layers=LAYERS) == [packed, packed, floats]


def test_rows_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, made_in = graph(), []
    from_file = torch.from_file

    def noting(path: str, **options: Any) -> Tensor:
        made_in.append(path)
        return from_file(path, **options)

    monkeypatch.setattr(torch, "from_file", noting)
    for cls in (GraphSAGE, GIN):
        model = converted(trained(made(cls, data), data.x, data.edge_index))
        made_in.clear()
        check(model, data, data.x, data.edge_index, store=tmp_path)
        assert len(made_in) >= 2 and all(Path(path).parent == tmp_path for path in made_in)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_features(bits: int) -> None:
    data = graph()
    packed = PackFeatures(bits=bits)(graph())
    quantized = trained(made(GraphSAGE, data), data.x, data.edge_index)
    for model in (quantized, converted(quantized)):
        check(model, packed, packed.x, data.edge_index)
    model = made(GraphSAGE, data)
    found = qlr.inference(model, packed, **SMALL)
    with torch.no_grad():
        torch.testing.assert_close(found, model(packed.x.dequantize(), data.edge_index))


def test_the_model_stays_as_it_is() -> None:
    data = graph()
    for model in (made(GCN, data), converted(trained(made(GCN, data), data.x, data.edge_index))):
        conv = model.get_submodule("convs.0")
        before = {name: id(value) for name, value in conv.__dict__.items()}
        qlr.inference(model, data, **SMALL)
        assert {name: id(value) for name, value in conv.__dict__.items()} == before
        assert conv.normalize and not conv._forward_pre_hooks


def test_nothing_is_left_of_a_graph() -> None:
    """Without waiting for a collection of circles."""
    gc.collect()
    gc.disable()
    try:
        data = graph()
        model = converted(trained(made(GCN, data), data.x, data.edge_index))
        qlr.inference(model, data, **SMALL)
        left = weakref.ref(data.edge_index)
        del data
        assert left() is None
        assert not any(isinstance(thing, WholeGraph) for thing in gc.get_objects())
    finally:
        gc.enable()


@pytest.mark.parametrize("cls", [GCN, GAT])
def test_floats_of_another_width(cls: Any) -> None:
    data = graph()
    data.x = data.x.double()
    model = made(cls, data).double()
    found = qlr.inference(model, data, **SMALL)
    with torch.no_grad():
        torch.testing.assert_close(found, model(data.x, data.edge_index))


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    data = graph()
    model = converted(trained(made(GCN, data), data.x, data.edge_index))
    qlr.inference(model, data, batch_size=100)
    shown = capsys.readouterr().err
    assert "layer 3 of 3" in shown and f"{3 * NODES}/{3 * NODES}" in shown
    qlr.inference(model, data, progress=False)
    assert capsys.readouterr().err == ""


# What is refused ##################################################################################


class GraphWise(GraphNorm):
    """A user's own, which looks at all nodes as the one it inherits from."""


class FindsNeighbours(SAGEConv):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x, torch.cdist(x, x).lt(1.0).nonzero().t())


def test_layers_that_look_further() -> None:
    data = graph()
    for model, words in (
        (made(GCN, data, norm="graph_norm"), "GraphNorm looks at all nodes"),
        (made(GCN, data, norm=GraphWise(32)), "GraphWise looks at all nodes"),
        (made(GCN, data, norm="layer_norm"), "LayerNorm looks at all nodes"),
        (made(GCN, data, norm="pair_norm"), "PairNorm looks at all nodes"),
        (APPNP(K=3, alpha=0.1).eval(), "propagates 3 times"),
        (GCNConv(IN, OUT, flow="target_to_source").eval(), "its flow is 'target_to_source'"),
        (FindsNeighbours(IN, OUT).eval(), "finds its neighbours itself"),
        (Net().eval(), r"nobody can see which layers Net calls.*layers=\["),
    ):
        with pytest.raises(UnsupportedLayerError, match=words):
            qlr.inference(model, data, **SMALL)
    node_wise = made(GCN, data, norm="layer_norm", norm_kwargs={"mode": "node"})
    torch.testing.assert_close(
        qlr.inference(node_wise, data, **SMALL), node_wise(data.x, data.edge_index).detach()
    )


def test_functions_that_are_no_layers() -> None:
    data, model = graph(), Net().eval()

    def two(model: Any, x: Any, edge_index: Any) -> Any:
        return model.conv2(model.conv1(x, edge_index), edge_index)

    def other_edges(model: Any, x: Any, edge_index: Any) -> Any:
        return model.conv1(x, edge_index.flip(0))

    def other_weights(model: Any, x: Any, edge_index: Any) -> Any:
        return model.conv1(x, edge_index, torch.ones(edge_index.size(1)))

    cases: list[tuple[list[Any], str]] = [
        ([two], "calls conv1 and then conv2 on other features"),
        ([lambda x, edge_index: x], r"layers\[0\] takes \(x, edge_index\); a layer takes \(model"),
        ([other_edges], "conv1 is called with other edges"),
        ([other_weights], "conv1 is called with edge_weight that the data does not have"),
        ([GCNConv(IN, OUT)], "no part of the model"),
        ([lambda model, x, edge_index: x.mean(0, keepdim=True)], "gives .* for .* nodes"),
        ([3], "no layer"),
        ([], "layers is empty"),
    ]
    for layers, words in cases:
        with pytest.raises(InputError, match=words):
            qlr.inference(model, data, layers=layers, **SMALL)


def test_what_depends_on_the_number_of_rows_is_told() -> None:
    data = graph()

    def reads_many(model: Any, x: Any, edge_index: Any) -> Any:
        return model.conv2(x if x.size(0) <= 37 else x * 2.0, edge_index)

    layers = [LAYERS[0], reads_many, LAYERS[2]]
    model = converted(trained(Net().eval(), data.x, data.edge_index))
    with pytest.raises(InputError, match=r"only the codes for conv2\..* were kept"):
        qlr.inference(model, data, layers=layers, **SMALL)


def test_ranges_that_blocks_would_move() -> None:
    data = graph()
    quantized = qlr.quantize(made(GCN, data), bits=4).eval()
    with torch.no_grad():
        quantized(data.x, data.edge_index)
    with pytest.raises(ConfigError, match="range is not final"):
        qlr.inference(quantized, data, **SMALL)
    check(converted(quantized), data, data.x, data.edge_index)
    skewed = {"truncation": "bt*", "granularity": {"input": "node"}}
    model = converted(trained(made(GCN, data), data.x, data.edge_index, **skewed))
    with pytest.raises(ConfigError, match="depend on all others"):
        qlr.inference(model, data, **SMALL)


def test_other_input() -> None:
    data, model = graph(), made(GCN, graph())
    for wrong, words in (
        (HeteroData(), "HeteroData"),
        ([data], "data is a list"),
        (Data(x=data.x), "no edges"),
        (Data(edge_index=data.edge_index), "no features"),
        (Data(x=data.x.to_sparse(), edge_index=data.edge_index), r"to_dense\(\)"),
        (Data(**{**data.to_dict(), "edge_weight": torch.rand(3)}), "edge_weight has 3 rows"),
    ):
        with pytest.raises(InputError, match=words):
            qlr.inference(model, wrong, **SMALL)
    with pytest.raises(InputError, match=r"model\.eval\(\)"):
        qlr.inference(made(GCN, data).train(), data)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        qlr.inference(model, data, batch_size=0)
    with pytest.raises(ConfigError, match="a folder that is there"):
        qlr.inference(model, data, store="nowhere")


def test_a_direction_of_its_own_is_refused() -> None:
    data = graph()
    model = DirGNNConv(GCNConv(IN, OUT)).eval()
    with pytest.raises(InputError, match="other edges"):
        layers = [lambda model, x, edge_index: model(x, edge_index)]
        qlr.inference(model, data, layers=layers, **SMALL)
