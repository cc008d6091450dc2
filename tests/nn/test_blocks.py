"""Aggregations, pooling, and the ways of PyG to put layers together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg_nn
from torch import Tensor, nn
from torch_geometric.nn import aggr, pool

import torch_geometric_qlr as qlr
from tests.helpers.conv_zoo import (
    DEGREE,
    EDGE_DICT,
    EDGES,
    FEATURES,
    HIDDEN,
    META,
    NODES,
    X_DICT,
    X,
    flat,
)
from torch_geometric_qlr.errors import NothingToQuantizeError
from torch_geometric_qlr.nn import QuantLayer
from torch_geometric_qlr.quantizers import LearnedRangeQuant

F, H = FEATURES, HIDDEN
GRAPH = torch.tensor([0] * 5 + [1] * (NODES - 5))
Make = Callable[[], nn.Module]


def _multi(mode: str, **kwargs: Any) -> nn.Module:
    kwargs |= {"in_channels": F, "out_channels": H}
    return aggr.MultiAggregation(
        ["mean", aggr.SoftmaxAggregation(learn=True)], mode=mode, mode_kwargs=kwargs
    )


AGGREGATIONS: dict[str, Make] = {
    "DeepSets": lambda: aggr.DeepSetsAggregation(pyg_nn.MLP([F, H]), pyg_nn.MLP([H, H])),
    "Attentional": lambda: aggr.AttentionalAggregation(pyg_nn.MLP([F, 1]), pyg_nn.MLP([F, H])),
    "SetTransformer": lambda: aggr.SetTransformerAggregation(F, heads=2),
    "GraphMultisetTransformer": lambda: aggr.GraphMultisetTransformer(F, 3, heads=2),
    "MLP": lambda: aggr.MLPAggregation(F, H, 7, num_layers=1),
    "Multi proj": lambda: _multi("proj"),
    "Multi attn": lambda: _multi("attn", num_heads=2),
    "Equilibrium": lambda: aggr.EquilibriumAggregation(F, H, [4]),
    "LCM": lambda: aggr.LCMAggregation(F, H),
    "PatchTransformer": lambda: aggr.PatchTransformerAggregation(F, H, 3, 8, 1, 2),
}
POOLS: dict[str, tuple[Make, Callable[[Any], Any]]] = {
    "SAG": (lambda: pool.SAGPooling(F), lambda m: m(X, EDGES)[0]),
    "SAG GAT": (lambda: pool.SAGPooling(F, GNN=pyg_nn.GATConv), lambda m: m(X, EDGES)[0]),
    "ASA": (lambda: pool.ASAPooling(F, GNN=pyg_nn.GCNConv), lambda m: m(X, EDGES)[0]),
    "Edge": (lambda: pool.EdgePooling(F), lambda m: m(X, EDGES, GRAPH)[0]),
    "Mem": (lambda: pool.MemPooling(F, H, 2, 3), lambda m: m(X, GRAPH)[0]),
    "Cluster": (lambda: pool.ClusterPooling(F), lambda m: m(X, EDGES, GRAPH)[0]),
}
#: Nothing but a few scalars, a ranking vector, or a fused recurrent kernel.
FLOAT_ONLY: dict[str, Make] = {
    "Softmax": lambda: aggr.SoftmaxAggregation(learn=True, channels=F),
    "PowerMean": lambda: aggr.PowerMeanAggregation(learn=True, channels=F),
    "LSTM": lambda: aggr.LSTMAggregation(F, H),
    "GRU": lambda: aggr.GRUAggregation(F, H),
    "Set2Set": lambda: aggr.Set2Set(F, 2),
    "DegreeScaler": lambda: aggr.DegreeScalerAggregation(["mean"], ["linear"], DEGREE, True),
    "TopK": lambda: pool.TopKPooling(F),
    "PAN": lambda: pool.PANPooling(F),
}


def ranges(model: nn.Module) -> list[LearnedRangeQuant]:
    return [m for m in model.modules() if isinstance(m, LearnedRangeQuant)]


def works(make: Make, call: Callable[[Any], Any], **config: Any) -> nn.Module:
    """Quantizes, trains a step, evaluates; every quantizer has seen a tensor."""
    torch.manual_seed(1)
    model = make()
    quantized = qlr.quantize(model, **{"bits": 2, **config})
    out = flat(call(quantized))
    assert out and all(bool(o.isfinite().all()) for o in out)
    sum(o.square().sum() for o in out).backward()
    assert ranges(quantized)
    assert not [q.path for q in ranges(quantized) if not bool(q.calibrated)]
    with torch.no_grad():
        expected = flat(call(quantized.eval()))
        again = flat(call(copy.deepcopy(quantized)))
    for a, b in zip(again, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    return quantized


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregation(name: str) -> None:
    works(AGGREGATIONS[name], lambda m: m(X, GRAPH))


@pytest.mark.parametrize("name", POOLS)
def test_pooling(name: str) -> None:
    works(*POOLS[name])


@pytest.mark.parametrize("name", FLOAT_ONLY)
def test_float_only_says_why(name: str) -> None:
    with pytest.raises(NothingToQuantizeError, match="kept float"):
        qlr.quantize(FLOAT_ONLY[name](), bits=2)


@pytest.mark.parametrize("kind", ["lstm", "median", ["mean", "std", "softmax"]])
def test_convs_with_other_aggregations(kind: Any) -> None:
    loops = torch.arange(NODES).repeat(2, 1)  # PyG's median takes no empty neighbourhood
    edges = torch.cat([EDGES, loops], dim=1)
    edges = edges[:, edges[1].argsort(stable=True)]
    works(lambda: pyg_nn.SAGEConv(F, H, aggr=kind), lambda m: m(X, edges))


# Putting layers together ##########################################################################


def test_sequential() -> None:
    def make() -> nn.Module:
        return pyg_nn.Sequential(
            "x, edge_index",
            [
                (pyg_nn.GCNConv(F, H), "x, edge_index -> x1"),
                nn.ReLU(inplace=True),
                (pyg_nn.GATConv(H, H), "x1, edge_index -> x2"),
                (lambda a, b: torch.cat([a, b], -1), "x1, x2 -> x"),
                pyg_nn.Linear(2 * H, 2),
            ],
        )

    works(make, lambda m: m(X, EDGES))


def _hetero_conv() -> nn.Module:
    return pyg_nn.HeteroConv(
        {
            ("a", "to", "b"): pyg_nn.SAGEConv((F, F), H),
            ("b", "to", "a"): pyg_nn.GATConv((F, F), H, add_self_loops=False),
        },
        aggr="mean",
    )


def test_hetero_conv() -> None:
    quantized = works(_hetero_conv, lambda m: m(X_DICT, EDGE_DICT))
    # Its branches run side by side: all of them see input features, none is the model's end.
    roles = {q.path: q.config.granularity for q in ranges(quantized)}
    assert {g for path, g in roles.items() if path.endswith(("lin_src.input", "x (source)"))} == {
        "node",
        "tensor",
    }


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = pyg_nn.SAGEConv((-1, -1), H)
        self.conv2 = pyg_nn.SAGEConv((-1, -1), H)
        self.lin = pyg_nn.Linear(H, 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.conv1(x, edge_index).relu()
        return self.lin(self.conv2(x, edge_index))


def test_to_hetero_then_quantize() -> None:
    model = pyg_nn.to_hetero(_Net(), META)
    model(X_DICT, EDGE_DICT)
    quantized = works(lambda: model, lambda m: m(X_DICT, EDGE_DICT))
    assert sum(isinstance(m, QuantLayer) for m in quantized.modules()) == 4 + 4 * 2 + 2


def test_quantize_then_to_hetero() -> None:
    net = _Net()
    net(X, EDGES)
    quantized = pyg_nn.to_hetero(qlr.quantize(net, bits=2), META)
    out = quantized(X_DICT, EDGE_DICT)
    sum(o.square().sum() for o in out.values()).backward()
    assert all(bool(q.calibrated) for q in ranges(quantized))
    # One range per type: nothing is shared between the copies.
    assert len({id(q.gamma) for q in ranges(quantized)}) == 2 * len(
        ranges(qlr.quantize(net, bits=2))
    )


def test_to_hetero_with_bases() -> None:
    model = pyg_nn.to_hetero_with_bases(_Net(), META, num_bases=2, in_channels={"x": F})
    model(X_DICT, EDGE_DICT)
    works(lambda: model, lambda m: m(X_DICT, EDGE_DICT))


def test_hetero_dict_linear_is_called_not_fused() -> None:
    class Mine(pyg_nn.HeteroDictLinear):
        pass

    for cls in (pyg_nn.HeteroDictLinear, Mine):
        quantized = works(lambda cls=cls: cls({"a": F, "b": F}, H), lambda m: m(X_DICT))
        assert isinstance(quantized, cls)


def test_hetero_linear() -> None:
    types = torch.arange(NODES) % 3
    works(lambda: pyg_nn.HeteroLinear(F, H, 3), lambda m: m(X, types))


def test_model_ensemble_and_container_layers() -> None:
    works(
        lambda: nn.Sequential(pyg_nn.MLP([F, H, H]), nn.ModuleList([nn.Linear(H, 2)])[0]),
        lambda m: m(X),
    )


# One object in two places, one parameter in two layers ############################################


def test_a_layer_used_twice_is_one_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = pyg_nn.GCNConv(F, F)
            self.decoder = self.encoder

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(self.encoder(x, EDGES), EDGES)

    quantized = works(Twice, lambda m: m(X))
    assert quantized.encoder is quantized.decoder
    plan = qlr.plan(Twice(), bits=2)
    assert [e.name for e in plan.entries] == ["encoder", "encoder.lin"]
    assert plan.parameters == F * F + F
    # Both of its names are known.
    wide = qlr.plan(Twice(), bits=2, overrides={"decoder.lin": {"weight_bits": 4}})
    assert dict(wide.entries[1].points)["weight:weight"] == 4


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(NODES, F)
            self.lin = nn.Linear(F, NODES, bias=False)
            self.lin.weight = self.emb.weight

        def forward(self) -> Tensor:
            return self.lin(self.emb(torch.arange(NODES)))

    quantized = works(Tied, lambda m: m())
    assert quantized.lin.weight is quantized.emb.weight
    assert qlr.plan(Tied(), bits=2).parameters == NODES * F


def test_nested_layers_in_user_modules() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({"conv": pyg_nn.GINConv(pyg_nn.MLP([F, F]))})
            self.extra = nn.ParameterDict({"w": nn.Parameter(torch.ones(2, 2))})

        def forward(self, x: Tensor) -> Tensor:
            return self.layers["conv"](x, EDGES)

    works(lambda: nn.Sequential(Block(), nn.Sequential(Block())), lambda m: m(X))
