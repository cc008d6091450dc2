"""What is known about each layer, as data: one row per class, and nothing per model.

Rows name classes by their name, so that this table needs no optional package and no particular
release of PyG. The documentation's status page is generated from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch_geometric.nn import MessagePassing

from torch_geometric_qlr.errors import UnsupportedLayerError

__all__ = ["LayerSpec", "Family", "find_spec", "register_conv", "register_linear", "conv_specs"]

Family = Literal["copy", "attention", "edge", "linear", "weights", "container", "float"]


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    r"""How a layer class is quantized.

    Args:
        family (str): :obj:`"copy"` (sends source features, maybe weighted), :obj:`"attention"` (the
            same with coefficients computed from the data), :obj:`"edge"` (a message per edge),
            :obj:`"linear"`, :obj:`"weights"` (parameters only), :obj:`"container"` (its children do
            the work) or :obj:`"float"` (stays as it is, for the reason in :obj:`note`).
        sources (tuple): Arguments of :obj:`propagate` that hold source features.
        logit_sources (tuple): Those that only enter attention logits, kept at 8 bits or more.
        weights (dict): Parameters outside of Linears that multiply features, with the dimension of
            their output channels, 0 or -1.
        logit_weights (tuple): Attention vectors, kept at 8 bits or more.
        hops (callable): Number of :obj:`propagate` calls in a forward, from the layer.
        propagates_input (bool): Whether the layer propagates before it transforms.
        note (str): A reason or remark, shown by :func:`torch_geometric_qlr.plan`.
    """

    family: Family
    sources: tuple[str, ...] = ()
    logit_sources: tuple[str, ...] = ()
    weights: Mapping[str, int] = field(default_factory=dict)
    logit_weights: tuple[str, ...] = ()
    hops: Callable[[Any], int] = lambda layer: 1
    propagates_input: bool = False
    note: str = ""

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Parameters read through a quantizer."""
        return (*self.weights, *self.logit_weights)


def _copy(first: bool = False, **fields: Any) -> LayerSpec:
    return LayerSpec(family="copy", propagates_input=first, **{"sources": ("x",), **fields})


def _attention(**fields: Any) -> LayerSpec:
    return LayerSpec(family="attention", **{"sources": ("x",), **fields})


def _edge(**fields: Any) -> LayerSpec:
    return LayerSpec(family="edge", **fields)


def _container(**fields: Any) -> LayerSpec:
    return LayerSpec(family="container", **fields)


_EXTERNAL = "computes in an external kernel; its Linear layers are quantized"

