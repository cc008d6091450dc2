"""Ops that take floats and have no gradient say so, instead of losing one that was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.ops.definition import Definition

__all__ = ["refuse_gradient"]


def _wants_gradient(tensor: Any) -> bool:
    """Whether autograd follows a tensor, backward or forward, also inside `torch.func`."""
    if not isinstance(tensor, Tensor):
        return False
    if tensor.requires_grad and torch.is_grad_enabled():
        return True
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        return True
    # The level below, of a transform around this one.
    functorch = torch._C._functorch
    if functorch.is_functorch_wrapped_tensor(tensor):
        return _wants_gradient(functorch.get_unwrapped(tensor))
    return False


def refuse_gradient(definition: Definition, arguments: Iterable[Any]) -> None:
    r"""Raises if an op without gradient is called with an input that wants one.

    Raises:
        InputError: With the remedy.
    """
    if definition.loses_gradient and any(map(_wants_gradient, arguments)):
        raise InputError(
            f"torch.ops.qlr.{definition.op} has no gradient, and one of its inputs asks for one. "
            f"Detach it, or call the op under torch.no_grad(); training computes with the "
            f"quantized model, not with the converted one."
        )
