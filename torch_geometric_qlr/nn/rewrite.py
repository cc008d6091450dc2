"""Makes a plan happen: builds all quantizers first, then re-classes the layers in place."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn
from torch_geometric.nn import HeteroDictLinear, MessagePassing

from torch_geometric_qlr.config import QLRConfig, QuantizerConfig
from torch_geometric_qlr.errors import ConfigError, UnsupportedLayerError
from torch_geometric_qlr.nn.layer import QuantLayer, quant_class
from torch_geometric_qlr.nn.linear import (
    QuantDictLinearLayer,
    QuantLinearLayer,
    QuantWeightLayer,
)
from torch_geometric_qlr.nn.message_passing import QuantMessagePassing
from torch_geometric_qlr.nn.plan import Plan, Site, make_plan
from torch_geometric_qlr.nn.registry import LayerSpec
from torch_geometric_qlr.quantizers import LearnedRangeQuant, build_quantizer

__all__ = ["apply_plan", "class_for", "construct"]

_MIXINS: dict[str, type[QuantLayer]] = {
    "copy": QuantMessagePassing,
    "attention": QuantMessagePassing,
    "edge": QuantMessagePassing,
    "linear": QuantLinearLayer,
    "weights": QuantWeightLayer,
}


def class_for(base: type[nn.Module], spec: LayerSpec) -> type[Any]:
    """The quantized class of a layer class that has a row in the registry."""
    return quant_class(_MIXINS[spec.family], base, spec.weight_names)


def apply_plan(model: nn.Module, plan: Plan, config: QLRConfig) -> nn.Module:
    r"""Rewrites the layers of a model in place.

    Nothing is touched until every quantizer has been built.

    Args:
        model (torch.nn.Module): The model the plan was made for.
        plan (Plan): From :func:`make_plan`.
        config (QLRConfig): The config it was made with.
    """
    for site in plan.sites:
        if "quantizers" in site.layer._modules or hasattr(site.layer, "quantizers"):
            raise UnsupportedLayerError(
                f"{site.name or type(site.layer).__name__}: it has an attribute 'quantizers' of its "
                f"own, where the quantizers would go. Rename that attribute."
            )
    built = [(site, _build(site, config)) for site in plan.sites]
    for site, quantizers in built:
        _reclass(site, quantizers)
    for module in model.modules():
        if type(module) is HeteroDictLinear:
            # Its fused path would read the Linears' weights without calling them.
            module.quantizers = nn.ModuleDict()
            module._quantized_weights = None  # type: ignore[assignment]
            module.__class__ = quant_class(QuantDictLinearLayer, HeteroDictLinear)
    return model


def construct(layer: Any, base: type[nn.Module], args: Any, kwargs: dict[str, Any]) -> None:
    """The constructor of a quantized layer by name: its float base, then quantized in place."""
    fields = {f.name for f in dataclasses.fields(QLRConfig)}
    config = kwargs.pop("config", None)
    given = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
    if config is None:
        config = QLRConfig(**given)
    elif given:
        config = config.replace(**given)
    layer.__class__ = base
    base.__init__(layer, *args, **kwargs)
    apply_plan(layer, make_plan(layer, config), config)


# One layer ########################################################################################


def _build(site: Site, config: QLRConfig) -> nn.ModuleDict:
    quantizers: dict[str, nn.Module] = {}
    for point, quantizer in site.points.items():
        kind, _, name = point.partition(":")
        path = f"{site.name or type(site.layer).__name__}.{name or kind}"
        if kind == "weight":
            quantizers[name] = _weight_quantizer(site, name, quantizer, path)
            continue
        groups = _num_features(site, kind, path) if quantizer.granularity == "feature" else 1
        if kind == "source":
            hops = site.spec.hops(site.layer) if config.hop_quantizers == "per_hop" else 1
            quantizers[f"source_{name}"] = nn.ModuleList(
                build_quantizer(
                    quantizer,
                    num_groups=groups,
                    path=f"{path} (source, hop {hop})" if hops > 1 else f"{path} (source)",
                )
                for hop in range(max(1, hops))
            )
        else:
            quantizers[kind] = build_quantizer(quantizer, num_groups=groups, path=path)
    out = nn.ModuleDict(quantizers)
    out.train(site.layer.training)
    parameter = next(site.layer.parameters(), None)
    return out if parameter is None else out.to(parameter.device)


def _weight_quantizer(
    site: Site, name: str, quantizer: QuantizerConfig, path: str
) -> LearnedRangeQuant:
    weight = site.layer._parameters[name]
    assert weight is not None
    channel_dim = site.spec.weights.get(name, 0)
    if weight.dim() < 2 or (channel_dim == 0 and weight.size(0) == 1):
        quantizer = dataclasses.replace(quantizer, granularity="tensor")
    groups = weight.size(channel_dim) if quantizer.granularity == "channel" else 1
    return build_quantizer(quantizer, num_groups=groups, channel_dim=channel_dim, path=path)


def _num_features(site: Site, kind: str, path: str) -> int:
    """Features of what is quantized, for a range per feature."""
    spec, layer = site.spec, site.layer
    if spec.family == "linear" and kind == "input":
        (weight, channel_dim), *_ = spec.weights.items()
        return int(layer._parameters[weight].size(-1 if channel_dim == 0 else -2))  # type: ignore[union-attr]
    before = kind == "source" and spec.propagates_input
    channels = getattr(layer, "in_channels" if before else "out_channels", None)
    if isinstance(channels, (tuple, list)):
        channels = channels[0]
    if not isinstance(channels, int):
        raise ConfigError(
            f"{path}: granularity 'feature' needs the number of features, which "
            f"{type(layer).__name__} does not tell. Choose 'tensor' or 'node' for it."
        )
    return channels


def _reclass(site: Site, quantizers: nn.ModuleDict) -> None:
    layer, spec = site.layer, site.spec
    layer.quantizers = quantizers
    layer._quantized_weights = None  # type: ignore[assignment]
    if isinstance(layer, MessagePassing):
        layer.source_keys = {  # type: ignore[assignment]
            p.partition(":")[2]: f"source_{p.partition(':')[2]}"
            for p in site.points
            if p.startswith("source:")
        }
        # Messages that are quantized per edge must exist per edge.
        if "message" in site.points:
            layer.fuse = False
        # PyG binds `propagate` to the object for explanations; ours decides at each call.
        layer.__dict__.pop("propagate", None)
        # Features that a layer cached were propagated in floating point.
        for name in [n for n in layer.__dict__ if n.startswith("_cached_")]:
            setattr(layer, name, None)
    layer.__class__ = class_for(type(layer), spec)
