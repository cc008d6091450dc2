"""From quantized layers to packed ones, in place: everything is built first, then re-classed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_geometric_qlr.errors import InputError, UnsupportedLayerError
from torch_geometric_qlr.nn.layer import QuantLayer, quant_class
from torch_geometric_qlr.nn.linear import QuantLinearLayer, QuantWeightLayer
from torch_geometric_qlr.nn.message_passing import QuantMessagePassing
from torch_geometric_qlr.nn.packed.conversion import Conversion
from torch_geometric_qlr.nn.packed.layer import PackedLayer
from torch_geometric_qlr.nn.packed.linear import (
    PackedLinearLayer,
    PackedWeightLayer,
    why_no_product,
)
from torch_geometric_qlr.nn.packed.message_passing import PackedMessagePassing
from torch_geometric_qlr.nn.packed.routes import Route, find_route
from torch_geometric_qlr.nn.packed.scope import open_scope_around
from torch_geometric_qlr.nn.packed.weights import PackedWeight
from torch_geometric_qlr.quantizers import freeze_ranges

__all__ = ["pack_layers"]

_RUNS_AS = {
    "spmm": "packed sum",
    "attention": "packed attention",
    "coefficients": "packed attention",
}


class _Site(NamedTuple):
    layer: Any
    weights: dict[str, PackedWeight]
    route: Route | None
    runs_as: str
    reason: str


def pack_layers(model: nn.Module, backend: str) -> Conversion:
    r"""Re-classes the quantized layers of a model.

    Args:
        model (torch.nn.Module): A quantized model.
        backend (str): Who computes packed operations.
    """
    named = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, QuantLayer) and layer.quantizers
    }
    model.eval()
    sites = {name: _build(name, layer) for name, layer in named.items()}
    for name, site in sites.items():
        _become(name, site, backend)
    model.requires_grad_(False)
    open_scope_around(model)
    return Conversion.of(model)


def _build(name: str, layer: Any) -> _Site:
    if "float_class" not in vars(type(layer)):
        raise UnsupportedLayerError(
            f"{name or type(layer).__name__}: {type(layer).__name__} is derived from a quantized "
            f"layer, and what it adds has no packed form. Derive it from "
            f"{layer.float_class.__name__}, and let qlr.quantize(model) quantize it."
        )
    weights = {}
    for key in layer.weight_names:
        weight = layer._parameters.get(key)
        if key in layer.quantizers and isinstance(weight, Tensor):
            _check_dtype(f"{name}.{key}" if name else key, weight)
            quantizer = layer.quantizers[key]
            weights[key] = (
                quantizer  # its codes come from a file
                if isinstance(quantizer, PackedWeight)
                else PackedWeight.from_quantizer(quantizer, weight)
            )
    if isinstance(layer, QuantMessagePassing):
        route = find_route(layer)
        return _Site(layer, weights, route, _RUNS_AS.get(route.kernel, ""), route.reason)
    if isinstance(layer, QuantLinearLayer):
        reason = why_no_product(layer)
        return _Site(layer, weights, None, "" if reason else "packed product", reason)
    if layer.float_class is nn.Embedding:
        return _Site(layer, weights, None, "packed lookup", "")
    return _Site(layer, weights, None, "", "only its weights are quantized")


def _check_dtype(path: str, weight: Tensor) -> None:
    if weight.dtype != torch.float32:
        raise InputError(
            f"{path} is {str(weight.dtype).removeprefix('torch.')}; packed layers compute in "
            f"float32. Convert model.float()."
        )


def _become(name: str, site: _Site, backend: str) -> None:
    layer, cls = site.layer, type(site.layer)
    for key, weight in site.weights.items():
        layer.quantizers[key] = weight
        del layer._parameters[key]
    freeze_ranges(layer.quantizers)
    # Features that a layer cached were propagated with other weights or in another way.
    for key in [n for n in layer.__dict__ if n.startswith("_cached_")]:
        setattr(layer, key, None)
    made = quant_class(_mixin(layer), layer.float_class, layer.weight_names)
    layer.__class__ = cls.wrap(made) if hasattr(cls, "wrapped_class") else made
    assert isinstance(layer, PackedLayer)
    layer.path, layer.backend = name, backend
    layer.runs_as, layer.reason = site.runs_as or "quantized in float", site.reason
    if isinstance(layer, PackedMessagePassing):
        assert site.route is not None
        layer.route = site.route


def _mixin(layer: QuantLayer) -> type[PackedLayer]:
    if isinstance(layer, QuantMessagePassing):
        return PackedMessagePassing
    if isinstance(layer, QuantLinearLayer):
        return PackedLinearLayer
    if isinstance(layer, QuantWeightLayer):
        return PackedWeightLayer
    raise UnsupportedLayerError(
        f"{type(layer).__name__} is a quantized layer of a kind that has no packed form."
    )
