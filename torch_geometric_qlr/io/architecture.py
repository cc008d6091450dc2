"""What a float model must be for the recipe of a file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch_geometric.nn import MessagePassing

from torch_geometric_qlr.errors import AlreadyQuantizedError, CheckpointError, LazyModuleError
from torch_geometric_qlr.layers.state import unwrapped_class
from torch_geometric_qlr.nn.edge_weights import edge_weight_argument
from torch_geometric_qlr.nn.layer import QuantLayer
from torch_geometric_qlr.nn.packed import PackedLayer
from torch_geometric_qlr.nn.read_back import layer_recipe, route_of, smooth_recipes
from torch_geometric_qlr.nn.recipe import (
    Codes,
    EdgeWeights,
    LayerRecipe,
    Point,
    PointRecipe,
    Recipe,
    Route,
    SmoothRecipe,
)
from torch_geometric_qlr.nn.registry import find_spec
from torch_geometric_qlr.ops import storage_bits

__all__ = ["check_fits", "check_routes"]

_EDGE_WEIGHT = Point("edge_weight")


def check_fits(model: nn.Module, recipe: Recipe) -> None:
    r"""Refuses a model to which a recipe cannot be applied.

    Args:
        model (torch.nn.Module): A float model, or one written with quantized layers by name.
        recipe (Recipe): From a file, which may say anything.

    Raises:
        AlreadyQuantizedError: If the model is quantized in another way, or converted.
        CheckpointError: If it has other layers, or weights of another shape.
        LazyModuleError: If a layer has no weights yet.
    """
    named = dict(model.named_modules(remove_duplicate=False))
    _check_classes(named, recipe)
    for layer in recipe.layers:
        _check_layer(layer, named[layer.path])
    _check_quantized(model, {layer.path: layer for layer in recipe.layers})
    _check_smooth(model, {layer.path: layer for layer in recipe.smooth})
    for layer in recipe.layers:
        _check_weights(layer, named[layer.path])


def check_routes(model: nn.Module, recipe: Recipe) -> None:
    r"""Refuses a model whose messages are not computed as in the one that was saved.

    Args:
        model (torch.nn.Module): A model to which the recipe has been applied.
        recipe (Recipe): From a file.

    Raises:
        CheckpointError: If a layer chose another kernel.
    """
    for layer in recipe.layers:
        found = model.get_submodule(layer.path)
        saved, own = layer.route, route_of(found)
        if saved is not None and own is not None and own != saved:
            raise CheckpointError(
                f"{layer.path or type(found).__name__}: the file's model computes its messages by "
                f"{_shown(saved)}, this one by {_shown(own)}. Its message() is another one, or "
                f"depends on values that are not in the file: pass the architecture that was saved."
            )


def _shown(route: Route) -> str:
    if not route.kernel:
        return "its own code"
    times = f" times {route.weight}" if route.weight else ""
    return f"the kernel {route.kernel!r} ({route.reduce} of {route.source}{times})"


def _check_classes(named: Mapping[str, nn.Module], recipe: Recipe) -> None:
    # A layer that is both smoothed and quantized is checked once, as in the order of the file.
    entries: dict[str, str] = {e.path: e.layer for e in recipe.smooth}
    entries |= {e.path: e.layer for e in recipe.layers}
    for name, expected in entries.items():
        where = name or "the model itself"
        if name not in named:
            near = get_close_matches(name, named, n=3)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise CheckpointError(
                f"{where}: the file has a {expected} there, and this {_name(named)} has no "
                f"such module{hint}. Pass the architecture that was saved."
            )
        found = unwrapped_class(named[name]).__name__
        if found != expected:
            raise CheckpointError(
                f"{where}: the file has a {expected} there, this {_name(named)} a {found}. "
                f"Pass the architecture that was saved."
            )


def _name(named: Mapping[str, nn.Module]) -> str:
    return type(named[""]).__name__


def _check_layer(recipe: LayerRecipe, layer: nn.Module) -> None:
    """Whether what is said of a layer can be done to it."""
    kind, spec = recipe.kind, find_spec(layer)
    fits = isinstance(layer, MessagePassing) == (kind == "messages")
    fits &= kind != "dict" or (spec is not None and spec.calls_children)
    fits &= spec is None or not spec.kind or kind == spec.kind
    wrong = "" if fits else f"it cannot be quantized as {kind!r}"
    for key in recipe.weights:
        is_private = key.startswith("_") and key not in layer._parameters
        if not key.isidentifier() or is_private or hasattr(unwrapped_class(layer), key):
            wrong = f"{key!r} is no weight of it"
    sources = tuple(point.name for point in recipe.quantizers if point.kind == "source")
    for point, found in recipe.quantizers.items():
        is_place = point.kind != "weight" or point.name in recipe.weights
        is_place &= (point.kind == "edge_weight") == isinstance(found, EdgeWeights)
        if point.kind == "edge_weight":
            is_place &= kind == "messages" and bool(edge_weight_argument(layer, sources))
        if not is_place or not (point.name or point.kind).isidentifier():
            wrong = wrong or f"{point.key!r} is no place to quantize"
    if wrong:
        raise CheckpointError(
            f"{recipe.path or 'the model itself'}: the file's description of this {recipe.layer} "
            f"is damaged, or of another version of the layer: {wrong}."
        )


def _check_quantized(model: nn.Module, saved: Mapping[str, LayerRecipe]) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, QuantLayer):
            continue
        where = name or type(module).__name__
        if isinstance(module, PackedLayer):
            raise AlreadyQuantizedError(
                f"{where} is converted already. Pass the float model, as it was before "
                f"qlr.quantize; or load a state_dict of equal configuration into this one."
            )
        difference = _difference(layer_recipe(name, module), saved.get(name))
        if difference:
            raise AlreadyQuantizedError(
                f"{where} is quantized already, and not as in the file: {difference}. Pass the "
                f"float model, as it was before qlr.quantize; the file says how to quantize it."
            )


def _difference(own: LayerRecipe, saved: LayerRecipe | None) -> str:
    """What is different between a quantized layer and the saved one."""
    if saved is None:
        return "the file keeps it float"
    mine, theirs = dict(own.quantizers), saved.quantizers
    if _EDGE_WEIGHT not in theirs:
        mine.pop(_EDGE_WEIGHT, None)  # the file may be older than this point
    if list(mine) != list(theirs):
        here, there = (", ".join(point.key for point in points) for points in (mine, theirs))
        return f"it has quantizers at {here}, the file at {there}"
    for point, found in mine.items():
        other = theirs[point]
        bits = storage_bits(_bits(found)) if isinstance(other, Codes) else _bits(found)
        if bits != _bits(other):
            return f"its {point.key} has {bits} bits, that of the file {_bits(other)}"
        if found != other and not isinstance(other, Codes):
            return f"the quantizer of its {point.key} has other settings"
    return ""


def _bits(found: PointRecipe) -> int:
    return found[0].bits if isinstance(found, tuple) else found.bits


def _check_smooth(model: nn.Module, saved: Mapping[str, SmoothRecipe]) -> None:
    named: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
    for name, found in saved.items():
        methods = (getattr(named[name], key, None) for key in ("message", "edge_update"))
        taken = {key for one in methods if one for key in inspect.signature(one).parameters}
        senders = {found.source, f"{found.source}_j", "kwargs"}
        if not isinstance(named[name], MessagePassing) or not taken & senders:
            raise CheckpointError(
                f"{name or 'the model itself'}: the file smooths the propagation of "
                f"{found.source!r} there, and this {found.layer} has none. Pass the architecture "
                f"that was saved."
            )
    for own in smooth_recipes(model):
        if own.path not in saved or own.options != saved[own.path].options:
            raise CheckpointError(
                f"{own.path or type(model).__name__}: SmoothPropagation was applied to this model "
                f"with options that are not those of the file. Pass the model as it was "
                f"before; the file says how to smooth it."
            )


def _check_weights(recipe: LayerRecipe, layer: nn.Module) -> None:
    for point, found in recipe.quantizers.items():
        if not isinstance(found, Codes):
            continue
        name, shape = point.name, list(found.shape)
        where = f"{recipe.path}.{name}" if recipe.path else name
        own = layer._parameters.get(name)
        if own is None:
            raise CheckpointError(
                f"{where}: the file has a weight of shape {shape}, the model none. Pass "
                f"the architecture that was saved."
            )
        if isinstance(own, nn.UninitializedParameter):
            raise LazyModuleError(
                f"{where} is not initialized yet, and {type(layer).__name__} cannot take its shape "
                f"from a file. Run one forward pass with a small batch first, then load."
            )
        if list(own.shape) != shape:
            raise CheckpointError(
                f"{where}: the file has a weight of shape {shape}, the model one of "
                f"{list(own.shape)}. Pass the architecture that was saved."
            )
