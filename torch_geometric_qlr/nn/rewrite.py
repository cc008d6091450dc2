"""Makes a recipe happen: builds all quantizers first, then re-classes the layers in place."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from torch import nn
from torch_geometric.nn import MessagePassing

from torch_geometric_qlr.codes.weights import PackedWeight
from torch_geometric_qlr.config import QLRConfig
from torch_geometric_qlr.layers.input_gain import add_gain
from torch_geometric_qlr.layers.layer_spec import LayerSpec
from torch_geometric_qlr.layers.pyg import drop_bound_propagate, forget_cached
from torch_geometric_qlr.layers.state import STATE, LayerState, MadeClass, state_of
from torch_geometric_qlr.nn.edge_weights import edge_weight_argument
from torch_geometric_qlr.nn.layer import QuantLayer, quant_class
from torch_geometric_qlr.nn.packed import pack_layers
from torch_geometric_qlr.nn.packed.kinds import KINDS
from torch_geometric_qlr.nn.planner import make_plan
from torch_geometric_qlr.nn.propagation.smooth import SmoothMessagePassing, smooth_layer
from torch_geometric_qlr.nn.recipe import (
    Codes,
    EdgeWeights,
    LayerRecipe,
    Point,
    PointRecipe,
    Recipe,
)
from torch_geometric_qlr.nn.registry import find_spec
from torch_geometric_qlr.nn.state_metadata import report_fresh_ranges
from torch_geometric_qlr.quantizers import EdgeWeightQuant, build_quantizer

__all__ = ["apply_recipe", "class_for", "construct"]


def class_for(base: type[nn.Module], spec: LayerSpec) -> type[Any]:
    """The quantized class of a layer class that has a row in the registry."""
    return quant_class(KINDS[spec.kind].quantized, base, spec.weight_names)


def apply_recipe(model: nn.Module, recipe: Recipe, backend: str = "auto") -> nn.Module:
    r"""Does to the layers of a model, in place, what a recipe says. If it is of a converted model
    the codes are arbitrary, and a state is to be loaded next.

    Nothing is quantized until every quantizer has been built.

    Args:
        model (torch.nn.Module): The model the recipe is for. A layer that is smoothed or quantized
            already is left as it is.
        recipe (Recipe): What to do.
        backend (str): Who computes packed operations, if the recipe is of a converted model.
    """
    named: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
    for smooth in recipe.smooth:
        if not isinstance(named[smooth.path], SmoothMessagePassing):
            smooth_layer(named[smooth.path], smooth.source, smooth.options, smooth.note)
    built = [(layer, _build(layer, named[layer.path], model)) for layer in recipe.layers]
    frozen = _frozen_parts(model)
    for layer, state in built:
        if layer.path in frozen:
            state.requires_grad_(False)
        _reclass(named[layer.path], state, layer)
    _turn_off_fast_paths(model)
    if recipe.converted:
        pack_layers(model, backend)
    return model


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
    made: MadeClass = cls._qlr_made
    layer.__class__ = made.base
    made.base.__init__(layer, *args, **kwargs)
    apply_recipe(layer, make_plan(layer, config).recipe)
    if not isinstance(layer, QuantLayer):  # quantized inside only
        spec = find_spec(layer)
        assert spec is not None
        own = LayerRecipe("", type(layer).__name__, spec.kind, spec.weight_names)
        _reclass(layer, LayerState(), own)
    layer.__class__ = cls  # it may be a subclass that a user has written
    layer.register_load_state_dict_post_hook(report_fresh_ranges)


QuantLayer._qlr_construct = construct

# The quantizers ###################################################################################


def _build(recipe: LayerRecipe, layer: nn.Module, model: nn.Module) -> LayerState:
    """The quantizers of a layer in its mode and on its device."""
    where = recipe.path or type(layer).__name__
    is_new = not isinstance(layer, QuantLayer)
    state = LayerState() if is_new else state_of(layer)
    for point, found in recipe.quantizers.items():
        if is_new or isinstance(found, Codes):  # of a layer by name its codes are left to make
            state[point.key] = _quantizer(found, point, where)
    unrounded = Point("edge_weight")
    if unrounded.key in state and unrounded not in recipe.quantizers:
        del state[unrounded.key]  # of a layer by name, whose file is older than this point
    if is_new and recipe.input_gain:
        add_gain(state)
    state.path = where
    state.train(layer.training)
    # A layer that only propagates has no parameters to tell its device by.
    tensors = itertools.chain(layer.parameters(), model.parameters(), model.buffers())
    tensor = next(tensors, None)
    return state if tensor is None else state.to(tensor.device)


def _quantizer(found: PointRecipe, point: Point, where: str, hop: int | None = None) -> nn.Module:
    if isinstance(found, tuple):
        hops = range(len(found)) if len(found) > 1 else [None]
        return nn.ModuleList(
            _quantizer(one, point, where, hop) for one, hop in zip(found, hops, strict=True)
        )
    if isinstance(found, EdgeWeights):
        return EdgeWeightQuant(found.bits)
    path = point.path(where, hop)
    if isinstance(found, Codes):
        return PackedWeight.empty(found.bits, found.matrix, torch.Size(found.shape), path=path)
    return build_quantizer(
        found.config, num_groups=found.groups, channel_dim=found.channel_dim, path=path
    )


def _frozen_parts(model: nn.Module) -> set[str]:
    """Names of the modules that somebody keeps as they are: the nearest module around them that has
    parameters has none that learns."""
    frozen: dict[str, bool] = {}
    for name, module in model.named_modules():  # parents first
        parameters = list(module.parameters())
        around = frozen.get(name.rpartition(".")[0], False) if name else False
        frozen[name] = not any(p.requires_grad for p in parameters) if parameters else around
    return {name for name, is_frozen in frozen.items() if is_frozen}


# The layers #######################################################################################


def _reclass(layer: Any, state: LayerState, recipe: LayerRecipe) -> None:
    """Makes a float layer a quantized one, in place."""
    if isinstance(layer, QuantLayer):
        return
    if isinstance(layer, MessagePassing):
        points = [Point.of_key(key) for key in state]
        state.source_keys = {p.name: p.key for p in points if p.kind == "source"}
        if Point("edge_weight") in points:
            state.edge_weight = edge_weight_argument(layer, tuple(state.source_keys))
        # Messages that are quantized per edge must exist per edge.
        if "message" in state:
            layer.fuse = False
        # Features that a layer cached were propagated in floating point.
        forget_cached(layer)
    made = quant_class(KINDS[recipe.kind].quantized, type(layer), recipe.weights)
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


def _turn_off_fast_paths(model: nn.Module) -> None:
    """Makes modules call their quantized children, where they have code that goes around them."""
    for module in model.modules():
        spec = None if isinstance(module, QuantLayer) else find_spec(module)
        if spec is None or not spec.fast_paths:
            continue
        if any(isinstance(inner, QuantLayer) for inner in module.modules()):
            for name, value in spec.fast_paths.items():
                setattr(module, name, value)