_CONVS: dict[str, LayerSpec] = {
    "SimpleConv": _copy(first=True),
    "GCNConv": _copy(),
    "ChebConv": _copy(first=True, hops=lambda conv: max(1, len(conv.lins) - 1)),
    "SAGEConv": _copy(first=True),
    "CuGraphSAGEConv": _container(note=_EXTERNAL),
    "GraphConv": _copy(first=True),
    "GravNetConv": _copy(),
    "GatedGraphConv": _copy(weights={"weight": -1}, hops=lambda conv: conv.num_layers),
    "ResGatedGraphConv": _edge(),
    "GATConv": _attention(logit_weights=("att_src", "att_dst", "att_edge")),
    "CuGraphGATConv": _container(note=_EXTERNAL),
    "FusedGATConv": _container(note=_EXTERNAL),
    "GATv2Conv": _attention(logit_weights=("att",)),
    "TransformerConv": _attention(sources=("value",), logit_sources=("key",)),
    "AGNNConv": _attention(logit_sources=("x_norm",)),
    "TAGConv": _copy(first=True, hops=lambda conv: conv.K),
    "GINConv": _copy(first=True),
    "GINEConv": _edge(),
    "ARMAConv": _copy(
        weights={"weight": -1, "init_weight": -1, "root_weight": -1},
        hops=lambda conv: conv.num_layers,
    ),
    "SGConv": _copy(first=True, hops=lambda conv: conv.K),
    "SSGConv": _copy(first=True, hops=lambda conv: conv.K),
    "APPNP": _copy(first=True, hops=lambda conv: conv.K),
    "MFConv": _copy(first=True),
    "RGCNConv": _copy(first=True, weights={"weight": -1, "root": -1}),
    "FastRGCNConv": _edge(weights={"weight": -1, "root": -1}),
    "CuGraphRGCNConv": _container(note=_EXTERNAL),
    "RGATConv": _attention(
        weights={"weight": -1, "basis": -1, "l2": -1}, logit_weights=("q", "k", "e", "att")
    ),
    "SignedConv": _copy(first=True, hops=lambda conv: 2 if conv.first_aggr else 4),
    "DNAConv": _edge(),
    "PointNetConv": _edge(),
    "GMMConv": _edge(weights={"g": -1}),
    "SplineConv": _edge(weights={"weight": -1}),
    "NNConv": _edge(),
    "CGConv": _edge(),
    "EdgeConv": _edge(),
    "DynamicEdgeConv": _edge(note="neighbours are found in floating point"),
    "XConv": _container(note="works on dense neighbourhoods; its Linear layers are quantized"),
    "PPFConv": _edge(),
    "FeaStConv": _edge(),
    "PointTransformerConv": _attention(),
    "HypergraphConv": _copy(logit_weights=("att",), hops=lambda conv: 2),
    "LEConv": _copy(sources=("a",)),
    "PNAConv": _edge(note="degree-scaled and standard-deviation aggregations stay float"),
    "ClusterGCNConv": _copy(first=True),
    "GENConv": _edge(),
    "GCN2Conv": _copy(first=True, weights={"weight1": -1, "weight2": -1}),
    "PANConv": _copy(first=True),
    "WLConv": LayerSpec(family="float", note="hashes integer labels; there is nothing to quantize"),
    "WLConvContinuous": _copy(first=True),
    "FiLMConv": _edge(),
    "SuperGATConv": _attention(logit_weights=("att_l", "att_r")),
    "FAConv": _attention(),
    "EGConv": _copy(),
    "PDNConv": _copy(),
    "GeneralConv": _edge(logit_weights=("att_msg",)),
    "HGTConv": _attention(sources=("v",), logit_sources=("k",)),
    "HEATConv": _edge(),
    "HeteroConv": _container(),
    "HANConv": _attention(logit_weights=("q",)),
    "LGConv": _copy(first=True),
    "PointGNNConv": _edge(),
    "GPSConv": _container(),
    "AntiSymmetricConv": LayerSpec(family="weights", weights={"W": -1}),
    "DirGNNConv": _container(),
    "MixHopConv": _copy(first=True, hops=lambda conv: max(1, max(conv.powers))),
    "MeshCNNConv": _edge(),
}

_OTHER: dict[str, LayerSpec] = {
    # Linear
    "torch.nn.Linear": LayerSpec(family="linear", weights={"weight": 0}),
    "torch.nn.Conv1d": LayerSpec(family="linear", weights={"weight": 0}),
    "torch_geometric.nn.Linear": LayerSpec(family="linear", weights={"weight": 0}),
    "torch_geometric.nn.HeteroLinear": LayerSpec(family="linear", weights={"weight": -1}),
    "torch_geometric.nn.conv.dna_conv.Linear": LayerSpec(family="linear", weights={"weight": -1}),
    # Parameters only
    "torch.nn.Bilinear": LayerSpec(family="weights", weights={"weight": 0}),
    "torch.nn.Embedding": LayerSpec(family="weights", weights={"weight": 0}),
    "torch.nn.GRUCell": LayerSpec(family="weights", weights={"weight_ih": 0, "weight_hh": 0}),
    "torch.nn.LSTMCell": LayerSpec(family="weights", weights={"weight_ih": 0, "weight_hh": 0}),
    "torch.nn.RNNCell": LayerSpec(family="weights", weights={"weight_ih": 0, "weight_hh": 0}),
    "torch.nn.MultiheadAttention": LayerSpec(
        family="weights",
        weights=dict.fromkeys(
            ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"), 0
        ),
    ),
    "torch_geometric.nn.models.linkx.SparseLinear": _copy(
        sources=(), weights={"weight": 0}, note="propagates its weight"
    ),
    # Floating point, with the reason
    "torch.nn.RNNBase": LayerSpec(
        family="float", note="recurrent layer: its fused kernel reads flattened weights"
    ),
}

