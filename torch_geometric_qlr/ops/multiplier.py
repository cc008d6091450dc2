"""The learned multiplier as scales are made with it."""

from __future__ import annotations

from torch import Tensor

__all__ = ["floor", "floored_multiplier", "scale_gradient"]

_MIN_MULTIPLIER = 1e-3


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    r"""The identity, whose gradient is multiplied by :obj:`factor`.

    Example:
        >>> import torch
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> scale_gradient(x, 0.5).backward()
        >>> x.grad
        tensor(0.5000)
    """
    return x * factor + (x - x * factor).detach()


def floor(x: Tensor, minimum: float) -> Tensor:
    r"""Clamps from below and passes the gradient on, so that a value below can climb back.

    Example:
        >>> import torch
        >>> x = torch.tensor(-1.0, requires_grad=True)
        >>> y = floor(x, 0.5); y.backward(); y.item(), x.grad.item()
        (0.5, 1.0)
    """
    return x + (x.clamp_min(minimum) - x).detach()


def floored_multiplier(gamma: Tensor, gradient_factor: float) -> Tensor:
    r"""The multiplier that scales are made with: positive, whatever an optimizer has made of it.

    Args:
        gamma (torch.Tensor): The learned multiplier.
        gradient_factor (float): What its gradient is multiplied by.

    Example:
        >>> import torch
        >>> floored_multiplier(torch.tensor([0.5, -1.0]), 1.0)
        tensor([0.5000, 0.0010])
    """
    gamma = gamma if gradient_factor == 1.0 else scale_gradient(gamma, gradient_factor)
    return floor(gamma, _MIN_MULTIPLIER)
