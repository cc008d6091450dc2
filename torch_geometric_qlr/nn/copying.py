"""Copies of models that keep activations of their last batch.

``copy.deepcopy`` refuses a tensor that has a history, such as the embedding that an autoencoder
keeps for its loss, and a matrix of ``torch.sparse`` in compressed layout. A copy of a model needs
nothing of them but their values.
"""

from __future__ import annotations

import contextlib
import copy
import types
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torch_geometric_qlr.errors import UnsupportedLayerError

__all__ = ["copy_of", "ease_copying"]

M = TypeVar("M", bound=nn.Module)

#: Methods that people replace on an object.
_METHODS = {"forward", "propagate", "message", "aggregate", "update", "message_and_aggregate"}

#: What holds no tensors, or is copied by reference.
_ATOMS = (str, bytes, int, float, complex, bool, type(None), type, types.FunctionType)


def copy_of(model: M) -> M:
    r"""A deep copy of a model, whatever tensors it keeps.

    Args:
        model (torch.nn.Module): The model.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> model.kept = model(torch.rand(3, 4))
        >>> copy_of(model).kept.shape
        torch.Size([3, 2])
    """
    _check_replaced_methods(model)
    memo: dict[int, Any] = {}
    ease_copying(model, memo)
    return copy.deepcopy(model, memo)


def ease_copying(value: Any, memo: dict[int, Any]) -> None:
    r"""Puts copies of what ``deepcopy`` would refuse where it looks first.

    Args:
        value (Any): What is to be copied.
        memo (dict): The copies that ``deepcopy`` has made so far, by the identity of the original.
    """
    _copy_difficult_tensors(value, memo, set())


def _check_replaced_methods(model: nn.Module) -> None:
    """Refuses methods of a copy that would compute with the modules it was copied from."""
    modules = {id(module): name for name, module in model.named_modules()}
    for name, module in model.named_modules():
        for method in _METHODS & module.__dict__.keys():
            held = _held_by(module.__dict__[method]) & modules.keys()
            if held:
                raise UnsupportedLayerError(
                    f"{name or type(module).__name__}: its {method}() was replaced on the object "
                    f"by a function that holds on to {modules[held.pop()] or 'the model'} itself, "
                    f"so a copy would go on computing with the original. Work in place, with "
                    f"quantize_(model) and convert_(model), or override {method}() in a subclass."
                )


def _held_by(function: Any) -> set[int]:
    """What a function holds in variables around it, directly or as the owner of a method."""
    function = getattr(function, "__func__", function)
    out = set()
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # a variable without a value
            held = cell.cell_contents
            out.add(id(getattr(held, "__self__", held)))
    return out


def _copy_difficult_tensors(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    if isinstance(value, _ATOMS) or id(value) in seen or id(value) in memo:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.grad_fn is not None or value.layout not in (torch.strided, torch.sparse_coo):
            memo[id(value)] = value.detach().clone()
        return
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts:
        _copy_difficult_tensors(part, memo, seen)
