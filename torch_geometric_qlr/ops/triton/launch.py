"""What all launches have in common: tensors as kernels read them, constants of layouts."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from torch_geometric_qlr.ops.groups import Epilogue, PackedMatrix, QParams
from torch_geometric_qlr.ops.layout import row_layout, storage_bits
from torch_geometric_qlr.ops.triton.forms import Affine, After, Ending, Out, Rows

__all__ = [
    "after_of",
    "affine_of",
    "axis_of",
    "cdiv",
    "dense",
    "ending",
    "on_device",
    "out_of",
    "power_of_two",
    "rows_of",
    "sources_of",
    "vector",
]

_INT32 = 2**31 - 2**16


def cdiv(a: int, b: int) -> int:
    """Rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The next one."""
    return 1 << max(0, n - 1).bit_length()


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    """Where its kernels are launched: on the device of their tensors, which need not be the
    current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def dense(tensor: Tensor) -> Tensor:
    """Contiguous, and where vectors of 16 bytes may be read."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def vector(tensor: Tensor | None) -> Tensor | None:
    """Contiguous numbers."""
    return None if tensor is None else tensor.reshape(-1).contiguous()


def axis_of(scale: Tensor, zero_point: Tensor) -> int:
    """What ranges run along: -1 none, 0 rows, 1 columns."""
    longer = scale if scale.numel() != 1 else zero_point
    if longer.numel() == 1:
        return -1
    return 0 if longer.size(1) == 1 else 1


def affine_of(scale: Tensor, zero_point: Tensor) -> Affine:
    """Both as long as the longer one."""
    if scale.numel() != zero_point.numel():
        longer = scale if scale.numel() != 1 else zero_point
        scale, zero_point = (p.reshape(-1).expand(longer.numel()) for p in (scale, zero_point))
    return Affine(scale.reshape(-1).contiguous(), zero_point.reshape(-1).contiguous())


def rows_of(num_rows: int, num_cols: int, bits: int) -> Rows:
    """The layout of packed rows. Their codes may be floats, so elements are counted, not bytes."""
    layout = row_layout(num_cols, bits)
    used = layout.fields if layout.units > 1 else max(1, cdiv(num_cols, layout.unit))
    wide = num_rows * max(layout.stride, num_cols) >= _INT32
    return Rows(num_cols, bits, layout.unit, layout.stride, used, wide)


def ending(
    num_rows: int,
    num_cols: int,
    axis: int,
    epilogue: Epilogue | None = None,
    output: QParams | None = None,
) -> Ending:
    """How results leave."""
    end = Ending(num_cols, axis)
    if epilogue is not None:
        end = end._replace(mean=epilogue.reduce == "mean", relu=epilogue.relu)
    if output is None:
        return end._replace(wide=num_rows * num_cols >= _INT32)
    layout = row_layout(num_cols, storage_bits(output.bits))
    assert output.zero_point is not None
    return end._replace(
        wide=num_rows * max(layout.stride, num_cols) >= _INT32,
        bits=layout.bits,
        levels=2**output.bits - 1,
        unit=layout.unit,
        stride=layout.stride,
        truncate=output.truncate,
        out_axis=axis_of(output.scale, output.zero_point),
    )


def after_of(epilogue: Epilogue | None) -> After:
    """The tensors of an epilogue."""
    if epilogue is None:
        return After(None, None, None, None)
    addend = epilogue.addend
    return After(
        vector(epilogue.row_scale),
        None if addend is None else addend.contiguous(),
        None if addend is None else float(epilogue.addend_scale),
        vector(epilogue.bias),
    )


def out_of(data: Tensor, output: QParams | None) -> Out:
    """The tensors of a result."""
    if output is None:
        return Out(data, None, None, None)
    affine = affine_of(output.scale, output.zero_point)
    return Out(data, affine.scale, affine.zero, vector(output.skew))


def sources_of(matrix: PackedMatrix) -> tuple[Tensor, Rows]:
    """Packed rows and their layout."""
    return dense(matrix.data), rows_of(matrix.data.size(0), matrix.num_cols, matrix.bits)
