"""Fake quantization with a learned multiplier, as one node of autograd.

A training step passes here once for every weight and every place where features are quantized.
Written as operations that autograd follows one by one, the handful of numbers around each tensor
would cost more than the tensor does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr.ops import gradients
from torch_geometric_qlr.quantizers.functional import floored_multiplier
from torch_geometric_qlr.quantizers.statistics import Grid
from torch_geometric_qlr.quantizers.torch_state import PlainFunction, below_autograd

__all__ = ["Observer", "quantize_learned", "quantize_observed"]

_OPS = torch.ops.qlr


def quantize_learned(
    x: Tensor, gamma: Tensor, grid: Grid, bits: int, truncate: bool, gradient_factor: float
) -> tuple[Tensor, Tensor]:
    r"""Values on the grid, and their scale :math:`s = \gamma s_0`.

    The same numbers, and the same gradients of :obj:`x` and :obj:`gamma`, also through the scale
    and of second order, as :func:`~torch_geometric_qlr.quantizers.fake_quantize` of that scale.
    Forward mode and :mod:`torch.func` need that one.

    Args:
        x (torch.Tensor): The values.
        gamma (torch.Tensor): :math:`\gamma`, a number or one per group.
        grid (Grid): What belongs to a multiplier of one.
        bits (int): Width of a code.
        truncate (bool): Quantize to 8 bits first and keep the top :obj:`bits`.
        gradient_factor (float): What the gradient of :obj:`gamma` is multiplied by.

    Example:
        >>> from torch_geometric_qlr.quantizers.statistics import Grid
        >>> x, gamma = torch.tensor([0.4, 9.0]), torch.tensor(1.0, requires_grad=True)
        >>> grid = Grid(torch.tensor(1.0), torch.tensor(0.0), None)
        >>> value, scale = quantize_learned(x, gamma, grid, 2, False, 1.0)
        >>> value.sum().backward(); value.tolist(), gamma.grad
        ([0.0, 3.0], tensor(2.6000))
    """
    value, scale = _QuantizeLearned.apply(x, gamma, grid, bits, truncate, gradient_factor)
    return value, scale


class Observer(NamedTuple):
    r"""How a range that learns moves on and makes its grid.

    Args:
        lo, hi (torch.Tensor, optional): The range, which is moved. Without it the range is that of
            the values.
        axis (int): -1 for one range, 0 for one per row, 1 per column.
        bits (int): Width of a code.
        truncate (bool): Quantize to 8 bits first and keep the top :obj:`bits`.
        aligned (bool): Round the zero point to a level of the truncated codes.
        momentum (float): How far the range moves towards that of the values.
        gradient_factor (float): What the gradient of the multiplier is multiplied by.
    """

    lo: Tensor | None
    hi: Tensor | None
    axis: int
    bits: int
    truncate: bool
    aligned: bool
    momentum: float
    gradient_factor: float


def quantize_observed(x: Tensor, gamma: Tensor, by: Observer) -> tuple[Tensor, Tensor, Tensor]:
    r"""Looks at values, moves the range, and quantizes them with it: values on the grid,
    scale and zero point. The same numbers and gradients as one after the other, in one op.

    Args:
        x (torch.Tensor): The values; a matrix unless there is one range.
        gamma (torch.Tensor): The multiplier, a number or one per group.
        by (Observer): Whose range it is.

    Raises:
        InputError: On a CPU, if a value is NaN or infinite. Nothing has moved then. Elsewhere such
            values leave a range that is kept as it is.

    Example:
        >>> x, gamma = torch.tensor([0.4, 9.0]), torch.tensor(0.5, requires_grad=True)
        >>> by = Observer(None, None, -1, 2, False, False, 0.1, 1.0)
        >>> value, scale, zero_point = quantize_observed(x, gamma, by)
        >>> value.sum().backward(); value.tolist(), gamma.grad
        ([0.0, 4.5], tensor(8.2000))
    """
    value, scale, zero_point = _QuantizeObserved.apply(x, gamma, by)
    return value, scale, zero_point


class _Learned(PlainFunction):
    """What both nodes do backward."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_scale: Tensor | None, *_: None) -> Any:
        saved = ctx.saved_tensors  # recomputes, in a checkpoint
        if torch.is_grad_enabled():  # second derivatives are asked for
            found = _gradients(ctx, saved, grad, grad_scale)
        else:
            with below_autograd():
                if grad is None or grad_scale is not None:
                    found = _gradients(ctx, saved, grad, grad_scale)
                else:
                    found = _gradients_of_values(ctx, saved, grad)
        return *found, None, None, None, None


