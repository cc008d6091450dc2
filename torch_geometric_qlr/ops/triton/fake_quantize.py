"""Launches: what a quantizer does in training, forward and backward.

Reads tensors once for the range and once for the values, and once for both gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr.ops import gradients
from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.backend import Kernel, NoKernel
from torch_geometric_qlr.ops.checks import finite
from torch_geometric_qlr.ops.definitions.fake_quantize import like_values
from torch_geometric_qlr.ops.fakes import group_shape
from torch_geometric_qlr.ops.groups import QParams
from torch_geometric_qlr.ops.triton.kernels.fake_quantize import (
    fake_quantize_kernel,
    gradient_kernel,
    gradient_sum_kernel,
    grid_kernel,
    span_kernel,
)
from torch_geometric_qlr.ops.triton.launch import cdiv, on_device, power_of_two

__all__ = ["KERNELS", "Groups", "tile_of"]

_INT32 = 2**31 - 2**16
#: Values of a program, and groups of one that lie side by side.
_VALUES, _SIDE_BY_SIDE = 2048, 128
#: Tiles that are reduced at once by the second kernel, times groups.
_PARTS = 1024


class Groups(NamedTuple):
    r"""A contiguous tensor as groups that share a range, each of a length.

    Args:
        num_groups (int): Groups.
        length (int): Values of each.
        group_stride (int): From one group to the next.
        step (int): From one value of a group to the next.
        tile (tuple): Groups, and values of each, that one program has.
    """

    num_groups: int
    length: int
    group_stride: int
    step: int
    tile: tuple[int, int]

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """As kernels take them."""
        return self.num_groups, self.length, self.group_stride, self.step

    @property
    def constants(self) -> dict[str, object]:
        """What kernels are compiled for."""
        groups, length = self.tile
        return {"GROUPS": groups, "LENGTH": length, "WIDE": self.num_groups * self.length > _INT32}

    @property
    def pieces(self) -> int:
        """Tiles along a group."""
        return cdiv(self.length, self.tile[1])

    @property
    def grid(self) -> tuple[int]:
        """Programs, one for each tile."""
        return (self.pieces * cdiv(self.num_groups, self.tile[0]),)

    def second(self) -> tuple[tuple[int], dict[str, int]]:
        """Programs that reduce what the tiles have left, and what these are compiled for."""
        groups = min(_SIDE_BY_SIDE, power_of_two(self.num_groups))
        pieces = min(_PARTS // groups, power_of_two(self.pieces))
        return (cdiv(self.num_groups, groups),), {"GROUPS": groups, "PIECES": pieces}


def tile_of(x: Tensor, axis: int) -> Groups:
    r"""How programs share a contiguous tensor among them.

    Args:
        x (torch.Tensor): The tensor; a matrix unless there is one group.
        axis (int): -1 for one group, 0 for rows, 1 for columns.

    Example:
        >>> tile_of(torch.empty(300, 40), axis=1).tile
        (64, 32)
    """
    if axis == -1:
        return Groups(1, x.numel(), x.numel(), 1, (1, min(_VALUES, power_of_two(x.numel()))))
    rows, cols = x.shape
    if axis == 0:
        width = min(_VALUES, power_of_two(cols))
        return Groups(rows, cols, cols, 1, (min(_VALUES // width, power_of_two(rows)), width))
    width = min(_SIDE_BY_SIDE, power_of_two(cols))
    return Groups(cols, rows, 1, cols, (width, min(_VALUES // width, power_of_two(rows))))


def _vector(numbers: Tensor) -> Tensor:
    return numbers.reshape(-1).contiguous()


def _check_not_empty(x: Tensor) -> None:
    if x.numel() == 0:
        raise NoKernel("")


def _rounded(x: Tensor, axis: int, how: QParams) -> tuple[Tensor, Tensor]:
    """Values and mask, with vectors of numbers."""
    groups = tile_of(x, axis)
    x_hat = like_values(x)
    mask = torch.empty_like(x_hat, dtype=torch.bool)
    with on_device(x):
        fake_quantize_kernel[groups.grid](
            *(x, how.scale, how.zero_point, how.skew, x_hat, mask.view(torch.int8)),
            *groups.numbers,
            LEVELS=2**how.bits - 1,
            TRUNCATE=how.truncate,
            SHARED=how.scale.numel() == 1,
            **groups.constants,
            enable_fp_fusion=False,
        )
    return x_hat, mask


def fake_quantize(a: Arguments) -> tuple[Tensor, Tensor]:
    """The kernel of the op."""
    _check_not_empty(a.x)
    scale, zero_point = torch.broadcast_tensors(a.scale, a.zero_point)
    skew = None if a.skew is None else a.skew.reshape(-1)
    how = QParams(_vector(scale), _vector(zero_point), a.bits, a.truncate, skew)
    return _rounded(a.x.contiguous(), gradients.axis_of(scale), how)


# Gradients ########################################################################################


def _gradients(
    a: Arguments, axis: int, out: Tensor, ranges: tuple[Tensor, Tensor, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Of the values, and in `out` of what their range is."""
    _check_not_empty(a.x)
    groups = tile_of(a.x, axis)
    tensors = [t.contiguous() for t in (a.grad, a.x, a.x_hat, a.mask)]
    is_double = any(t.dtype == torch.float64 for t in tensors)
    grad_x = like_values(a.grad)
    number = torch.float64 if is_double else torch.float32
    partial = a.x.new_empty(groups.pieces * groups.num_groups, dtype=number)
    scale, own_scale, factor = ranges or (partial, partial, 1.0)
    grid, constants = groups.second()
    with on_device(a.x):
        gradient_kernel[groups.grid](
            *(*tensors[:3], tensors[3].view(torch.int8), grad_x, partial),
            *groups.numbers,
            DOUBLE=is_double,
            **groups.constants,
            enable_fp_fusion=False,
        )
        gradient_sum_kernel[grid](
            *(partial, scale, own_scale, out, factor, groups.num_groups, groups.pieces),
            SCALED=ranges is not None,
            **constants,
            enable_fp_fusion=False,
        )
    return grad_x, out


