"""Which row of the table holds for a layer, and rows that users add."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch_geometric.nn as pyg_nn
from torch import nn
from torch_geometric.nn import MessagePassing

from torch_geometric_qlr.errors import ConfigError, UnsupportedLayerError
from torch_geometric_qlr.layers.layer_spec import (
    EdgeUpdateFacts,
    Facts,
    ForwardFacts,
    LayerSpec,
    MessageFacts,
)
from torch_geometric_qlr.layers.pyg import is_own_conv
from torch_geometric_qlr.layers.state import float_class
from torch_geometric_qlr.nn.layer import forget_classes
from torch_geometric_qlr.nn.table import CONVS, OTHERS, copy_spec, edge_spec

__all__ = [
    "LayerSpec",
    "class_facts",
    "find_spec",
    "is_registered",
    "register_conv",
    "register_linear",
    "conv_specs",
]

_USER: dict[type, LayerSpec] = {}

# Nothing keeps the propagation of a normalised layer from being smoothed.
_NORMALIZED: Callable[[Any], str] = lambda layer: ""  # noqa: E731


def _qualified_names(cls: type) -> set[str]:
    names = {f"{cls.__module__}.{cls.__name__}"}
    for package in (nn, pyg_nn):
        # PyG has several classes of one name; only one of them is the public one.
        if getattr(package, cls.__name__, None) is cls:
            names.add(f"{package.__name__}.{cls.__name__}")
    return names


def _registered(cls: type) -> LayerSpec | None:
    if cls in _USER:
        return _USER[cls]
    if is_own_conv(cls) and cls.__name__ in CONVS:
        return CONVS[cls.__name__]
    if cls.__module__.startswith("torch_geometric_qlr.nn.propagation"):
        return CONVS.get(cls.__name__)
    return next((OTHERS[n] for n in _qualified_names(cls) if n in OTHERS), None)


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
    return _as_smoothed(layer, _find(layer))


def _as_smoothed(layer: nn.Module, spec: LayerSpec | None) -> LayerSpec | None:
    """The row once ``SmoothPropagation`` has seen the layer: every hop propagates two things."""
    smooth: Any = layer.__dict__.get("_qlr_smooth")
    if smooth is None or spec is None:
        return spec
    spec = dataclasses.replace(spec, note="; ".join(filter(None, [spec.note, smooth.note])))
    kinds = 1 if smooth.options is None else smooth.options.products
    if kinds == 1:
        return spec
    hops = spec.hops
    return dataclasses.replace(
        spec, hops=lambda layer: kinds * hops(layer), hop_kinds=lambda layer: kinds
    )


def _find(layer: nn.Module) -> LayerSpec | None:
    # A quantized layer has messages of its own; what it sends is its float class's.
    cls = float_class(layer)
    for base in cls.__mro__:
        if not issubclass(base, nn.Module) or base in (nn.Module, MessagePassing):
            continue
        spec = _registered(base)
        if spec is not None and _keeps_messages(cls, base):
            return spec
    if isinstance(layer, MessagePassing):
        return _read_off(layer)
    return None


def _keeps_messages(cls: Any, base: Any) -> bool:
    # A fused product of its own is computed as it stands, from rounded sources.
    return not issubclass(base, MessagePassing) or cls.message is base.message


def class_facts(cls: type[nn.Module]) -> Facts:
    r"""What is known of the code that a float class runs, found with the class it was written in.

    Args:
        cls (type): The class.

    Example:
        >>> from torch_geometric.nn import GCNConv, FAConv
        >>> class_facts(GCNConv).forward.edges.flag, class_facts(FAConv).message.coefficients
        ('normalize', 'x')
    """
    rows = [(base, row) for base in cls.__mro__ if (row := _registered(base)) is not None]

    def of(method: str, unknown: Any) -> Any:
        runs = getattr(cls, method, None)
        known = (getattr(row, method) for base, row in rows if getattr(base, method, None) is runs)
        return next((facts for facts in known if facts != unknown), unknown)

    row = _registered(cls)
    has_features = row is not None and row.first_argument == "features"
    read = (row.reads_in_forward for _, row in rows)
    return Facts(
        forward=of("forward", ForwardFacts()),
        message=of("message", MessageFacts()),
        edge_update=of("edge_update", EdgeUpdateFacts()),
        reads_in_forward=next(filter(None, read), ""),
        expects_features=has_features and _first_argument(cls) == "x",
        hops=rows[0][1].hops if rows else LayerSpec.hops,
    )


def _first_argument(cls: Any) -> str:
    """The name of what a forward takes first."""
    return next(iter(list(inspect.signature(cls.forward).parameters)[1:]), "")


def _read_off(layer: MessagePassing) -> LayerSpec:
    matrices = {
        name: p
        for name, p in layer.named_parameters(recurse=False)
        if p.dim() >= 2 and "bias" not in name
    }
    # [1, C] or [1, heads, C] multiplies features elementwise: an attention vector.
    vectors = tuple(name for name, p in matrices.items() if p.size(0) == 1)
    fields: dict[str, Any] = {
        "weights": {n: -1 for n in matrices if n not in vectors},
        "logit_weights": vectors,
    }
    if type(layer).message is MessagePassing.message:
        return copy_spec(**fields, note="unregistered: sends copies of x")
    return edge_spec(**fields, note="unregistered: messages quantized per edge")


def conv_specs() -> dict[str, LayerSpec]:
    r"""All rows for convolutions, by class name, registered ones included.

    Example:
        >>> conv_specs()["GATConv"].logit_weights
        ('att_src', 'att_dst', 'att_edge')
    """
    user = {c.__name__: s for c, s in _USER.items() if issubclass(c, MessagePassing)}
    return {**CONVS, **user}


def register_conv(
    cls: type[MessagePassing],
    *,
    family: Literal["copy", "attention", "edge"] = "copy",
    sources: tuple[str, ...] = ("x",),
    logit_sources: tuple[str, ...] = (),
    weights: Mapping[str, int] | None = None,
    logit_weights: tuple[str, ...] = (),
    hops: Callable[[Any], int] = lambda layer: 1,
    hop_kinds: Callable[[Any], int] = lambda layer: 1,
    propagates_input: bool = False,
    first_argument: Literal["features", "any"] = "any",
    normalized: bool = False,
    forward: ForwardFacts | None = None,
    message: MessageFacts | None = None,
    edge_update: EdgeUpdateFacts | None = None,
    note: str = "",
    replace: bool = False,
) -> type[MessagePassing]:
    r"""Teaches the package a custom :class:`~torch_geometric.nn.MessagePassing` layer.

    An unregistered layer works as well: its messages are quantized per edge. Registering one of the
    copy or attention family lets its sources be quantized once per node instead, which is what
    packed inference gathers. Works as a decorator. Whether its messages really are copies is found
    out from :obj:`message` itself when the layer first computes on codes; if they are not, they are
    computed as they stand, from rounded sources.

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
        hop_kinds (callable): How many different things those calls propagate in turn, from the
            layer.
        propagates_input (bool): Whether the layer propagates before it transforms.
        first_argument (str): :obj:`"features"` if an :obj:`x` that holds no floats is to be
            refused, :obj:`"any"` if that is left to the layer. (default: :obj:`"any"`)
        normalized (bool): Whether what it propagates is mapped linearly, with normalised weights,
            so that :class:`~torch_geometric_qlr.transforms.SmoothPropagation` may act on it.
        forward (ForwardFacts, optional): What its forward does to its edges, so that this is
            remembered, and whether one operation computes all of its hops.
        message (MessageFacts, optional): What its :obj:`message` does, where that is a multiple of
            a source and cannot be found out by trying.
        edge_update (EdgeUpdateFacts, optional): What its :obj:`edge_update` does, where that is
            attention.
        note (str): Shown by :func:`torch_geometric_qlr.plan`.
        replace (bool): Whether to forget what was registered for this class before.

    Raises:
        UnsupportedLayerError: If :obj:`cls` is no message passing class, an edge layer is given
            sources, or its messages are made of other arguments than those.
        ConfigError: If the class is registered already, or an argument is of the wrong kind.

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
    _check_new(cls, replace)
    _check_kinds(cls, sources, logit_sources, weights, logit_weights)
    _check_counts(cls, hops=hops, hop_kinds=hop_kinds)
    _check_facts(cls, forward, message, edge_update)
    _check_choice("first argument", first_argument, ("features", "any"), cls)
    if family == "edge" and (sources not in ((), ("x",)) or logit_sources):
        raise UnsupportedLayerError(
            f"{cls.__name__}: an 'edge' layer quantizes messages, not sources. Drop sources=, or "
            f"choose family='copy' or 'attention'."
        )
    _check_choice("family", family, ("copy", "attention", "edge"), cls)
    for channel_dim in (weights or {}).values():
        _check_choice("channel dimension", channel_dim, (0, -1), cls)
    if family != "edge":
        _check_sources(cls, (*sources, *logit_sources))
    _note(
        cls,
        family=family,
        sources=() if family == "edge" else tuple(sources),
        logit_sources=tuple(logit_sources),
        weights=dict(weights or {}),
        logit_weights=tuple(logit_weights),
        hops=hops,
        hop_kinds=hop_kinds,
        propagates_input=propagates_input,
        first_argument=first_argument,
        rough=_NORMALIZED if normalized else LayerSpec.rough,
        forward=forward or ForwardFacts(),
        message=message or MessageFacts(),
        edge_update=edge_update or EdgeUpdateFacts(),
        note=note,
    )
    return cls


