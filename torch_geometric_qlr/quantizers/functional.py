"""Fake quantization with the straight-through gradients that let ranges learn."""

from __future__ import annotations

import torch
from torch import Tensor

import torch_geometric_qlr.ops  # noqa: F401  (registers the op)

__all__ = ["fake_quantize", "scale_gradient", "floor"]


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    *,
    truncate: bool = False,
    skew: Tensor | None = None,
) -> Tensor:
    r"""Quantizes and dequantizes, with gradients for the values and for the scale.

    Forward it is :func:`torch_geometric_qlr.ops.reference.fake_quantize`. Backward, with the zero
    point held fixed and *in range* meaning that no clamp acted on :math:`x`,

    .. math::
        \frac{\partial \hat x}{\partial x} = [\text{in range}], \qquad
        \frac{\partial \hat x}{\partial s} = \frac{\hat x - x \, [\text{in range}]}{s},

    which is the rounding residual inside the range and the clipped code outside of it, for plain
    and truncated tensors alike.

    Args:
        x (torch.Tensor): The values, one- or two-dimensional for a scale per row or column.
        scale (torch.Tensor): :math:`s > 0` of shape :math:`()`, :math:`[N, 1]` or :math:`[1, F]`.
        zero_point (torch.Tensor): Like :obj:`scale`; gets no gradient.
        bits (int): Width of a code, 1 to 8.
        truncate (bool): Quantize to 8 bits first and keep the top :obj:`bits`.
        skew (torch.Tensor, optional): Shift of the thresholds in 8-bit codes (BT*).

    Example:
        >>> x = torch.tensor([0.4, 9.0], requires_grad=True)
        >>> scale = torch.tensor(1.0, requires_grad=True)
        >>> fake_quantize(x, scale, torch.tensor(0.0), bits=2).sum().backward()
        >>> x.grad, scale.grad
        (tensor([1., 0.]), tensor(2.6000))
    """
    value: Tensor = torch.ops.qlr.fake_quantize(x, scale, zero_point, bits, truncate, skew)[0]
    return value


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    r"""The identity, whose gradient is multiplied by :obj:`factor`.

    Example:
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> scale_gradient(x, 0.5).backward()
        >>> x.grad
        tensor(0.5000)
    """
    return x * factor + (x - x * factor).detach()


def floor(x: Tensor, minimum: float) -> Tensor:
    r"""Clamps from below and passes the gradient on, so that a value below can climb back.

    Example:
        >>> x = torch.tensor(-1.0, requires_grad=True)
        >>> y = floor(x, 0.5); y.backward(); y.item(), x.grad.item()
        (0.5, 1.0)
    """
    return x + (x.clamp_min(minimum) - x).detach()
