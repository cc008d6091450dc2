"""Makes a plan happen: builds all quantizers first, then re-classes the layers in place."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from torch import nn
from torch_geometric.nn import HeteroDictLinear, MessagePassing

from torch_geometric_qlr.config import QLRConfig
from torch_geometric_qlr.nn.layer import QuantLayer, quant_class
from torch_geometric_qlr.nn.layer_spec import LayerSpec
from torch_geometric_qlr.nn.linear import (
    QuantDictLinearLayer,
    QuantLinearLayer,
    QuantWeightLayer,
)
from torch_geometric_qlr.nn.message_passing import QuantMessagePassing, expects_features
from torch_geometric_qlr.nn.plan import Plan, Site
from torch_geometric_qlr.nn.planner import make_plan
from torch_geometric_qlr.nn.pyg import drop_bound_propagate
from torch_geometric_qlr.nn.registry import find_by_name, find_spec
from torch_geometric_qlr.nn.state import STATE, LayerState, MadeClass, parameter_of, weight_key
from torch_geometric_qlr.nn.state_metadata import report_fresh_ranges
from torch_geometric_qlr.nn.table import READ_IN_FORWARD
from torch_geometric_qlr.quantizers import Quantizer, build_quantizer

__all__ = [
    "FAMILIES",
    "MIXINS",
    "adapt_parents",
    "apply_plan",
    "class_for",
    "construct",
    "placed",
    "quantizer_path",
    "reclass",
]

#: What a quantized layer can be, by the name under which files know it.
FAMILIES: dict[str, type[QuantLayer]] = {
    "messages": QuantMessagePassing,
    "linear": QuantLinearLayer,
    "weights": QuantWeightLayer,
    "dict": QuantDictLinearLayer,
}

#: The same by the family of a spec.
MIXINS: dict[str, type[QuantLayer]] = {
    "copy": QuantMessagePassing,
    "attention": QuantMessagePassing,
    "edge": QuantMessagePassing,
    "linear": QuantLinearLayer,
    "weights": QuantWeightLayer,
}


def class_for(base: type[nn.Module], spec: LayerSpec) -> type[Any]:
    """The quantized class of a layer class that has a row in the registry."""
    return quant_class(MIXINS[spec.family], base, spec.weight_names)


def apply_plan(model: nn.Module, plan: Plan, config: QLRConfig) -> nn.Module:
    r"""Rewrites the layers of a model in place.

    Nothing is touched until every quantizer has been built.

    Args:
        model (torch.nn.Module): The model the plan was made for.
        plan (Plan): From :func:`make_plan`.
        config (QLRConfig): The config it was made with.
    """
    built = [(site, _build(site, config, model)) for site in plan.sites]
    frozen = _frozen_parts(model)
    for site, state in built:
        if site.name in frozen:
            state.requires_grad_(False)
        _reclass(site, state)
    adapt_parents(model)
    return model


def _frozen_parts(model: nn.Module) -> set[str]:
    """Names of the modules that somebody keeps as they are: the nearest module around them that has
    parameters has none that learns."""
    frozen: dict[str, bool] = {}
    for name, module in model.named_modules():  # parents first
        parameters = list(module.parameters())
        around = frozen.get(name.rpartition(".")[0], False) if name else False
        frozen[name] = not any(p.requires_grad for p in parameters) if parameters else around
    return {name for name, is_frozen in frozen.items() if is_frozen}


def adapt_parents(model: nn.Module) -> None:
    """Makes modules that would go around their quantized children go through them."""
    for module in model.modules():
        _adapt_parent(module)


def made_of(cls: Any) -> MadeClass:
    """What a quantized class, or one that a user derived from it, was made of."""
    made: MadeClass = cls._qlr_made
    return made


def construct(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The constructor of a quantized layer by name: its float base, then quantized in place."""
    cls = type(layer)
    fields = {f.name for f in dataclasses.fields(QLRConfig)}
    config = kwargs.pop("config", None)
    given = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
    if config is None:
        config = QLRConfig(**given)
    elif given:
        config = config.replace(**given)
    # The base must see itself, not this class, while it inspects its own signatures.
    base = made_of(cls).base
    layer.__class__ = base
    base.__init__(layer, *args, **kwargs)
    plan = make_plan(layer, config)
    apply_plan(layer, plan, config)
    if not isinstance(layer, QuantLayer):  # quantized inside only
        spec = find_spec(layer)
        assert spec is not None
        _reclass(Site("", layer, spec), LayerState())
    layer.__class__ = cls  # it may be a subclass that a user has written
    layer.register_load_state_dict_post_hook(report_fresh_ranges)


QuantLayer._qlr_construct = construct

# One layer ########################################################################################