def _note(cls: type[nn.Module], **fields: Any) -> None:
    _USER[cls] = LayerSpec(**fields)
    forget_classes(cls)


def is_registered(layer: nn.Module) -> bool:
    """Whether the row that holds for a layer comes from a user."""
    return any(base in _USER for base in float_class(layer).__mro__)


def _check_new(cls: type, replace: bool) -> None:
    if cls in _USER and not replace:
        raise ConfigError(
            f"{cls.__name__} is registered already. Register each class once, or pass replace=True "
            f"to forget what was said of it before; models that are quantized stay as they are."
        )


def _check_kinds(
    cls: type, sources: Any, logit_sources: Any, weights: Any, logit_weights: Any
) -> None:
    names = {"sources": sources, "logit_sources": logit_sources, "logit_weights": logit_weights}
    for name, value in names.items():
        if not isinstance(value, (tuple, list)) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"{cls.__name__}: {name} is {value!r}; it is a tuple of names.")
    if not isinstance(weights or {}, Mapping):
        raise ConfigError(
            f"{cls.__name__}: weights is {weights!r}; it maps names of parameters to the dimension "
            f"of their output channels, such as weights={{'weight': -1}}."
        )


def _check_counts(cls: type, **counts: Any) -> None:
    for name, value in counts.items():
        if not callable(value):
            raise ConfigError(
                f"{cls.__name__}: {name} is {value!r}; it is a function of the layer, such as "
                f"{name}=lambda layer: layer.K."
            )


