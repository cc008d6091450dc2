"""Fake quantization with the straight-through gradients that let ranges learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import torch_geometric_qlr.ops  # noqa: F401  (registers the op)
from torch_geometric_qlr.ops import gradients
from torch_geometric_qlr.ops.multiplier import floor, floored_multiplier, scale_gradient
from torch_geometric_qlr.quantizers.torch_state import follows_tangents, is_transformed

__all__ = ["fake_quantize", "floor", "floored_multiplier", "scale_gradient"]


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
    and truncated tensors alike. Forward mode pushes tangents through the same factors, and
    :mod:`torch.func` transforms nest.

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
    # The op has a backward of its own, which is all that autograd and compilers ask for.
    extended = is_transformed() or follows_tangents()
    apply = _FakeQuantize.apply if extended else torch.ops.qlr.fake_quantize
    value: Tensor = apply(x, scale, zero_point, bits, truncate, skew)[0]
    return value


class _FakeQuantize(torch.autograd.Function):
    """The op, with the rules that a :class:`torch.library` op has no place for."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        values: tuple[Tensor, Tensor] = torch.ops.qlr.fake_quantize(*args)
        return values

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        gradients.save_for_backward(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], inputs[1], *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, mask: Tensor | None) -> Any:
        return gradients.backward(ctx, grad, mask, reduce=_Gradients.apply)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None]:
        x, scale, x_hat, mask = ctx.saved_tensors
        of_x, of_scale = tangents[:2]
        tangent = torch.zeros_like(x) if of_x is None else torch.where(mask, of_x, 0)
        if of_scale is not None:
            residual = gradients.residual(x, x_hat, mask)
            tangent = tangent + (residual / scale * of_scale).to(x.dtype)
        return tangent, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        size = info.batch_size
        x, scale, zero_point, bits, truncate, skew = args
        if in_dims[5] is not None:  # the op takes one shift
            every = [_first(arg, dim, size) for arg, dim in zip(args, in_dims, strict=True)]
            outs = [_FakeQuantize.apply(*one) for one in zip(*every, strict=True)]
            return tuple(torch.stack(part) for part in zip(*outs, strict=True)), (0, 0)
        x, scale, zero_point = (
            _first(arg, dim, size) for arg, dim in zip(args[:3], in_dims[:3], strict=True)
        )
        rows = _Rows(x, gradients.axis_of(scale[0]))
        scale, zero_point = (t.expand_as(scale).reshape(-1, 1) for t in (scale, zero_point))
        outs = _FakeQuantize.apply(rows.of(x), scale, zero_point, bits, truncate, skew)
        return tuple(map(rows.back, outs)), (0, 0)


class _Gradients(torch.autograd.Function):
    """The backward op, likewise."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = torch.ops.qlr.fake_quantize_backward(*args)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        gradients.save_for_second(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4])
        ctx.axis = inputs[4]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return gradients.second(ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        grad, x, x_hat, mask = ctx.saved_tensors
        of_grad, of_x, of_x_hat = (
            torch.zeros_like(t) if tangent is None else tangent
            for t, tangent in zip((grad, x, x_hat), tangents, strict=False)
        )
        change = torch.where(x.isfinite(), of_x_hat - torch.where(mask, of_x, 0), 0)
        reduced = of_grad * gradients.residual(x, x_hat, mask) + grad * change
        dims = list(range(x.dim())) if ctx.axis == -1 else [1 - ctx.axis]
        return torch.where(mask, of_grad, 0), reduced.float().sum(dims, keepdim=ctx.axis != -1)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        *tensors, axis = args
        tensors = [
            _first(t, dim, info.batch_size) for t, dim in zip(tensors, in_dims[:4], strict=True)
        ]
        rows = _Rows(tensors[0], axis)
        grad_x, reduced = _Gradients.apply(*map(rows.of, tensors), 0)
        return (rows.back(grad_x), rows.reduced(reduced)), (0, 0)


def _first(arg: Any, dim: int | None, size: int) -> Any:
    """The argument with the batch in front, or as many times as there are samples."""
    if not isinstance(arg, Tensor):
        return [arg] * size
    return arg.movedim(dim, 0) if dim is not None else arg.expand(size, *arg.shape)


class _Rows:
    """A batch of tensors as one matrix, each of whose rows has a scale of its own."""

    def __init__(self, batch: Tensor, axis: int) -> None:
        self.shape, self.axis = batch.shape, axis

    def of(self, batch: Tensor) -> Tensor:
        """The matrix."""
        if self.axis == -1:
            return batch.reshape(batch.size(0), -1)
        batch = batch if self.axis == 0 else batch.transpose(1, 2)
        return batch.reshape(-1, batch.size(-1))

    def back(self, matrix: Tensor) -> Tensor:
        """The batch."""
        if self.axis != 1:
            return matrix.view(self.shape)
        samples, rows, columns = self.shape
        return matrix.view(samples, columns, rows).transpose(1, 2).contiguous()

    def reduced(self, column: Tensor) -> Tensor:
        """What was one number per row."""
        samples = self.shape[0]
        if self.axis == -1:
            return column.view(samples)
        return column.view((samples, -1, 1) if self.axis == 0 else (samples, 1, -1))
