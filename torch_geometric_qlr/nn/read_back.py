"""The recipe of a quantized or converted model, read off its layers.

Not off the call that quantized them: so it does not matter whether a model went through
:func:`~torch_geometric_qlr.quantize` before or after ``to_hetero`` or ``SmoothPropagation``, was
written with layers by name, or has layers that were registered in another process.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from torch_geometric_qlr.codes.gather import kernel_of
from torch_geometric_qlr.codes.weights import PackedWeight
from torch_geometric_qlr.layers.state import GAIN, state_of, unwrapped_class
from torch_geometric_qlr.nn.layer import QuantLayer
from torch_geometric_qlr.nn.packed import PackedLayer, PackedMessagePassing
from torch_geometric_qlr.nn.packed.kinds import kind_of
from torch_geometric_qlr.nn.propagation.smooth import SmoothMessagePassing
from torch_geometric_qlr.nn.recipe import (
    Codes,
    EdgeWeights,
    LayerRecipe,
    Point,
    Ranges,
    Recipe,
    Route,
    SmoothRecipe,
)
from torch_geometric_qlr.quantizers import EdgeWeightQuant, Quantizer

__all__ = ["layer_recipe", "recipe_of", "route_of", "smooth_recipes"]


def recipe_of(model: nn.Module) -> Recipe:
    r"""What was done to the layers of a model.

    Args:
        model (torch.nn.Module): A quantized or converted model.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> model = torch.nn.Linear(4, 2)
        >>> recipe_of(qlr.quantize(model, bits=4)) == qlr.plan(model, bits=4).recipe
        True
    """
    named = dict(model.named_modules())
    layers = {name: module for name, module in named.items() if isinstance(module, QuantLayer)}
    return Recipe(
        tuple(layer_recipe(name, layer) for name, layer in layers.items()),
        smooth_recipes(model),
        converted=any(isinstance(layer, PackedLayer) for layer in layers.values()),
    )


def layer_recipe(name: str, layer: Any) -> LayerRecipe:
    r"""What was done to one layer.

    Args:
        name (str): Its qualified name.
        layer (QuantLayer): The layer.
    """
    return LayerRecipe(
        name,
        layer=unwrapped_class(layer).__name__,
        kind=kind_of(layer),
        weights=type(layer)._qlr_made.weight_names,
        quantizers={Point.of_key(key): _quantizer(q) for key, q in state_of(layer).items()},
        route=route_of(layer),
        input_gain=GAIN in state_of(layer)._buffers,
    )


def _quantizer(found: Any) -> Any:
    if isinstance(found, nn.ModuleList):
        return tuple(_quantizer(one) for one in found)
    if isinstance(found, PackedWeight):
        return Codes(found.bits, tuple(found.shape), (len(found.packed), found.num_cols))
    if isinstance(found, EdgeWeightQuant):
        return EdgeWeights(found.bits)
    assert isinstance(found, Quantizer)
    return Ranges(found.config, found.num_groups, found.channel_dim)


def route_of(layer: Any) -> Route | None:
    r"""How a converted conv computes its messages; :obj:`None` for another layer.

    Args:
        layer (QuantLayer): The layer.
    """
    if not isinstance(layer, PackedMessagePassing):
        return None
    choice = kernel_of(layer)
    return Route(choice.kernel, choice.source, choice.weight, choice.reduce)


def smooth_recipes(model: nn.Module) -> tuple[SmoothRecipe, ...]:
    r"""What ``SmoothPropagation`` did to the layers of a model.

    Args:
        model (torch.nn.Module): Any model.
    """
    return tuple(
        SmoothRecipe(
            name,
            unwrapped_class(layer).__name__,
            layer._qlr_smooth.source,
            layer._qlr_smooth.options,
            layer._qlr_smooth.note,
        )
        for name, layer in model.named_modules()
        if isinstance(layer, SmoothMessagePassing)
    )