#: Children that a layer reads as a tensor instead of calling them, so that no quantizer would act.
READ_AS_TENSOR: Mapping[str, str] = {
    "LightGCN": "embedding",
    "Node2Vec": "embedding",
    "MetaPath2Vec": "embedding",
}

#: Families whose layers become quantized objects.
REWRITTEN: tuple[Family, ...] = ("copy", "attention", "edge", "linear", "weights")

_USER: dict[type, LayerSpec] = {}


def _qualified_names(cls: type) -> set[str]:
    names = {f"{cls.__module__}.{cls.__name__}"}
    if cls.__module__.startswith("torch.nn."):
        names.add(f"torch.nn.{cls.__name__}")
    if cls.__module__.startswith("torch_geometric.nn."):
        names.add(f"torch_geometric.nn.{cls.__name__}")
    return names


def _registered(cls: type) -> LayerSpec | None:
    if cls in _USER:
        return _USER[cls]
    if cls.__module__.startswith("torch_geometric.nn.conv.") and cls.__name__ in _CONVS:
        return _CONVS[cls.__name__]
    if cls.__module__.startswith("torch_geometric_qlr.nn.propagation"):
        return _CONVS.get(cls.__name__)
    return next((_OTHER[n] for n in _qualified_names(cls) if n in _OTHER), None)


def find_spec(layer: nn.Module) -> LayerSpec | None:
    r"""The row that holds for a layer: its class's, or the nearest base's whose messages it keeps,
    or for a :class:`~torch_geometric.nn.MessagePassing` layer nobody has registered one read off
    its class. :obj:`None` for anything else.

    Args:
        layer (torch.nn.Module): The layer.

    Example:
        >>> from torch_geometric.nn import GCNConv
        >>> find_spec(GCNConv(4, 2)).family
        'copy'
    """
    cls = type(layer)
    for base in cls.__mro__:
        if not issubclass(base, nn.Module) or base in (nn.Module, MessagePassing):
            continue
        spec = _registered(base)
        if spec is not None and _keeps_messages(cls, base):
            return spec
    if isinstance(layer, MessagePassing):
        return _read_off(layer)
    return None


def _keeps_messages(cls: type, base: type) -> bool:
    return not issubclass(base, MessagePassing) or all(
        getattr(cls, name) is getattr(base, name) for name in ("message", "message_and_aggregate")
    )


def _read_off(layer: MessagePassing) -> LayerSpec:
    weights = {
        name: -1
        for name, p in layer.named_parameters(recurse=False)
        if p.dim() >= 2 and "bias" not in name
    }
    if type(layer).message is MessagePassing.message:
        return _copy(weights=weights, note="unregistered: sends copies of x")
    return _edge(weights=weights, note="unregistered: messages quantized per edge")


def conv_specs() -> dict[str, LayerSpec]:
    r"""All rows for convolutions, by class name, registered ones included.

    Example:
        >>> conv_specs()["GATConv"].logit_weights
        ('att_src', 'att_dst', 'att_edge')
    """
    user = {c.__name__: s for c, s in _USER.items() if issubclass(c, MessagePassing)}
    return {**_CONVS, **user}


