"""One step of a range that learns: measured, followed, cut into a grid and used, in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.ops import gradients, reference
from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.checks import FLOATS, Check, finite, fits, known_to_be
from torch_geometric_qlr.ops.definition import Call, Definition
from torch_geometric_qlr.ops.definitions.fake_quantize import (
    check_backward,
    check_ranges,
    like_values,
)
from torch_geometric_qlr.ops.fakes import group_shape
from torch_geometric_qlr.ops.groups import QParams
from torch_geometric_qlr.ops.layout import storage_bits
from torch_geometric_qlr.ops.multiplier import floored_multiplier
from torch_geometric_qlr.ops.range_grid import range_grid

__all__ = ["ObservedQuantize", "ObservedQuantizeBackward"]


class ObservedQuantize(Definition, op="observed_quantize"):
    r"""Fake quantization with a range that moves towards that of the values, and zero.

    .. math::
        \alpha = \mathrm{lerp}(\alpha, \min(0, \min x), m), \quad
        \beta = \mathrm{lerp}(\beta, \max(0, \max x), m), \quad
        s = \max(\gamma, 10^{-3}) \, s_0(\alpha, \beta)

    with :math:`s_0` and the zero point of
    :func:`~torch_geometric_qlr.ops.range_grid.range_grid`, one range (axis -1), or one per row (0)
    or column (1). Without :math:`\alpha` (lo) and :math:`\beta` (hi) before the step, the range is
    that of the values. The gradient of :math:`\gamma` (gamma) will be multiplied by the factor.

    Gives :math:`\hat x` and where the gradient passes, as
    :func:`~torch_geometric_qlr.ops.reference.fake_quantize` has them; :math:`s`, zero point,
    :math:`s_0`, :math:`\alpha` and :math:`\beta`, each :math:`()`, :math:`[N, 1]` or
    :math:`[1, F]`.

    Example:
        >>> x, half = torch.tensor([0.4, 9.0]), torch.tensor(0.5)
        >>> with torch.no_grad():
        ...     found = torch.ops.qlr.observed_quantize(x, half, None, None, axis=-1, bits=2)
        >>> found[0].tolist(), found[2], found[4]
        ([0.0, 4.5], tensor(1.5000), tensor(3.))
    """

    def check(self, check: Check, a: Arguments) -> None:
        storage_bits(a.bits)
        check.dtype("x", a.x, FLOATS, "floating point")
        check.axis(a.axis, a.x)
        groups = 1 if a.axis == -1 else a.x.size(a.axis)
        for name, numbers in (("gamma", a.gamma), ("lo", a.lo), ("hi", a.hi)):
            if numbers is not None:
                check.dtype(name, numbers, FLOATS, "floating point")
        if (a.lo is None) != (a.hi is None):
            check.fail("lo and hi come together")
        if not known_to_be(a.gamma.numel(), 1):
            check.numbers("gamma", a.gamma, groups)
        check.numbers("lo", a.lo, groups)
        check.numbers("hi", a.hi, groups)

    def fake(self, a: Arguments) -> tuple[Tensor, ...]:
        x_hat, shape = like_values(a.x), group_shape(a.x, a.axis)
        numbers = (a.x.new_empty(shape, dtype=torch.float32) for _ in range(5))
        return x_hat, torch.empty_like(x_hat, dtype=torch.bool), *numbers

    def compute(self, a: Arguments, call: Call) -> tuple[Tensor, ...]:
        x, shape = finite(a.x), group_shape(a.x, a.axis)
        least, most = (end.float().view(shape) for end in _span(x, a.axis))
        if a.lo is not None and a.hi is not None:
            least = _moved(a.lo.float().reshape(shape), least, a.momentum)
            most = _moved(a.hi.float().reshape(shape), most, a.momentum)
        own_scale, zero_point = range_grid(
            least, most, a.bits, truncate=a.truncate, aligned=a.aligned, own=a.lo is None
        )
        gamma = a.gamma.float().reshape(() if a.gamma.numel() == 1 else shape)
        scale = floored_multiplier(gamma, a.factor) * own_scale
        how = QParams(scale, zero_point, a.bits, a.truncate)
        x_hat, mask = reference.fake_quantize(x, how)
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


class ObservedQuantizeBackward(Definition, op="observed_quantize_backward"):
    r"""Gradients of :class:`ObservedQuantize`: of the values, and of the multiplier of each group.

    From the gradient of its first result, and what it had.

    Example:
        >>> x, half = torch.tensor([0.4, 9.0]), torch.tensor(0.5)
        >>> with torch.no_grad():
        ...     x_hat, mask, scale, _, own_scale, *_ = torch.ops.qlr.observed_quantize(
        ...         x, half, None, None, -1, 2
        ...     )
        >>> grad = torch.ones(2)
        >>> torch.ops.qlr.observed_quantize_backward(grad, x, x_hat, mask, scale, own_scale)
        (tensor([1., 0.]), tensor(8.2000))
    """

    def check(self, check: Check, a: Arguments) -> None:
        check_backward(check, a, -1)
        check_ranges(check, a.x, a.scale, a.own_scale)
        if not fits(a.own_scale.shape, tuple(a.scale.shape)):
            shapes = list(a.own_scale.shape), list(a.scale.shape)
            check.fail(f"own_scale has shape {shapes[0]}, scale has {shapes[1]}")

    def fake(self, a: Arguments) -> tuple[Tensor, Tensor]:
        contiguous = torch.contiguous_format
        numbers = torch.empty_like(a.scale, dtype=torch.float32, memory_format=contiguous)
        return like_values(a.grad), numbers

    def compute(self, a: Arguments, call: Call) -> tuple[Tensor, Tensor]:
        axis = gradients.axis_of(a.scale)
        grad_x, reduced = reference.fake_quantize_backward(a.grad, a.x, a.x_hat, a.mask, axis)
        grad_gamma = reduced.view(a.scale.shape) / a.scale.float() * a.own_scale.float() * a.factor
        return grad_x.contiguous(), grad_gamma