class _QuantizeLearned(_Learned):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        grid: Grid,
        bits: int,
        truncate: bool,
        gradient_factor: float,
    ) -> tuple[Tensor, Tensor]:
        scale0, zero_point, shift = grid
        with below_autograd():  # this is the node
            multiplier = floored_multiplier(gamma, gradient_factor)
            scale = (multiplier.view_as(scale0) if multiplier.dim() else multiplier) * scale0
            x_hat, mask = _OPS.fake_quantize(x, scale, zero_point, bits, truncate, shift)
        ctx.gradient_factor, ctx.gamma_shape = gradient_factor, gamma.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, x_hat, mask, scale, scale0)
        return x_hat, scale


class _QuantizeObserved(_Learned):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, by: Observer) -> tuple[Tensor, ...]:
        with below_autograd():  # this is the node
            x_hat, mask, scale, zero_point, scale0, *moved = _OPS.observed_quantize(x, gamma, *by)
            if by.lo is not None and by.hi is not None:
                by.lo.copy_(moved[0])
                by.hi.copy_(moved[1])
        ctx.gradient_factor, ctx.gamma_shape = by.gradient_factor, gamma.shape
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(zero_point)
        ctx.save_for_backward(x, x_hat, mask, scale, scale0)
        return x_hat, scale, zero_point


def _gradients_of_values(
    ctx: Any, saved: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor, Tensor | None]:
    """What :func:`_gradients` gives without a gradient of the scale, in one op."""
    x, x_hat, mask, scale, scale0 = saved
    one_for_all = not ctx.gamma_shape and scale.numel() > 1
    factor = 1.0 if one_for_all else ctx.gradient_factor
    grad_x, grad_gamma = _OPS.observed_quantize_backward(
        grad, x, x_hat, mask, scale, scale0, factor
    )
    if one_for_all:
        grad_gamma = grad_gamma.sum()
        if ctx.gradient_factor != 1.0:
            grad_gamma = grad_gamma * ctx.gradient_factor
    elif ctx.gamma_shape != grad_gamma.shape:
        grad_gamma = grad_gamma.view(ctx.gamma_shape)
    return grad_x, grad_gamma if ctx.needs_input_grad[1] else None


def _gradients(
    ctx: Any, saved: tuple[Tensor, ...], grad: Tensor | None, grad_scale: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Of the values and of the multiplier."""
    x, x_hat, mask, scale, scale0 = saved
    grad_x = None
    if grad is not None:
        axis = gradients.axis_of(scale)
        grad_x, reduced = _OPS.fake_quantize_backward(grad, x, x_hat, mask, axis)
        if reduced.dim() != scale.dim():  # one group, in a matrix
            reduced = reduced.view_as(scale)
        through_values = reduced / scale
        grad_scale = through_values if grad_scale is None else grad_scale + through_values
    if grad_scale is None or not ctx.needs_input_grad[1]:
        return grad_x, None
    grad_gamma = grad_scale * scale0
    if ctx.gamma_shape != grad_gamma.shape:  # one multiplier for all groups, or a vector
        grad_gamma = grad_gamma.view(ctx.gamma_shape) if ctx.gamma_shape else grad_gamma.sum()
    if ctx.gradient_factor != 1.0:
        grad_gamma = grad_gamma * ctx.gradient_factor
    return grad_x, grad_gamma
