"""Empty results, in the shapes that ops give them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.ops.groups import QParams
from torch_geometric_qlr.ops.layout import row_layout, storage_bits

__all__ = ["float_rows", "group_shape", "packed_rows", "result_rows"]


def packed_rows(like: Tensor, rows: Any, cols: Any, bits: int) -> Tensor:
    r"""Packed codes of :obj:`bits` bits.

    Example:
        >>> packed_rows(torch.rand(1), 4, 100, 3).shape
        torch.Size([4, 64])
    """
    stride = row_layout(cols, storage_bits(bits)).stride
    return like.new_empty((rows, stride), dtype=torch.uint8)


def float_rows(like: Tensor, rows: Any, cols: Any) -> Tensor:
    r"""A matrix of floats.

    Example:
        >>> float_rows(torch.rand(1), 4, 100).shape
        torch.Size([4, 100])
    """
    return like.new_empty((rows, cols), dtype=torch.float32)


def result_rows(like: Tensor, rows: Any, cols: Any, output: QParams | None) -> Tensor:
    r"""A result, packed if there is a quantizer for it.

    Example:
        >>> result_rows(torch.rand(1), 4, 100, None).dtype
        torch.float32
    """
    if output is None:
        return float_rows(like, rows, cols)
    return packed_rows(like, rows, cols, output.bits)


def group_shape(x: Tensor, axis: int) -> tuple[int, ...]:
    r"""The shape of one number per tensor (-1), row (0) or column (1).

    Example:
        >>> [group_shape(torch.rand(4, 3), axis) for axis in (-1, 0, 1)]
        [(), (4, 1), (1, 3)]
    """
    if axis == -1:
        return ()
    return (x.size(0), 1) if axis == 0 else (1, x.size(1))
