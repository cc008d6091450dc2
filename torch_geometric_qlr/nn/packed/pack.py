"""From quantized layers to converted ones, in place: everything is built first, then re-classed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_geometric_qlr.codes.chains import Chains
from torch_geometric_qlr.codes.weight_access import has_no_range
from torch_geometric_qlr.codes.weights import PackedWeight
from torch_geometric_qlr.errors import InputError, UnsupportedLayerError
from torch_geometric_qlr.layers.input_gain import fold_gain, folded
from torch_geometric_qlr.layers.pyg import forget_cached, is_uninitialized_parameter
from torch_geometric_qlr.layers.running import CHAINS, follow
from torch_geometric_qlr.layers.state import float_class, state_of, weight_key
from torch_geometric_qlr.nn.layer import QuantLayer, quant_class
from torch_geometric_qlr.nn.packed.kinds import KINDS, kind_of
from torch_geometric_qlr.nn.packed.layer import PackedLayer
from torch_geometric_qlr.nn.packed.report import Conversion
from torch_geometric_qlr.nn.registry import find_spec
from torch_geometric_qlr.quantizers import freeze_ranges

__all__ = ["pack_layers"]


class _Site(NamedTuple):
    layer: Any
    mixin: type[PackedLayer]
    weights: dict[str, PackedWeight]


def pack_layers(model: nn.Module, backend: str, *, fuse: bool = True) -> Conversion:
    r"""Re-classes the quantized layers of a model.

    Args:
        model (torch.nn.Module): A quantized model.
        backend (str): Who computes packed operations.
        fuse (bool): Whether results may pass from layer to layer as codes.
    """
    named = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, QuantLayer) and state_of(layer)
    }
    model.eval()
    sites = {name: _build(name, layer) for name, layer in named.items()}
    for name, site in sites.items():
        _become(name, site, backend)
    for parameter in model.parameters():
        if not is_uninitialized_parameter(parameter):
            parameter.requires_grad_(False)
    setattr(model, CHAINS, Chains(fuse))
    follow(model)
    return Conversion.of(model)


def _build(name: str, layer: Any) -> _Site:
    if "_qlr_made" not in vars(type(layer)):
        raise UnsupportedLayerError(
            f"{name or type(layer).__name__}: {type(layer).__name__} is derived from a quantized "
            f"layer, and what it adds has no packed form. Derive it from "
            f"{float_class(layer).__name__}, and let qlr.quantize(model) quantize it."
        )
    state, weights = state_of(layer), {}
    for key in type(layer)._qlr_made.weight_names:
        weight, own = layer._parameters.get(key), weight_key(key)
        if own in state and isinstance(weight, Tensor):
            _check_dtype(f"{name}.{key}" if name else key, weight)
            found = state[own]
            if isinstance(found, PackedWeight):  # its codes come from a file
                weights[key] = found
            elif not has_no_range(weight):
                weights[key] = _packed(layer, key, weight)
    return _Site(layer, _mixin(layer), weights)


def _packed(layer: Any, key: str, weight: Tensor) -> PackedWeight:
    max_norm = getattr(layer, "max_norm", None) if _looks_up(layer) else None
    if max_norm is not None:
        # The float table is renormalised where it is looked up; codes cannot be changed later.
        index = torch.arange(weight.size(0), device=weight.device)
        weight = torch.embedding_renorm_(weight.detach().clone(), index, max_norm, layer.norm_type)
    state: Any = state_of(layer)
    return PackedWeight.from_quantizer(state[weight_key(key)], folded(state, key, weight))


def _looks_up(layer: Any) -> bool:
    # Also one with a forward of its own: it looks up in the same table.
    spec = find_spec(layer)
    return spec is not None and spec.forward.computes == "lookup"


def _check_dtype(path: str, weight: Tensor) -> None:
    if weight.dtype != torch.float32:
        raise InputError(
            f"{path} is {str(weight.dtype).removeprefix('torch.')}; packed layers compute in "
            f"float32. Convert model.float()."
        )


def _become(name: str, site: _Site, backend: str) -> None:
    layer, cls, state = site.layer, type(site.layer), state_of(site.layer)
    for key, weight in site.weights.items():
        state[weight_key(key)] = weight
        del layer._parameters[key]
    fold_gain(layer)
    freeze_ranges(state)
    # Features that a layer cached were propagated with other weights or in another way.
    forget_cached(layer)
    made = quant_class(site.mixin, cls._qlr_made.base, cls._qlr_made.weight_names)
    layer.__class__ = cls._qlr_wrap(made) if hasattr(cls, "_qlr_wrapped") else made
    state.converted, state.path, state.backend = True, name or state.path, backend


def _mixin(layer: QuantLayer) -> type[PackedLayer]:
    packed = KINDS[kind_of(layer)].packed
    if packed is None:
        raise UnsupportedLayerError(
            f"{type(layer).__name__} is a quantized layer of a kind that has no packed form."
        )
    return packed
