"""What a model must be before it is planned: a float module with real, finite weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch_geometric.nn.dense.linear import is_uninitialized_parameter

from torch_geometric_qlr.errors import (
    AlreadyQuantizedError,
    InputError,
    LazyModuleError,
    UnsupportedLayerError,
)
from torch_geometric_qlr.nn.layer import QuantLayer

__all__ = ["check_model", "check_modules"]


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
        for key, p in module._parameters.items():
            if p is not None:
                _check_parameter(f"{where}", f"{type(module).__name__}.{key}", p)


def _check_parameter(where: str, key: str, p: nn.Parameter) -> None:
    if is_uninitialized_parameter(p):
        raise LazyModuleError(
            f"{where}: {key} is not initialized yet (lazy, in_channels=-1). Run one forward pass "
            f"with a small batch first, then quantize."
        )
    if p.is_floating_point() and p.device.type != "meta" and not bool(p.isfinite().all()):
        raise InputError(
            f"{where}: the parameter {key} holds NaN or Inf. Load or train the model again before "
            f"it is quantized."
        )