def register_conv(  # noqa: PLR0913
    cls: type[MessagePassing],
    *,
    family: Literal["copy", "attention", "edge"] = "copy",
    sources: tuple[str, ...] = ("x",),
    logit_sources: tuple[str, ...] = (),
    weights: Mapping[str, int] | None = None,
    logit_weights: tuple[str, ...] = (),
    hops: Callable[[Any], int] = lambda layer: 1,
    propagates_input: bool = False,
    note: str = "",
) -> type[MessagePassing]:
    r"""Teaches the package a custom :class:`~torch_geometric.nn.MessagePassing` layer.

    An unregistered layer works as well: its messages are quantized per edge. Registering one of the
    copy or attention family lets its sources be quantized once per node instead, which is what
    packed inference gathers. Works as a decorator.

    Args:
        cls (type): The layer.
        family (str): :obj:`"copy"` if :obj:`message` returns :obj:`x_j`, maybe times an edge
            weight; :obj:`"attention"` if it is times a coefficient computed from the data;
            :obj:`"edge"` otherwise. (default: :obj:`"copy"`)
        sources (tuple): Arguments of :obj:`propagate` that hold source features.
            (default: :obj:`("x",)`)
        logit_sources (tuple): Those that only enter attention logits, kept at 8 bits or more.
        weights (dict): Parameters outside of Linears that multiply features, with the dimension of
            their output channels, 0 or -1.
        logit_weights (tuple): Attention vectors, kept at 8 bits or more.
        hops (callable): Number of :obj:`propagate` calls in a forward, from the layer.
        propagates_input (bool): Whether the layer propagates before it transforms.
        note (str): Shown by :func:`torch_geometric_qlr.plan`.

    Raises:
        UnsupportedLayerError: If :obj:`cls` is no message passing class, or an edge layer is given
            sources.

    Example:
        >>> from torch_geometric.nn import MessagePassing
        >>> import torch_geometric_qlr as qlr
        >>> class Mean(MessagePassing):
        ...     def forward(self, x, edge_index):
        ...         return self.propagate(edge_index, x=x)
        >>> qlr.register_conv(Mean, family="copy", propagates_input=True).__name__
        'Mean'
    """
    if not (isinstance(cls, type) and issubclass(cls, MessagePassing)):
        raise UnsupportedLayerError(
            f"register_conv got {cls!r}, which is no MessagePassing class. A layer that multiplies "
            f"its input by a weight is registered with register_linear(...)."
        )
    if family == "edge" and (sources not in ((), ("x",)) or logit_sources):
        raise UnsupportedLayerError(
            f"{cls.__name__}: an 'edge' layer quantizes messages, not sources. Drop sources=, or "
            f"choose family='copy' or 'attention'."
        )
    _USER[cls] = LayerSpec(
        family=family,
        sources=() if family == "edge" else tuple(sources),
        logit_sources=tuple(logit_sources),
        weights=dict(weights or {}),
        logit_weights=tuple(logit_weights),
        hops=hops,
        propagates_input=propagates_input,
        note=note,
    )
    return cls


def register_linear(
    cls: type[nn.Module], *, weight: str = "weight", channel_dim: int = 0
) -> type[nn.Module]:
    r"""Teaches the package a layer whose forward multiplies its first argument by a weight.

    Args:
        cls (type): The layer.
        weight (str): Name of the weight parameter. (default: :obj:`"weight"`)
        channel_dim (int): Dimension of its output channels, 0 or -1. (default: :obj:`0`)

    Raises:
        UnsupportedLayerError: If :obj:`cls` is no module class, or is a message passing class.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> class Scaled(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.rand(4, 2))
        ...     def forward(self, x):
        ...         return 2 * x @ self.w
        >>> _ = qlr.register_linear(Scaled, weight="w", channel_dim=-1)
        >>> type(qlr.quantize(Scaled(), bits=4)).__name__
        'QuantScaled'
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UnsupportedLayerError(f"register_linear got {cls!r}, which is no torch.nn.Module class.")
    if issubclass(cls, MessagePassing):
        raise UnsupportedLayerError(
            f"{cls.__name__} is a MessagePassing class; register it with register_conv(...)."
        )
    _USER[cls] = LayerSpec(family="linear", weights={weight: channel_dim})
    return cls
