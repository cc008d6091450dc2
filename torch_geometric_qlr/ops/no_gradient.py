"""Ops that take floats and have no gradient say so, instead of losing one that was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_geometric_qlr.errors import InputError

__all__ = ["has_no_gradient", "refuse_gradient"]

#: All others take floats, and have none.
_DIFFERENTIABLE = frozenset({"fake_quantize", "fake_quantize_backward"})
_OF_INTEGERS = frozenset({"pack", "unpack", "index_select", "csr"})


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


def has_no_gradient(name: str) -> bool:
    """Whether an op loses gradients."""
    return name not in _DIFFERENTIABLE | _OF_INTEGERS


def refuse_gradient(name: str, arguments: Iterable[Any]) -> None:
    r"""Raises if an op without gradient is called with an input that wants one.

    Raises:
        InputError: With the remedy.

    Example:
        >>> refuse_gradient("packed_spmm", [torch.ones(3), None, 4])
    """
    if has_no_gradient(name) and any(map(_wants_gradient, arguments)):
        raise InputError(
            f"torch.ops.qlr.{name} has no gradient, and one of its inputs asks for one. Detach "
            f"it, or call the op under torch.no_grad(); training computes with the quantized "
            f"model, not with the converted one."
        )
