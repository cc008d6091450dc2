"""A quantized or converted model as plain values, and a float model made into the same again.

Everything is read off the layers themselves, not off the call that quantized them: so it does not
matter whether a model went through :func:`~torch_geometric_qlr.quantize` before or after
``to_hetero`` or ``SmoothPropagation``, was written with layers by name, or has layers that were
registered in another process.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch_geometric.nn import HeteroDictLinear, MessagePassing

from torch_geometric_qlr.config import POINTS, QuantizerConfig
from torch_geometric_qlr.errors import AlreadyQuantizedError, CheckpointError, LazyModuleError
from torch_geometric_qlr.nn.codes.gather import kernel_of
from torch_geometric_qlr.nn.codes.weights import PackedWeight
from torch_geometric_qlr.nn.layer import QuantLayer
from torch_geometric_qlr.nn.options import float_class
from torch_geometric_qlr.nn.packed import PackedLayer, PackedMessagePassing, pack_layers
from torch_geometric_qlr.nn.propagation.smooth import (
    SmoothMessagePassing,
    SmoothOptions,
    smooth_layer,
)
from torch_geometric_qlr.nn.registry import find_spec
from torch_geometric_qlr.nn.rewrite import (
    FAMILIES,
    MIXINS,
    adapt_parents,
    placed,
    quantizer_path,
    reclass,
)
from torch_geometric_qlr.nn.state import LayerState, parameter_of, state_of
from torch_geometric_qlr.ops import storage_bits
from torch_geometric_qlr.quantizers import Quantizer, build_quantizer

__all__ = ["check_routes", "describe", "rebuild"]

Description = dict[str, Any]

#: Keys of quantizers other than those of weights and sources.
_PLACES = frozenset(POINTS) - {"weight", "source"}

#: What of a route decides which numbers come out.
ROUTE = ("kernel", "source", "weight", "reduce")


def describe(model: nn.Module) -> Description:
    r"""What was done to the layers of a model, as plain values.

    Args:
        model (torch.nn.Module): A quantized or converted model.

    Returns:
        dict: :obj:`converted`; :obj:`layers`, by name the float class, the family, the weight names
        and the quantizers, and of a converted conv the kernel of its messages; :obj:`smooth`, by
        name what ``SmoothPropagation`` did.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> layer = describe(qlr.quantize(torch.nn.Linear(4, 2), bits=4))["layers"][""]
        >>> layer["class"], layer["family"], layer["quantizers"]["weight"]["config"]["bits"]
        ('Linear', 'linear', 4)
    """
    named = dict(model.named_modules())
    return {
        "converted": any(isinstance(module, PackedLayer) for module in named.values()),
        "layers": {n: _layer(m) for n, m in named.items() if isinstance(m, QuantLayer)},
        "smooth": {n: _smooth(m) for n, m in named.items() if isinstance(m, SmoothMessagePassing)},
    }


def _layer(layer: Any) -> dict[str, Any]:
    out = {
        "class": float_class(layer).__name__,
        "family": next(n for n, mixin in FAMILIES.items() if isinstance(layer, mixin)),
        "weights": list(type(layer)._qlr_made.weight_names),
        "quantizers": {key: _quantizer(found) for key, found in state_of(layer).items()},
    }
    return out | ({"route": _route(layer)} if isinstance(layer, PackedMessagePassing) else {})


def _route(layer: PackedMessagePassing) -> dict[str, str]:
    """How a converted conv computes its messages."""
    found = dataclasses.asdict(kernel_of(layer))
    return {key: found[key] for key in ROUTE}


def _quantizer(found: nn.Module) -> Any:
    if isinstance(found, nn.ModuleList):
        return [_quantizer(one) for one in found]
    if isinstance(found, PackedWeight):
        matrix = [len(found.packed), found.num_cols]
        return {"bits": found.bits, "shape": list(found.shape), "matrix": matrix}
    assert isinstance(found, Quantizer)
    return {
        "config": found.config.to_dict(),
        "groups": found.num_groups,
        "channel_dim": found.channel_dim,
    }


def _smooth(layer: Any) -> dict[str, Any]:
    return {
        "class": float_class(layer).__name__,
        "source": layer._qlr_smooth.source,
        "options": dataclasses.asdict(layer._qlr_smooth.options),
        "note": layer._qlr_smooth.note,
    }


# Back again #######################################################################################


def rebuild(model: nn.Module, description: Description, backend: str = "auto") -> None:
    r"""Does to the layers of a float model, in place, what a description says. Their numbers are
    those of the float model still, or arbitrary; the state is to be loaded next.

    Args:
        model (torch.nn.Module): A float model, or one written with quantized layers by name.
        description (dict): From :func:`describe`.
        backend (str): Who computes packed operations, if the description is of a converted model.

    Raises:
        AlreadyQuantizedError: If the model is quantized in another way, or converted.
        CheckpointError: If it has other layers, or weights of another shape.
        LazyModuleError: If a layer has no weights yet.
    """
    layers, smooth = description["layers"], description["smooth"]
    named = dict(model.named_modules(remove_duplicate=False))
    _check_classes(named, {**smooth, **layers})
    for name, entry in layers.items():
        _check_entry(name, named[name], entry)
    _check_quantized(model, layers)
    _check_smooth(model, smooth)
    for name, entry in layers.items():
        _check_weights(name, named[name], entry["quantizers"])

    for name, entry in smooth.items():
        layer: Any = named[name]
        if not isinstance(layer, SmoothMessagePassing):
            smooth_layer(layer, entry["source"], SmoothOptions(**entry["options"]), entry["note"])
    for name, entry in layers.items():
        _quantize(name, named[name], entry, model)
    adapt_parents(model)
    if description["converted"]:
        for name, entry in layers.items():
            _hold_codes(name, named[name], entry["quantizers"])
        pack_layers(model, backend)


def check_routes(model: nn.Module, description: Description) -> None:
    r"""Refuses a model whose messages are not computed as in the one that was described.

    Args:
        model (torch.nn.Module): A model from :func:`rebuild`.
        description (dict): From :func:`describe`.

    Raises:
        CheckpointError: If a layer chose another kernel.
    """
    for name, layer in model.named_modules():
        saved = description["layers"].get(name, {}).get("route")
        own = _route(layer) if isinstance(layer, PackedMessagePassing) else None
        if saved is not None and own is not None and own != saved:
            raise CheckpointError(
                f"{name or type(layer).__name__}: the file's model computes its messages by "
                f"{_shown(saved)}, this one by {_shown(own)}. Its message() is another one, or "
                f"depends on values that are not in the file: pass the architecture that was saved."
            )


def _shown(route: Mapping[str, str]) -> str:
    if not route["kernel"]:
        return "its own code"
    times = f" times {route['weight']}" if route["weight"] else ""
    return f"the kernel {route['kernel']!r} ({route['reduce']} of {route['source']}{times})"


def _quantize(name: str, layer: Any, entry: Mapping[str, Any], model: nn.Module) -> None:
    if isinstance(layer, QuantLayer):
        return  # by name, and checked
    path = name or entry["class"]
    quantizers = {
        key: _build(found, path, key)
        for key, found in entry["quantizers"].items()
        if not _is_packed(found)
    }
    own = placed(LayerState(quantizers), layer, model)
    own.path = path
    reclass(layer, own, FAMILIES[entry["family"]], tuple(entry["weights"]))


def _build(found: Any, layer: str, key: str, hop: int | None = None) -> nn.Module:
    if isinstance(found, list):
        hops = range(len(found)) if len(found) > 1 else [None]
        return nn.ModuleList(
            _build(one, layer, key, hop) for one, hop in zip(found, hops, strict=True)
        )
    return build_quantizer(
        QuantizerConfig(**found["config"]),
        num_groups=found["groups"],
        channel_dim=found["channel_dim"],
        path=quantizer_path(layer, key, hop),
    )


def _hold_codes(name: str, layer: Any, quantizers: Mapping[str, Any]) -> None:
    """Puts weights of codes in place of float weights, in the order of the description."""
    state = state_of(layer)
    for key, found in _packed_weights(quantizers).items():
        device = layer._parameters[parameter_of(key)].device
        state[key] = PackedWeight.empty(
            found["bits"],
            tuple(found["matrix"]),
            torch.Size(found["shape"]),
            path=quantizer_path(name or float_class(layer).__name__, key),
        ).to(device)
    ordered = {key: state[key] for key in quantizers}
    state.clear()
    state.update(ordered)


def _is_packed(found: Any) -> bool:
    return isinstance(found, Mapping) and "matrix" in found


def _packed_weights(quantizers: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found for key, found in quantizers.items() if _is_packed(found)}


# What a model must be #############################################################################


def _check_classes(named: Mapping[str, nn.Module], entries: Mapping[str, Any]) -> None:
    for name, entry in entries.items():
        where = name or "the model itself"
        if name not in named:
            near = get_close_matches(name, named, n=3)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise CheckpointError(
                f"{where}: the file has a {entry['class']} there, and this {_name(named)} has no "
                f"such module{hint}. Pass the architecture that was saved."
            )
        found = float_class(named[name]).__name__
        if found != entry["class"]:
            raise CheckpointError(
                f"{where}: the file has a {entry['class']} there, this {_name(named)} a {found}. "
                f"Pass the architecture that was saved."
            )


def _check_entry(name: str, layer: nn.Module, entry: Mapping[str, Any]) -> None:
    """Whether what is said of a layer can be done to it: a file may say anything."""
    family, spec = entry["family"], find_spec(layer)
    fits = isinstance(layer, MessagePassing) == (family == "messages")
    fits &= family != "dict" or isinstance(layer, HeteroDictLinear)
    if spec is not None and spec.family in MIXINS:
        fits &= FAMILIES[family] is MIXINS[spec.family]
    wrong = "" if fits else f"it cannot be quantized as {family!r}"
    for key in entry["weights"]:
        is_private = key.startswith("_") and key not in layer._parameters
        if not key.isidentifier() or is_private or hasattr(float_class(layer), key):
            wrong = f"{key!r} is no weight of it"
    for key in entry["quantizers"]:
        is_place = (
            parameter_of(key) in entry["weights"] or key in _PLACES or key.startswith("source_")
        )
        if not is_place or not parameter_of(key).isidentifier():
            wrong = f"{key!r} is no place to quantize"
    if wrong:
        raise CheckpointError(
            f"{name or 'the model itself'}: the file's description of this {entry['class']} is "
            f"damaged, or of another version of the layer: {wrong}."
        )


def _name(named: Mapping[str, nn.Module]) -> str:
    return type(named[""]).__name__


def _check_quantized(model: nn.Module, saved: Mapping[str, Any]) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, QuantLayer):
            continue
        where = name or type(module).__name__
        if isinstance(module, PackedLayer):
            raise AlreadyQuantizedError(
                f"{where} is converted already. Pass the float model, as it was before "
                f"qlr.quantize; or load a state_dict of equal configuration into this one."
            )
        difference = _difference(_layer(module), saved.get(name))
        if difference:
            raise AlreadyQuantizedError(
                f"{where} is quantized already, and not as in the file: {difference}. Pass the "
                f"float model, as it was before qlr.quantize; the file says how to quantize it."
            )


def _difference(own: Mapping[str, Any], saved: Mapping[str, Any] | None) -> str:
    """What is different between a quantized layer and the saved one."""
    if saved is None:
        return "the file keeps it float"
    mine, theirs = own["quantizers"], saved["quantizers"]
    if list(mine) != list(theirs):
        return f"it has quantizers at {', '.join(mine)}, the file at {', '.join(theirs)}"
    for key, found in mine.items():
        bits, other = _bits(found), _bits(theirs[key])
        if _is_packed(theirs[key]):
            bits = storage_bits(bits)
        if bits != other:
            return f"its {key} has {bits} bits, that of the file {other}"
        if found != theirs[key] and not _is_packed(theirs[key]):
            return f"the quantizer of its {key} has other settings"
    return ""


def _bits(found: Any) -> int:
    if isinstance(found, list):
        found = found[0]
    return int(found["bits"] if _is_packed(found) else found["config"]["bits"])


def _check_smooth(model: nn.Module, saved: Mapping[str, Any]) -> None:
    named = dict(model.named_modules(remove_duplicate=False))
    for name, found in saved.items():
        methods = (getattr(named[name], key, None) for key in ("message", "edge_update"))
        taken = {key for one in methods if one for key in inspect.signature(one).parameters}
        source = found["source"]
        if not isinstance(named[name], MessagePassing) or not taken & {
            source,
            f"{source}_j",
            "kwargs",
        }:
            raise CheckpointError(
                f"{name or 'the model itself'}: the file smooths the propagation of {source!r} "
                f"there, and this {found['class']} has none. Pass the architecture that was saved."
            )
    for name, module in named.items():
        if isinstance(module, SmoothMessagePassing):
            own, entry = _smooth(module), saved.get(name)
            if entry is None or own["options"] != entry["options"]:
                raise CheckpointError(
                    f"{name or type(module).__name__}: SmoothPropagation was applied to this model "
                    f"with options that are not those of the file. Pass the model as it was "
                    f"before; the file says how to smooth it."
                )


def _check_weights(name: str, layer: nn.Module, quantizers: Mapping[str, Any]) -> None:
    for key, found in _packed_weights(quantizers).items():
        key = parameter_of(key)
        where, own = f"{name}.{key}" if name else key, layer._parameters.get(key)
        if own is None:
            raise CheckpointError(
                f"{where}: the file has a weight of shape {found['shape']}, the model none. Pass "
                f"the architecture that was saved."
            )
        if isinstance(own, nn.UninitializedParameter):
            raise LazyModuleError(
                f"{where} is not initialized yet, and {type(layer).__name__} cannot take its shape "
                f"from a file. Run one forward pass with a small batch first, then load."
            )
        if list(own.shape) != found["shape"]:
            raise CheckpointError(
                f"{where}: the file has a weight of shape {found['shape']}, the model one of "
                f"{list(own.shape)}. Pass the architecture that was saved."
            )
