"""What is known about each layer, as data: one row per class, and nothing per model.

Rows name classes by their name, so that this table needs no optional package and no particular
release of PyG. The documentation's status page is generated from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.layers.layer_spec import (
    EdgePreparation,
    EdgeUpdateFacts,
    ForwardFacts,
    HopChain,
    LayerSpec,
    MessageFacts,
    OwnTerm,
)
from torch_geometric_qlr.nn.preparations import (
    ATTENTION_LOOPS,
    GCN_ALWAYS,
    GCN_NORM,
    GCN_NORM_WITHOUT_LOOPS,
    PLAIN_LOOPS,
)

__all__ = ["CONVS", "OTHERS", "attention_spec", "copy_spec", "edge_spec"]


def copy_spec(*, first: bool = False, **fields: Any) -> LayerSpec:
    """A layer whose messages are copies of its source; ``first`` if it propagates its input."""
    return LayerSpec(family="copy", propagates_input=first, **{"sources": ("x",), **fields})


def attention_spec(**fields: Any) -> LayerSpec:
    """A layer whose messages are multiples of its source that attention computes."""
    within: Any = lambda conv: "its attention is not known to be linear in the features"  # noqa: E731
    return LayerSpec(family="attention", **{"sources": ("x",), "rough": within, **fields})


def edge_spec(**fields: Any) -> LayerSpec:
    """A layer whose messages are computed edge by edge."""
    return LayerSpec(
        family="edge", rough=lambda conv: "its messages are not linear in the features", **fields
    )


def _container(**fields: Any) -> LayerSpec:
    return LayerSpec(family="container", **fields)


def _normalized(conv: Any) -> str:
    """For operators that layers normalise symmetrically, unless they are told not to."""
    return "" if getattr(conv, "normalize", True) else "normalize=False: its weights are as given"


def _mean(conv: Any) -> str:
    """For operators with unit weights, which only an average normalises."""
    return "" if conv.aggr == "mean" else f"{conv.aggr!r} aggregation is not normalised; 'mean' is"


def _softmax(conv: Any) -> str:
    """For attention that is computed before the features are propagated: rows add up to one."""
    return ""


#: Takes those that send and those that receive apart.
_PAIRS = ForwardFacts(pairs=True)


def _prepares(
    edges: EdgePreparation, chain: HopChain | None = None, *, pairs: bool = False
) -> ForwardFacts:
    return ForwardFacts(edges=edges, chain=chain, pairs=pairs)


def _node_types(conv: Any) -> int:
    return len(conv.in_channels)


def _types_that_send(
    conv: Any, x_dict: Any, edge_index_dict: Any, *args: Any, **kwargs: Any
) -> tuple[int, ...]:
    """The type of the nodes that each type of edges starts from: it has features of its own."""
    types = list(conv.in_channels)
    return tuple(types.index(source) for source, *_ in edge_index_dict)


def _one_plus_eps(conv: Any) -> float | None:
    eps = conv.eps
    if eps.numel() != 1 or eps.dtype != torch.float32 or eps.device.type != "cpu":
        return None
    return 1.0 + float(eps)


def _attends(source: str, **fields: Any) -> MessageFacts:
    """For messages that compute coefficients and multiply their source by them."""
    return MessageFacts(coefficients=source, **fields)


def _adds_edges(conv: Any) -> str:
    return "" if conv.lin_edge is None else "its messages add edge features"


def _edge_logits(conv: Any, arguments: dict[str, Any]) -> Tensor | None:
    """Of a GATConv, from features of its edges."""
    attr = arguments.get("edge_attr")
    if attr is None or conv.lin_edge is None:
        return None
    attr = conv.lin_edge(attr.view(-1, 1) if attr.dim() == 1 else attr)
    logits: Tensor = (attr.view(-1, conv.heads, conv.out_channels) * conv.att_edge).sum(dim=-1)
    return logits


_EXTERNAL = "computes in an external kernel; its Linear layers are quantized"

#: Convolutions of PyG, by class name.
CONVS: Mapping[str, LayerSpec] = {
    "SimpleConv": copy_spec(first=True, rough=_mean),
    "GCNConv": copy_spec(rough=_normalized, forward=_prepares(GCN_NORM)),
    "ChebConv": copy_spec(first=True, hops=lambda conv: max(1, len(conv.lins) - 1)),
    "SAGEConv": copy_spec(first=True, rough=_mean, forward=_PAIRS),
    "CuGraphSAGEConv": _container(note=_EXTERNAL),
    "GraphConv": copy_spec(first=True, rough=_mean, forward=_PAIRS),
    "GravNetConv": copy_spec(),
    "GatedGraphConv": copy_spec(weights={"weight": -1}, hops=lambda conv: conv.num_layers),
    "ResGatedGraphConv": edge_spec(),
    "GATConv": attention_spec(
        logit_weights=("att_src", "att_dst", "att_edge"),
        rough=_softmax,
        forward=_prepares(ATTENTION_LOOPS, pairs=True),
        edge_update=EdgeUpdateFacts(logits="alpha", edge_logits=_edge_logits),
    ),
    "CuGraphGATConv": _container(note=_EXTERNAL),
    "FusedGATConv": _container(note=_EXTERNAL),
    "GATv2Conv": attention_spec(
        logit_weights=("att",), rough=_softmax, forward=_prepares(ATTENTION_LOOPS, pairs=True)
    ),
    "TransformerConv": attention_spec(
        sources=("value",), logit_sources=("key",), message=_attends("value", obstacle=_adds_edges)
    ),
    "AGNNConv": attention_spec(
        logit_sources=("x_norm",),
        rough=_softmax,
        forward=_prepares(PLAIN_LOOPS),
        message=_attends("x"),
    ),
    "TAGConv": copy_spec(
        first=True,
        hops=lambda conv: conv.K,
        rough=_normalized,
        forward=_prepares(GCN_NORM_WITHOUT_LOOPS),
    ),
    "GINConv": copy_spec(
        first=True,
        rough=_mean,
        forward=ForwardFacts(own_term=OwnTerm(factor=_one_plus_eps, then="nn"), pairs=True),
    ),
    "GINEConv": edge_spec(forward=_PAIRS),
    "ARMAConv": copy_spec(
        weights={"weight": -1, "init_weight": -1, "root_weight": -1},
        hops=lambda conv: conv.num_layers,
    ),
    "SGConv": copy_spec(
        first=True,
        hops=lambda conv: conv.K,
        rough=_normalized,
        forward=_prepares(GCN_ALWAYS, HopChain(then="lin")),
    ),
    "SSGConv": copy_spec(first=True, hops=lambda conv: conv.K, rough=_normalized),
    "APPNP": copy_spec(
        first=True,
        hops=lambda conv: conv.K,
        rough=_normalized,
        forward=_prepares(GCN_NORM, HopChain(teleport="alpha")),
    ),
    "MFConv": copy_spec(first=True),
    "RGCNConv": copy_spec(
        first=True,
        weights={"weight": -1, "root": -1},
        first_argument="any",
        message=MessageFacts(copies="x", unless="edge_type_ptr"),
    ),
    "FastRGCNConv": edge_spec(weights={"weight": -1, "root": -1}, first_argument="any"),
    "CuGraphRGCNConv": _container(note=_EXTERNAL),
    "RGATConv": attention_spec(
        weights={"weight": -1, "basis": -1, "l2": -1}, logit_weights=("q", "k", "e", "att")
    ),
    "SignedConv": copy_spec(first=True, hops=lambda conv: 2 if conv.first_aggr else 4),
    "DNAConv": edge_spec(),
    "PointNetConv": edge_spec(),
    "GMMConv": edge_spec(weights={"g": -1}),
    "SplineConv": edge_spec(weights={"weight": -1}),
    "NNConv": edge_spec(),
    "CGConv": edge_spec(),
    "EdgeConv": edge_spec(forward=_PAIRS),
    "DynamicEdgeConv": edge_spec(note="neighbours are found in floating point"),
    "XConv": _container(note="works on dense neighbourhoods; its Linear layers are quantized"),
    "PPFConv": edge_spec(),
    "FeaStConv": edge_spec(),
    "PointTransformerConv": attention_spec(),
    "HypergraphConv": copy_spec(logit_weights=("att",), hops=lambda conv: 2),
    "LEConv": copy_spec(sources=("a",)),
    "PNAConv": edge_spec(note="degree-scaled and standard-deviation aggregations stay float"),
    "ClusterGCNConv": copy_spec(first=True),
    "GENConv": edge_spec(),
    "GCN2Conv": copy_spec(
        first=True,
        weights={"weight1": -1, "weight2": -1},
        rough=_normalized,
        forward=_prepares(GCN_NORM),
    ),
    "PANConv": copy_spec(first=True),
    "WLConv": LayerSpec(family="float", note="hashes integer labels; there is nothing to quantize"),
    "WLConvContinuous": copy_spec(first=True),
    "FiLMConv": edge_spec(),
    "SuperGATConv": attention_spec(
        logit_weights=("att_l", "att_r"), forward=_prepares(PLAIN_LOOPS)
    ),
    "FAConv": attention_spec(forward=_prepares(GCN_NORM), message=_attends("x")),
    "EGConv": copy_spec(),
    "PDNConv": copy_spec(rough=_normalized),
    "GeneralConv": edge_spec(logit_weights=("att_msg",)),
    "HGTConv": attention_spec(
        sources=("v",),
        logit_sources=("k",),
        input_children=("kqv_lin",),
        message=_attends("v"),
    ),
    "HEATConv": edge_spec(input_children=("hetero_lin", "edge_attr_emb")),
    "HeteroConv": _container(),
    "HANConv": attention_spec(
        logit_weights=("q",),
        input_children=("proj",),
        hops=_node_types,
        hop_kinds=_node_types,
        forward=ForwardFacts(kinds=_types_that_send),
        message=_attends("x"),
    ),
    "LGConv": copy_spec(first=True, rough=_normalized, forward=_prepares(GCN_NORM_WITHOUT_LOOPS)),
    "PointGNNConv": edge_spec(),
    "GPSConv": _container(),
    "AntiSymmetricConv": LayerSpec(family="weights", weights={"W": -1}),
    "DirGNNConv": _container(),
    "MixHopConv": copy_spec(
        first=True, hops=lambda conv: max(1, max(conv.powers)), rough=_normalized
    ),
    "MeshCNNConv": edge_spec(),
    # Of this package. SMP propagates the representation, then its change, which is far smaller.
    "SMP": copy_spec(
        first=True,
        hops=lambda conv: conv.K * (2 if conv.correction else 1),
        hop_kinds=lambda conv: 2 if conv.correction else 1,
        rough=lambda conv: "it is smooth already",
        first_argument="any",
        forward=ForwardFacts(chain=HopChain(operation="smp", unless="return_history")),
    ),
    "EMP": copy_spec(
        first=True,
        hops=lambda conv: conv.K,
        note="differences along edges stay float",
        first_argument="any",
    ),
}

_PRODUCT = ForwardFacts(computes="product")

#: Everything else, by qualified name.
OTHERS: Mapping[str, LayerSpec] = {
    # Linear
    "torch.nn.Linear": LayerSpec(family="linear", weights={"weight": 0}, forward=_PRODUCT),
    "torch.nn.Conv1d": LayerSpec(family="linear", weights={"weight": 0}, features_last=False),
    "torch_geometric.nn.Linear": LayerSpec(
        family="linear", weights={"weight": 0}, forward=_PRODUCT
    ),
    "torch_geometric.nn.HeteroLinear": LayerSpec(family="linear", weights={"weight": -1}),
    "torch_geometric.nn.conv.dna_conv.Linear": LayerSpec(family="linear", weights={"weight": -1}),
    # Parameters only
    "torch.nn.Bilinear": LayerSpec(family="weights", weights={"weight": 0}),
    "torch.nn.Embedding": LayerSpec(
        family="weights", weights={"weight": 0}, forward=ForwardFacts(computes="lookup")
    ),
    "torch.nn.GRUCell": LayerSpec(family="weights", weights={"weight_ih": 0, "weight_hh": 0}),
    "torch.nn.LSTMCell": LayerSpec(family="weights", weights={"weight_ih": 0, "weight_hh": 0}),
    "torch.nn.RNNCell": LayerSpec(family="weights", weights={"weight_ih": 0, "weight_hh": 0}),
    "torch.nn.MultiheadAttention": LayerSpec(
        family="weights",
        weights=dict.fromkeys(
            ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"), 0
        ),
        reads_in_forward="out_proj",
    ),
    "torch_geometric.nn.models.linkx.SparseLinear": copy_spec(
        sources=(), weights={"weight": 0}, note="propagates its weight", first_argument="any"
    ),
    "torch_geometric.nn.models.attentive_fp.GATEConv": edge_spec(
        logit_weights=("att_l", "att_r"), first_argument="any"
    ),
    "torch_geometric.nn.models.lpformer.LPAttLayer": edge_spec(
        logit_weights=("att",), first_argument="any"
    ),
    "torch_geometric.nn.models.dimenet.InteractionBlock": LayerSpec(
        family="weights", weights={"W": 0}
    ),
    "torch_geometric.nn.models.re_net.RENet": LayerSpec(
        family="weights", weights={"ent": 0, "rel": 0}
    ),
    "torch_geometric.nn.DenseGATConv": LayerSpec(
        family="weights", logit_weights=("att_src", "att_dst")
    ),
    # Floating point, with the reason
    "torch.nn.RNNBase": LayerSpec(
        family="float", note="recurrent layer: its fused kernel reads flattened weights"
    ),
    # What reads its children's weights itself
    "torch_geometric.nn.LightGCN": _container(reads_anywhere="embedding"),
    "torch_geometric.nn.Node2Vec": _container(reads_anywhere="embedding"),
    "torch_geometric.nn.MetaPath2Vec": _container(reads_anywhere="embedding"),
    "torch_geometric.nn.PMLP": _container(reads_in_forward="lins"),
    "torch_geometric.nn.HeteroDictLinear": _container(calls_children=True),
    "torch.nn.TransformerEncoderLayer": _container(fast_paths={"activation_relu_or_gelu": 0}),
    "torch.nn.TransformerEncoder": _container(fast_paths={"use_nested_tensor": False}),
}
