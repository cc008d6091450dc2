"""One small constructor and one call for every convolution of PyG that runs here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_geometric.nn as pyg_nn
import torch_geometric.nn.conv as convs
from torch import Tensor, nn

from tests.helpers.optional import skip_for

NODES, FEATURES, HIDDEN, EDGE_FEATURES, TYPES = 12, 8, 6, 5, 3
_seeded = torch.Generator().manual_seed(0)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_seeded)


def _graph() -> Tensor:
    """Sorted by target, without self loops or duplicates; node 11 is isolated."""
    edge_index = torch.randint(0, NODES - 1, (2, 40), generator=_seeded)
    edge_index = torch.unique(edge_index, dim=1)
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    return edge_index[:, (edge_index[1] * NODES + edge_index[0]).argsort()]


EDGES = _graph()
E = EDGES.size(1)
X = _random(NODES, FEATURES)
EDGE_ATTR = _random(E, EDGE_FEATURES)
EDGE_TYPE = torch.randint(0, TYPES, (E,), generator=_seeded)
NODE_TYPE = torch.randint(0, TYPES, (NODES,), generator=_seeded)
POS = _random(NODES, 3)
NORMAL = nn.functional.normalize(_random(NODES, 3), dim=-1)
DEGREE = torch.bincount(torch.bincount(EDGES[1], minlength=NODES), minlength=2)
META = (["a", "b"], [("a", "to", "b"), ("b", "to", "a")])
X_DICT = {"a": X, "b": _random(NODES, FEATURES)}
EDGE_DICT = {("a", "to", "b"): EDGES, ("b", "to", "a"): EDGES.flip(0)}
MESH = (_random(5, FEATURES), torch.randint(0, 5, (2, 20), generator=_seeded))


def _mlp(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_channels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, out_channels))


def _initialized(conv: nn.Module) -> nn.Module:
    """RGATConv leaves one of its weights as the memory was."""
    nn.init.constant_(conv.l2, 1 / HIDDEN)
    return conv


def _hetero() -> nn.Module:
    return convs.HeteroConv(
        {
            ("a", "to", "b"): convs.SAGEConv(FEATURES, HIDDEN),
            ("b", "to", "a"): convs.GATConv((FEATURES,) * 2, HIDDEN, add_self_loops=False),
        }
    )


F, H, D = FEATURES, HIDDEN, EDGE_FEATURES
convs.SAGEConv(F, H)  # PyG generates code per class, by its first object, aggregation included
ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "SimpleConv": (lambda: convs.SimpleConv(), (X, EDGES)),
    "GCNConv": (lambda: convs.GCNConv(F, H), (X, EDGES)),
    "ChebConv": (lambda: convs.ChebConv(F, H, K=3), (X, EDGES)),
    "SAGEConv": (lambda: convs.SAGEConv(F, H), (X, EDGES)),
    "GraphConv": (lambda: convs.GraphConv(F, H), (X, EDGES)),
    "GravNetConv": (lambda: convs.GravNetConv(F, H, 3, 4, 2), (X,)),
    "GatedGraphConv": (lambda: convs.GatedGraphConv(F, 2), (X, EDGES)),
    "ResGatedGraphConv": (lambda: convs.ResGatedGraphConv(F, H), (X, EDGES)),
    "GATConv": (lambda: convs.GATConv(F, H, heads=2), (X, EDGES)),
    "GATv2Conv": (lambda: convs.GATv2Conv(F, H, heads=2), (X, EDGES)),
    "TransformerConv": (lambda: convs.TransformerConv(F, H, heads=2), (X, EDGES)),
    "AGNNConv": (lambda: convs.AGNNConv(), (X, EDGES)),
    "TAGConv": (lambda: convs.TAGConv(F, H), (X, EDGES)),
    "GINConv": (lambda: convs.GINConv(_mlp(F, H), train_eps=True), (X, EDGES)),
    "GINEConv": (lambda: convs.GINEConv(_mlp(F, H), edge_dim=D), (X, EDGES, EDGE_ATTR)),
    "ARMAConv": (lambda: convs.ARMAConv(F, H, num_stacks=2, num_layers=2), (X, EDGES)),
    "SGConv": (lambda: convs.SGConv(F, H, K=2), (X, EDGES)),
    "SSGConv": (lambda: convs.SSGConv(F, H, alpha=0.1, K=2), (X, EDGES)),
    "APPNP": (lambda: convs.APPNP(3, 0.1), (X, EDGES)),
    "MFConv": (lambda: convs.MFConv(F, H), (X, EDGES)),
    "RGCNConv": (lambda: convs.RGCNConv(F, H, TYPES), (X, EDGES, EDGE_TYPE)),
    "FastRGCNConv": (lambda: convs.FastRGCNConv(F, H, TYPES), (X, EDGES, EDGE_TYPE)),
    "RGATConv": (lambda: _initialized(convs.RGATConv(F, H, TYPES)), (X, EDGES, EDGE_TYPE)),
    "SignedConv": (lambda: convs.SignedConv(F, H, True), (X, EDGES, EDGES)),
    "DNAConv": (lambda: convs.DNAConv(F), (X.view(NODES, 1, F).repeat(1, 3, 1), EDGES)),
    "PointNetConv": (lambda: convs.PointNetConv(_mlp(F + 3, H)), (X, POS, EDGES)),
    "GMMConv": (lambda: convs.GMMConv(F, H, dim=D, kernel_size=2), (X, EDGES, EDGE_ATTR)),
    "SplineConv": (
        lambda: convs.SplineConv(F, H, dim=D, kernel_size=2),
        (X, EDGES, EDGE_ATTR.sigmoid()),
    ),
    "NNConv": (lambda: convs.NNConv(F, H, _mlp(D, F * H)), (X, EDGES, EDGE_ATTR)),
    "CGConv": (lambda: convs.CGConv(F, dim=D), (X, EDGES, EDGE_ATTR)),
    "EdgeConv": (lambda: convs.EdgeConv(_mlp(2 * F, H)), (X, EDGES)),
    "DynamicEdgeConv": (lambda: convs.DynamicEdgeConv(_mlp(2 * F, H), k=2), (X,)),
    "XConv": (lambda: convs.XConv(F, H, dim=3, kernel_size=2), (X, POS)),
    "PPFConv": (lambda: convs.PPFConv(_mlp(F + 4, H)), (X, POS, NORMAL, EDGES)),
    "FeaStConv": (lambda: convs.FeaStConv(F, H, heads=2), (X, EDGES)),
    "PointTransformerConv": (lambda: convs.PointTransformerConv(F, H), (X, POS, EDGES)),
    "HypergraphConv": (lambda: convs.HypergraphConv(F, H), (X, EDGES)),
    "LEConv": (lambda: convs.LEConv(F, H), (X, EDGES)),
    "PNAConv": (
        lambda: convs.PNAConv(F, H, ["mean", "max", "std"], ["identity", "amplification"], DEGREE),
        (X, EDGES),
    ),
    "ClusterGCNConv": (lambda: convs.ClusterGCNConv(F, H), (X, EDGES)),
    "GENConv": (lambda: convs.GENConv(F, H, aggr="softmax"), (X, EDGES)),
    "GCN2Conv": (lambda: convs.GCN2Conv(F, alpha=0.2), (X, X, EDGES)),
    "PANConv": (lambda: convs.PANConv(F, H, filter_size=2), (X, EDGES)),
    "WLConvContinuous": (lambda: convs.WLConvContinuous(), (X, EDGES)),
    "FiLMConv": (lambda: convs.FiLMConv(F, H), (X, EDGES)),
    "SuperGATConv": (lambda: convs.SuperGATConv(F, H, heads=2), (X, EDGES)),
    "FAConv": (lambda: convs.FAConv(F), (X, X, EDGES)),
    "EGConv": (lambda: convs.EGConv(F, 8, ["sum", "mean"], num_heads=2, num_bases=2), (X, EDGES)),
    "PDNConv": (lambda: convs.PDNConv(F, H, edge_dim=D, hidden_channels=4), (X, EDGES, EDGE_ATTR)),
    "GeneralConv": (
        lambda: convs.GeneralConv(F, H, in_edge_channels=D, attention=True),
        (X, EDGES, EDGE_ATTR),
    ),
    "HGTConv": (lambda: convs.HGTConv(F, 8, META, heads=2), (X_DICT, EDGE_DICT)),
    "HEATConv": (
        lambda: convs.HEATConv(F, H, TYPES, TYPES, 3, D, 4),
        (X, EDGES, NODE_TYPE, EDGE_TYPE, EDGE_ATTR),
    ),
    "HeteroConv": (_hetero, (X_DICT, EDGE_DICT)),
    "HANConv": (lambda: convs.HANConv(F, 8, META, heads=2), (X_DICT, EDGE_DICT)),
    "LGConv": (lambda: convs.LGConv(), (X, EDGES)),
    "PointGNNConv": (
        lambda: convs.PointGNNConv(_mlp(F, 3), _mlp(F + 3, F), _mlp(F, F)),
        (X, POS, EDGES),
    ),
    "GPSConv": (lambda: pyg_nn.GPSConv(F, convs.GINConv(_mlp(F, F)), heads=2), (X, EDGES)),
    "AntiSymmetricConv": (lambda: convs.AntiSymmetricConv(F), (X, EDGES)),
    "DirGNNConv": (lambda: convs.DirGNNConv(convs.SAGEConv(F, H)), (X, EDGES)),
    "MixHopConv": (lambda: convs.MixHopConv(F, H, powers=[0, 1, 2]), (X, EDGES)),
    "MeshCNNConv": (lambda: convs.MeshCNNConv(F, H), MESH),
}


def build(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A seeded layer and its arguments; skips where PyG needs a package that is not here."""
    make, args = ZOO[name]
    torch.manual_seed(1)
    try:
        layer = make().to(X.device)  # some of PyG make their parameters on the CPU
        with torch.no_grad():
            layer.eval()(*args)
    except ImportError as error:
        skip_for(name, error)
    return layer.train(), args


def flat(out: Any) -> list[Tensor]:
    """All floating point tensors of an output."""
    if isinstance(out, Tensor):
        return [out] if out.is_floating_point() else []
    if isinstance(out, dict):
        out = list(out.values())
    return [t for o in out for t in flat(o)] if isinstance(out, (list, tuple)) else []
