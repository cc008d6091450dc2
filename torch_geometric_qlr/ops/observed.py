"""One step of a range that learns: measured, followed, cut into a grid and used, in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.ops.checks import FLOATS, Check, known_to_be
from torch_geometric_qlr.ops.layout import storage_bits
from torch_geometric_qlr.ops.multiplier import floored_multiplier
from torch_geometric_qlr.ops.range_grid import range_grid
from torch_geometric_qlr.ops.reference import fake_quantize, fake_quantize_backward

__all__ = ["check", "fake", "fake_backward", "observed_quantize", "observed_quantize_backward"]


def observed_quantize(
    x: Tensor,
    gamma: Tensor,
    lo: Tensor | None,
    hi: Tensor | None,
    axis: int,
    bits: int,
    truncate: bool = False,
    aligned: bool = False,
    momentum: float = 0.1,
    factor: float = 1.0,
) -> tuple[Tensor, ...]:
    r"""Fake quantization with a range that moves towards that of the values, and zero.

    .. math::
        \alpha = \mathrm{lerp}(\alpha, \min(0, \min x), m), \quad
        \beta = \mathrm{lerp}(\beta, \max(0, \max x), m), \quad
        s = \max(\gamma, 10^{-3}) \, s_0(\alpha, \beta)

    with :math:`s_0` and the zero point of
    :func:`~torch_geometric_qlr.ops.range_grid.range_grid`.

    Args:
        x (torch.Tensor): The values; a matrix unless :obj:`axis` is -1.
        gamma (torch.Tensor): :math:`\gamma`, one number or one per group.
        lo, hi (torch.Tensor, optional): :math:`\alpha` and :math:`\beta` before the step, one
            number per group. Without them the range is that of the values.
        axis (int): -1 for one range, 0 for one per row, 1 per column.
        bits (int): Width of a code.
        truncate, aligned (bool): As in :func:`~torch_geometric_qlr.ops.row_ranges.quantize_rows`.
        momentum (float): :math:`m`.
        factor (float): What the gradient of :obj:`gamma` will be multiplied by.

    Returns:
        tuple: :math:`\hat x` and where the gradient passes, as
        :func:`~torch_geometric_qlr.ops.reference.fake_quantize` has them; :math:`s`, zero point,
        :math:`s_0`, :math:`\alpha` and :math:`\beta`, each :math:`()`, :math:`[N, 1]` or
        :math:`[1, F]`.

    Example:
        >>> x, half = torch.tensor([0.4, 9.0]), torch.tensor(0.5)
        >>> found = observed_quantize(x, half, None, None, axis=-1, bits=2)
        >>> found[0].tolist(), found[2], found[4]
        ([0.0, 4.5], tensor(1.5000), tensor(3.))
    """
    shape = _shape(x, axis)
    least, most = (end.float().view(shape) for end in _span(x, axis))
    if lo is not None and hi is not None:
        least = _moved(lo.float().reshape(shape), least, momentum)
        most = _moved(hi.float().reshape(shape), most, momentum)
    own_scale, zero_point = range_grid(
        least, most, bits, truncate=truncate, aligned=aligned, own=lo is None
    )
    gamma = gamma.float().reshape(() if gamma.numel() == 1 else shape)
    scale = floored_multiplier(gamma, factor) * own_scale
    x_hat, mask = fake_quantize(x, scale, zero_point, bits, truncate=truncate)
    return x_hat.contiguous(), mask.contiguous(), scale, zero_point, own_scale, least, most


def _span(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        none = x.sum() if axis == -1 else x.sum(dim=1 - axis)
        return none, none.clone()
    lo, hi = x.aminmax() if axis == -1 else (f(x, dim=1 - axis) for f in (torch.amin, torch.amax))
    return lo.clamp_max(0.0), hi.clamp_min(0.0)


def _moved(kept: Tensor, seen: Tensor, momentum: float) -> Tensor:
    """What is not finite, which only a CPU refuses, moves nothing."""
    return torch.lerp(kept, torch.where(seen.isfinite(), seen, kept), momentum)


def _shape(x: Tensor, axis: int) -> tuple[int, ...]:
    return () if axis == -1 else (x.size(0), 1) if axis == 0 else (1, x.size(1))


def observed_quantize_backward(
    grad: Tensor,
    x: Tensor,
    x_hat: Tensor,
    mask: Tensor,
    scale: Tensor,
    own_scale: Tensor,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""Gradients of :func:`observed_quantize`: of the values, and of the multiplier of each group.

    Args:
        grad (torch.Tensor): That of the first result.
        x, x_hat, mask, scale, own_scale (torch.Tensor): What :func:`observed_quantize` had.
        factor (float): What the gradient of the multiplier is multiplied by.

    Example:
        >>> x, half = torch.tensor([0.4, 9.0]), torch.tensor(0.5)
        >>> x_hat, mask, scale, _, own_scale, *_ = observed_quantize(x, half, None, None, -1, 2)
        >>> observed_quantize_backward(torch.ones(2), x, x_hat, mask, scale, own_scale)
        (tensor([1., 0.]), tensor(8.2000))
    """
    axis = -1 if scale.numel() == 1 else 0 if scale.size(-1) == 1 else 1
    grad_x, reduced = fake_quantize_backward(grad, x, x_hat, mask, axis)
    grad_gamma = reduced.view(scale.shape) / scale.float() * own_scale.float() * factor
    return grad_x.contiguous(), grad_gamma


def check(
    check: Check,
    x: Tensor,
    gamma: Tensor,
    lo: Tensor | None,
    hi: Tensor | None,
    axis: int,
    bits: int,
    **_: Any,
) -> None:
    """What is checked of its arguments."""
    storage_bits(bits)
    check.dtype("x", x, FLOATS, "floating point")
    check.axis(axis, x)
    groups = 1 if axis == -1 else x.size(axis)
    for name, numbers in (("gamma", gamma), ("lo", lo), ("hi", hi)):
        if numbers is not None:
            check.dtype(name, numbers, FLOATS, "floating point")
    if (lo is None) != (hi is None):
        check.fail("lo and hi come together")
    if not known_to_be(gamma.numel(), 1):
        check.numbers("gamma", gamma, groups)
    check.numbers("lo", lo, groups)
    check.numbers("hi", hi, groups)


def fake(x: Tensor, axis: int, **_: Any) -> tuple[Tensor, ...]:
    """The shapes of its results."""
    x_hat = torch.empty_like(x, memory_format=torch.contiguous_format)
    numbers = (x.new_empty(_shape(x, axis), dtype=torch.float32) for _ in range(5))
    return x_hat, torch.empty_like(x_hat, dtype=torch.bool), *numbers


def fake_backward(grad: Tensor, scale: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """The shapes of the results of the backward op."""
    grad_x = torch.empty_like(grad, memory_format=torch.contiguous_format)
    return grad_x, torch.empty_like(
        scale, dtype=torch.float32, memory_format=torch.contiguous_format
    )