def fake_quantize_backward(a: Arguments) -> tuple[Tensor, Tensor]:
    """The kernel of the op."""
    out = a.grad.new_empty(group_shape(a.x, a.axis), dtype=torch.float32)
    return _gradients(a, a.axis, out)


def observed_quantize_backward(a: Arguments) -> tuple[Tensor, Tensor]:
    """The kernel of the op."""
    out = torch.empty_like(a.scale, dtype=torch.float32, memory_format=torch.contiguous_format)
    return _gradients(
        a, gradients.axis_of(a.scale), out, (_vector(a.scale), _vector(a.own_scale), a.factor)
    )


# Ranges that learn ################################################################################


def _range_and_grid(x: Tensor, a: Arguments) -> Tensor:
    """Scale, zero point, scale at a multiplier of one, and both ends, of each group."""
    groups = tile_of(x, a.axis)
    spans = x.new_empty((2, groups.pieces * groups.num_groups), dtype=torch.float32)
    out = x.new_empty((5, groups.num_groups), dtype=torch.float32)
    kept = [None if end is None else _vector(end) for end in (a.lo, a.hi)]
    gamma = _vector(a.gamma)
    grid, constants = groups.second()
    with on_device(x):
        span_kernel[groups.grid](
            x, *spans, *groups.numbers, **groups.constants, enable_fp_fusion=False
        )
        grid_kernel[grid](
            *(*spans, *kept, gamma, out, a.momentum, a.factor, groups.num_groups, groups.pieces),
            LEVELS=2**a.bits - 1,
            TRUNCATE=a.truncate,
            ALIGNED=a.aligned,
            FACTOR=a.factor != 1.0,
            ONE_GAMMA=gamma.numel() == 1,
            **constants,
            enable_fp_fusion=False,
        )
    return out


def observed_quantize(a: Arguments) -> tuple[Tensor, ...]:
    """The kernel of the op."""
    _check_not_empty(a.x)
    x: Tensor = finite(a.x).contiguous()
    numbers = _range_and_grid(x, a)
    rounded = _rounded(x, a.axis, QParams(numbers[0], numbers[1], a.bits, a.truncate))
    shape = group_shape(x, a.axis)
    # Each has memory of its own, as results of an op have.
    return *rounded, *(n.clone().view(shape) for n in numbers)


#: What a back end has of this.
KERNELS: Mapping[str, Kernel] = {
    "fake_quantize": fake_quantize,
    "fake_quantize_backward": fake_quantize_backward,
    "observed_quantize": observed_quantize,
    "observed_quantize_backward": observed_quantize_backward,
}
