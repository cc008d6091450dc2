"""Fake quantization with a range that is given, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.ops import gradients, reference
from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.checks import FLOATS, Check, fits, known_to_be
from torch_geometric_qlr.ops.definition import Call, Definition
from torch_geometric_qlr.ops.fakes import group_shape
from torch_geometric_qlr.ops.layout import storage_bits

__all__ = ["FakeQuantize", "FakeQuantizeBackward", "check_backward", "check_ranges", "like_values"]


def check_ranges(check: Check, x: Tensor, scale: Tensor, zero_point: Tensor) -> None:
    """Ranges per row or column are those of a matrix."""
    check.dtype("x", x, FLOATS, "floating point")
    if x.dim() == 2:
        check.params(scale, zero_point, x.size(0), x.size(1))
    elif not (known_to_be(scale.numel(), 1) and known_to_be(zero_point.numel(), 1)):
        check.fail(
            f"x must be a matrix [N, F] where ranges are per row or column, got shape "
            f"{list(x.shape)}"
        )
    else:
        check.params(scale, zero_point, 1, 1)


def check_backward(check: Check, a: Arguments, axis: int) -> None:
    """What both backward ops begin with."""
    x = a.x
    for name, tensor in (("grad", a.grad), ("x", x), ("x_hat", a.x_hat)):
        check.dtype(name, tensor, FLOATS, "floating point")
    check.dtype("mask", a.mask, frozenset({torch.bool}), "bool")
    for name, tensor in (("grad", a.grad), ("x_hat", a.x_hat), ("mask", a.mask)):
        if not fits(tensor.shape, tuple(x.shape)):
            check.fail(f"{name} has shape {list(tensor.shape)}, x has {list(x.shape)}")
    check.axis(axis, x)


def like_values(x: Tensor) -> Tensor:
    """Contiguous, with the shape and the type of values."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class FakeQuantize(Definition, op="fake_quantize"):
    """:func:`~torch_geometric_qlr.ops.reference.fake_quantize`."""

    loses_gradient = False
    derivative = (gradients.backward, gradients.save_for_backward)

    def check(self, check: Check, a: Arguments) -> None:
        storage_bits(a.bits)
        check_ranges(check, a.x, a.scale, a.zero_point)
        check.skew("skew", a.skew)

    def fake(self, a: Arguments) -> tuple[Tensor, Tensor]:
        x_hat = like_values(a.x)
        return x_hat, torch.empty_like(x_hat, dtype=torch.bool)

    def compute(self, a: Arguments, call: Call) -> tuple[Tensor, Tensor]:
        x_hat, mask = reference.fake_quantize(a.x, a.quantizer)
        # A range of shape [1, 1] serves any tensor, and is no reason to change its shape.
        return x_hat.reshape(a.x.shape).contiguous(), mask.reshape(a.x.shape).contiguous()


class FakeQuantizeBackward(Definition, op="fake_quantize_backward"):
    """:func:`~torch_geometric_qlr.ops.reference.fake_quantize_backward`."""

    loses_gradient = False
    derivative = (gradients.second, gradients.save_for_second)

    def check(self, check: Check, a: Arguments) -> None:
        check_backward(check, a, a.axis)

    def fake(self, a: Arguments) -> tuple[Tensor, Tensor]:
        reduced = a.grad.new_empty(group_shape(a.x, a.axis), dtype=torch.float32)
        return like_values(a.grad), reduced

    def compute(self, a: Arguments, call: Call) -> tuple[Tensor, Tensor]:
        grad_x, reduced = reference.fake_quantize_backward(a.grad, a.x, a.x_hat, a.mask, a.axis)
        return grad_x.contiguous(), reduced