def _build(site: Site, config: QLRConfig, model: nn.Module) -> LayerState:
    quantizers: dict[str, nn.Module] = {}
    for point in site.points:
        kind, _, name = point.partition(":")
        if kind == "weight":
            quantizers[weight_key(name)] = _quantizer(site, point)
        elif kind in ("source", "message", "aggregate"):
            quantizers[f"source_{name}" if name else kind] = _per_hop(site, point, config)
        else:
            quantizers[kind] = _quantizer(site, point)
    return placed(LayerState(quantizers), site.layer, model)


def placed(quantizers: LayerState, layer: nn.Module, model: nn.Module) -> LayerState:
    """New quantizers in the mode and on the device of their layer."""
    quantizers.train(layer.training)
    # A layer that only propagates has no parameters to tell its device by.
    tensors = itertools.chain(layer.parameters(), model.parameters(), model.buffers())
    tensor = next(tensors, None)
    return quantizers if tensor is None else quantizers.to(tensor.device)


def _per_hop(site: Site, point: str, config: QLRConfig) -> nn.Module:
    """One quantizer per call of `propagate`, or one for each kind of thing that it propagates."""
    spec, layer = site.spec, site.layer
    hops = spec.hops(layer) if config.hop_quantizers == "per_hop" else spec.hop_kinds(layer)
    if hops > 1:
        return nn.ModuleList(_quantizer(site, point, hop) for hop in range(hops))
    one = _quantizer(site, point)
    return nn.ModuleList([one]) if point.startswith("source:") else one


def _quantizer(site: Site, point: str, hop: int | None = None) -> Quantizer:
    kind, _, name = point.partition(":")
    key = f"source_{name}" if kind == "source" else name or kind
    return build_quantizer(
        site.points[point],
        num_groups=site.groups[point],
        channel_dim=site.spec.weights.get(name, 0),
        path=quantizer_path(site.name or type(site.layer).__name__, key, hop),
    )


def quantizer_path(layer: str, key: str, hop: int | None = None) -> str:
    r"""Where a quantizer sits, as error messages name it.

    Args:
        layer (str): Name of the layer.
        key (str): Its key in :obj:`layer.quantizers`.
        hop (int, optional): Its place among those of several hops.

    Example:
        >>> quantizer_path("convs.0", "source_x", 1), quantizer_path("lin", "weight")
        ('convs.0.x (source, hop 1)', 'lin.weight')
    """
    label = "" if hop is None else f", hop {hop}"
    if key.startswith("source_"):
        return f"{layer}.{key.removeprefix('source_')} (source{label})"
    return f"{layer}.{parameter_of(key)}{label}"


def _adapt_parent(module: nn.Module) -> None:
    """Makes a layer that would go around its quantized children go through them."""
    if isinstance(module, QuantLayer) or not any(
        isinstance(inner, QuantLayer) for inner in module.modules()
    ):
        return
    if isinstance(module, HeteroDictLinear):
        _become(module, LayerState(), QuantDictLinearLayer)
    elif find_by_name(READ_IN_FORWARD, type(module)) is not None:
        _become(module, LayerState(), QuantWeightLayer)
    elif isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0  # turns off the fused kernel, which reads all weights
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False  # made for that kernel only


def _become(
    layer: nn.Module,
    state: LayerState,
    mixin: type[QuantLayer],
    weight_names: tuple[str, ...] = (),
) -> None:
    made = quant_class(mixin, type(layer), weight_names)
    state.replaced = _taken_off(layer)
    layer.register_module(STATE, state)
    layer.__class__ = made


def _taken_off(layer: nn.Module) -> dict[str, Any]:
    """Methods that somebody replaced on the object; the quantized layer calls them in its own."""
    names = ["forward"]
    if isinstance(layer, MessagePassing):
        drop_bound_propagate(layer)
        names += ["propagate", "message"]
    return {name: layer.__dict__.pop(name) for name in names if name in layer.__dict__}


def _reclass(site: Site, state: LayerState) -> None:
    state.path = site.name or type(site.layer).__name__
    reclass(site.layer, state, MIXINS[site.spec.family], site.spec.weight_names)


def reclass(
    layer: nn.Module,
    state: LayerState,
    mixin: type[QuantLayer],
    weight_names: tuple[str, ...] = (),
) -> None:
    r"""Makes a float layer a quantized one, in place.

    Args:
        layer (torch.nn.Module): The layer.
        state (LayerState): Its quantizers.
        mixin (type): Its family's :class:`QuantLayer`.
        weight_names (tuple): Parameters that are read through a quantizer.
    """
    if isinstance(layer, MessagePassing):
        state.source_keys = {
            key.removeprefix("source_"): key for key in state if key.startswith("source_")
        }
        state.expects_features = expects_features(type(layer))
        # Messages that are quantized per edge must exist per edge.
        if "message" in state:
            layer.fuse = False
        # Features that a layer cached were propagated in floating point.
        for name in [n for n in layer.__dict__ if n.startswith("_cached_")]:
            setattr(layer, name, None)
    _become(layer, state, mixin, weight_names)
