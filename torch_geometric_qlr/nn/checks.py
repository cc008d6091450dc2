"""What a model must be before it is planned: a float module with real, finite weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from torch_geometric_qlr.errors import (
    AlreadyQuantizedError,
    InputError,
    LazyModuleError,
    UnsupportedLayerError,
)
from torch_geometric_qlr.layers.pyg import is_uninitialized_parameter
from torch_geometric_qlr.layers.state import STATE
from torch_geometric_qlr.nn.layer import QuantLayer

__all__ = [
    "check_model",
    "check_modules",
    "check_names",
    "check_weights",
    "is_uninitialized",
]


def check_model(model: Any) -> None:
    """Refuses what is no module, or one that other tools have turned into something else."""
    if not isinstance(model, nn.Module):
        raise UnsupportedLayerError(
            f"Expected a torch.nn.Module (got {type(model).__name__}). Pass the model itself, not "
            f"its class or its state_dict."
        )
    for name, module in model.named_modules():
        where = f"{name or 'The model'}"
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedLayerError(
                f"{where} is a TorchScript module ({type(module).__name__}), which cannot be "
                f"rewritten. Quantize the original model."
            )
        if isinstance(module, torch._dynamo.OptimizedModule):
            raise UnsupportedLayerError(
                f"{where} has been compiled with torch.compile. Quantize the model first, then "
                f"compile it."
            )


def check_modules(named: Mapping[str, nn.Module]) -> None:
    """Refuses modules that are quantized already, and weights without a value."""
    for name, module in named.items():
        where = name or type(module).__name__
        if isinstance(module, QuantLayer):
            raise AlreadyQuantizedError(
                f"{where}: {type(module).__name__} is quantized already. Quantize the float model "
                f"once, with overrides={{...}} for what should differ between layers."
            )
        if is_uninitialized(module) and not is_beside_initialized(name, named):
            raise LazyModuleError(
                f"{where}: {type(module).__name__} is not initialized yet (lazy, in_channels=-1). "
                f"Run one forward pass with a small batch first, then quantize."
            )


def check_names(name: str, layer: nn.Module) -> None:
    """Refuses a layer with attributes under the private prefix of what the package keeps on it."""
    if hasattr(type(layer), "_qlr_wrapped"):  # one of the package's own
        return
    own = (layer.__dict__, layer._parameters, layer._buffers, layer._modules)
    classes = (vars(cls) for cls in type(layer).__mro__)
    taken = sorted({key for names in (*own, *classes) for key in names if key.startswith(STATE)})
    taken = [key for key in taken if key != "_qlr_smooth"]
    if taken:
        raise UnsupportedLayerError(
            f"{name or type(layer).__name__}: it has an attribute {taken[0]!r} of its own, and "
            f"names that begin with {STATE!r} are the quantizers'. Rename that attribute."
        )


def is_uninitialized(module: nn.Module) -> bool:
    """Whether a lazy module still waits for its first input."""
    return any(is_uninitialized_parameter(p) for p in module._parameters.values() if p is not None)


def is_beside_initialized(name: str, named: Mapping[str, nn.Module]) -> bool:
    """Whether a module belongs to one kind of node or edge of several, and another kind has been
    used: then it is uninitialized because no data has reached it."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        around = named.get(".".join(parts[: end - 1]))
        if not isinstance(around, nn.ModuleDict):
            continue
        for key, other in around._modules.items():
            if key == parts[end - 1] or other is None:
                continue
            if not any(map(is_uninitialized, other.modules())):
                return True
    return False


def check_weights(name: str, layer: nn.Module, keys: Iterable[str]) -> None:
    """Refuses weights that every input is multiplied by and that hold NaN or Inf."""
    for key in keys:
        p = layer._parameters[key]
        if p is not None and p.device.type != "meta" and not bool(p.isfinite().all()):
            raise InputError(
                f"{name or type(layer).__name__}: the parameter {type(layer).__name__}.{key} holds "
                f"NaN or Inf. Load or train the model again before it is quantized."
            )
