"""A word to those whose optimizer decays learned ranges."""

from __future__ import annotations

import functools
import warnings
import weakref
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from torch_geometric_qlr.errors import QLRWarning
from torch_geometric_qlr.training.groups import quant_parameters

__all__ = ["watch_decay"]

# Optimizers know nothing of models, and models nothing of optimizers.
_MODELS: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_LOOKED_AT: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def watch_decay(model: nn.Module) -> None:
    r"""Warns, once, when an optimizer is about to decay the ranges of a model.

    Args:
        model (torch.nn.Module): A quantized model.
    """
    _listen()
    _MODELS.add(model)


@functools.cache
def _listen() -> None:
    register_optimizer_step_pre_hook(_look)


def _look(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling() or optimizer in _LOOKED_AT:
        return
    _LOOKED_AT.add(optimizer)
    decayed = {
        id(p): group["weight_decay"]
        for group in optimizer.param_groups
        if group.get("weight_decay") and not group.get("decoupled_weight_decay")
        for p in group["params"]
    }
    if not decayed:
        return
    for model in list(_MODELS):
        found = [decayed[id(p)] for p in quant_parameters(model) if id(p) in decayed]
        if found:
            warnings.warn(
                f"{type(optimizer).__name__} decays {len(found)} learned ranges of a "
                f"{type(model).__name__} (weight_decay={max(found)}), which pulls them towards "
                f"zero, so that everything is clipped. Pass it qlr.parameter_groups(model, lr=..., "
                f"weight_decay=...), which leaves them out.",
                QLRWarning,
                stacklevel=4,
            )
            return