def _check_facts(cls: type, forward: Any, message: Any, edge_update: Any) -> None:
    kinds = {
        "forward": (forward, ForwardFacts),
        "message": (message, MessageFacts),
        "edge_update": (edge_update, EdgeUpdateFacts),
    }
    for name, (value, kind) in kinds.items():
        if value is not None and not isinstance(value, kind):
            raise ConfigError(
                f"{cls.__name__}: {name} is {value!r}; it is a qlr.nn.{kind.__name__}, such as "
                f"{_SUCH_AS[name]}."
            )


_SUCH_AS = {
    "forward": "qlr.nn.ForwardFacts(chain=qlr.nn.HopChain())",
    "message": "qlr.nn.MessageFacts(coefficients='x')",
    "edge_update": "qlr.nn.EdgeUpdateFacts(logits='alpha')",
}


def _check_choice(name: str, value: Any, choices: tuple[Any, ...], cls: type) -> None:
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{cls.__name__}: {name} {value!r} is unknown; choose one of {listed}.")


def _check_sources(cls: type[MessagePassing], sources: tuple[str, ...]) -> None:
    """Refuses a source that no message is made of: its quantizer would never run."""
    methods = (cls.message, cls.message_and_aggregate, cls.edge_update)
    taken = {name for method in methods for name in inspect.signature(method).parameters}
    for source in sources:
        if not taken & {source, f"{source}_j"} and "kwargs" not in taken:
            senders = sorted(n.removesuffix("_j") for n in taken if n.endswith("_j"))
            raise UnsupportedLayerError(
                f"{cls.__name__}: no message is made of the source {source!r}: message() takes no "
                f"{source + '_j'!r}. Name the arguments of propagate() that hold source features"
                f"{f', such as sources={tuple(senders)!r}' if senders else ''}."
            )


def register_linear(
    cls: type[nn.Module], *, weight: str = "weight", channel_dim: int = 0, replace: bool = False
) -> type[nn.Module]:
    r"""Teaches the package a layer whose forward multiplies its first argument by a weight.

    Args:
        cls (type): The layer.
        weight (str): Name of the weight parameter. (default: :obj:`"weight"`)
        channel_dim (int): Dimension of its output channels, 0 or -1. (default: :obj:`0`)
        replace (bool): Whether to forget what was registered for this class before.

    Raises:
        UnsupportedLayerError: If :obj:`cls` is no module class, or is a message passing class.
        ConfigError: If the class is registered already.

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
        raise UnsupportedLayerError(
            f"register_linear got {cls!r}, which is no torch.nn.Module class."
        )
    if issubclass(cls, MessagePassing):
        raise UnsupportedLayerError(
            f"{cls.__name__} is a MessagePassing class; register it with register_conv(...)."
        )
    if not isinstance(weight, str) or not weight.isidentifier():
        raise ConfigError(f"{cls.__name__}: weight is {weight!r}; it is the name of a parameter.")
    _check_choice("channel dimension", channel_dim, (0, -1), cls)
    _check_new(cls, replace)
    _note(cls, family="linear", weights={weight: channel_dim})
    return cls
