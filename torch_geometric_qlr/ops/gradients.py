"""Straight-through derivatives of ``fake_quantize``, first and second.

Written as the callbacks of an autograd function, for those that register them with an op and for
those that wrap the op in a function of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["axis_of", "backward", "residual", "save_for_backward", "save_for_second", "second"]

Reduce = Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def axis_of(scale: Tensor) -> int:
    """-1 for a scale per tensor, 0 per row, 1 per column."""
    return -1 if scale.numel() == 1 else 0 if scale.size(-1) == 1 else 1


def residual(x: Tensor, x_hat: Tensor, mask: Tensor) -> Tensor:
    """What the scale is multiplied by: the rounding residual or the clipped value, and nothing
    where a value is not finite and stands for itself."""
    return torch.where(x.isfinite(), x_hat - torch.where(mask, x, 0), 0)


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keeps what :func:`backward` needs."""
    x, scale = inputs[0], inputs[1]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, scale, *output)


def backward(
    ctx: Any, grad: Tensor, _: Tensor | None, *, reduce: Reduce | None = None
) -> tuple[Tensor | None, ...]:
    """From the gradient of the values to those of the input and of the scale."""
    x, scale, x_hat, mask = ctx.saved_tensors
    reduce = reduce or torch.ops.qlr.fake_quantize_backward
    grad_x, reduced = reduce(grad, x, x_hat, mask, axis_of(scale))
    grad_scale = (reduced / scale.reshape(reduced.shape)).view(scale.shape).to(scale.dtype)
    return grad_x, grad_scale if ctx.needs_input_grad[1] else None, None, None, None, None


def save_for_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keeps what :func:`second` needs."""
    ctx.save_for_backward(*inputs[:4])


def second(ctx: Any, grad_x: Tensor | None, grad_rho: Tensor | None) -> tuple[Tensor | None, ...]:
    """Derivatives of the first ones, which force fields train on; codes are held fixed."""
    grad, x, x_hat, mask = ctx.saved_tensors
    rho = torch.zeros((), device=grad.device) if grad_rho is None else grad_rho
    of_grad = rho * residual(x, x_hat, mask)
    if grad_x is not None:
        of_grad = of_grad + torch.where(mask, grad_x, 0)
    of_x = torch.where(mask, -rho * grad, 0)
    of_x_hat = torch.where(x.isfinite(), rho * grad, 0)
    return of_grad.to(grad.dtype), of_x.to(x.dtype), of_x_hat.to(x.dtype), None, None
