"""What each op takes: checked once per call, before any back end sees an argument.

Kernels read raw memory and the reference indexes with what it is given, so whatever decides about
an address is checked here: sizes, signs, dtypes, devices, names. Values of tensors are looked at on
a CPU only, by :func:`check_values` for the reference; the kernels look at them while they read them
anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.ops import compressed_rows, observed, row_ranges
from torch_geometric_qlr.ops.checks import (
    BAD_INDEX,
    BAD_ROWPTR,
    BYTES,
    FLOATS,
    INDICES,
    INTEGERS,
    PROJECTIONS,
    Check,
    Refused,
    differ,
    fits,
    known_to_be,
)
from torch_geometric_qlr.ops.layout import row_layout, storage_bits

__all__ = ["check_arguments", "check_values"]


def _quantize_pack(
    check: Check,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    skew: Tensor | None = None,
    **_: Any,
) -> None:
    storage_bits(bits)
    check.matrix("x", x, FLOATS, "floating point")
    check.columns(x.size(1))
    check.params(scale, zero_point, x.size(0), x.size(1))
    check.skew("skew", skew)


def _pack(check: Check, codes: Tensor, bits: int) -> None:
    check.matrix("codes", codes, BYTES, "uint8")
    check.columns(codes.size(1))
    row_layout(codes.size(1), bits)


def _unpack(check: Check, packed: Tensor, num_cols: Any, bits: int) -> None:
    check.packed_rows(packed, num_cols, bits)


def _dequantize_packed(
    check: Check, packed: Tensor, num_cols: Any, bits: int, scale: Tensor, zero_point: Tensor
) -> None:
    check.packed(packed, num_cols, bits, scale, zero_point)


def _index_select(check: Check, packed: Tensor, index: Tensor) -> None:
    check.matrix("packed", packed, BYTES, "uint8")
    check.dtype("index", index, INDICES, "int32 or int64 (of a mask: mask.nonzero())")
    if index.dim() != 1:
        check.fail(f"index must be a vector, got shape {list(index.shape)}")


def _weights(
    check: Check,
    edges: Any,
    sources: Any,
    rows: Any,
    cols: Any,
    edge_weight: Tensor | None = None,
    source_weight: Tensor | None = None,
    row_scale: Tensor | None = None,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    reduce: str = "sum",
    **_: Any,
) -> None:
    check.numbers("edge_weight", edge_weight, edges)
    check.numbers("source_weight", source_weight, sources)
    check.numbers("row_scale", row_scale, rows)
    check.numbers("bias", bias, cols)
    if addend is not None:
        check.numbers("addend", addend, addend.numel())
        if not fits(addend.shape, (rows, cols)):
            check.fail(f"addend has shape {list(addend.shape)}, expected [{rows}, {cols}]")
    if reduce not in ("sum", "mean"):
        raise ConfigError(f"{check.where}: reduce must be 'sum' or 'mean', got {reduce!r}")


def _packed_spmm(
    check: Check,
    rowptr: Tensor,
    col: Tensor,
    packed: Tensor,
    num_cols: Any,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    **options: Any,
) -> None:
    check.packed(packed, num_cols, bits, scale, zero_point)
    check.graph(rowptr, col)
    rows = rowptr.size(0) - 1
    _weights(check, col.size(0), packed.size(0), rows, num_cols, **options)
    check.output(rows, num_cols, **options)


def _packed_propagate(
    check: Check,
    rowptr: Tensor,
    col: Tensor,
    packed: Tensor,
    num_cols: Any,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    step_scale: Tensor,
    step_zero_point: Tensor,
    step_bits: int,
    step_skew: Tensor | None = None,
    **options: Any,
) -> None:
    _packed_spmm(check, rowptr, col, packed, num_cols, bits, scale, zero_point, **options)
    check.steps(step_scale, step_zero_point, step_bits, step_skew)
    check.square(rowptr, packed.size(0), "hops that follow each other need a square adjacency")


def _packed_smp(
    check: Check,
    rowptr: Tensor,
    col: Tensor,
    x: Tensor,
    step_scale: Tensor,
    step_zero_point: Tensor,
    step_bits: int,
    step_skew: Tensor | None = None,
    edge_weight: Tensor | None = None,
    primal: str = "paper",
    projection: str = "none",
    **_: Any,
) -> None:
    check.matrix("x", x, FLOATS, "floating point")
    check.columns(x.size(1))
    check.graph(rowptr, col)
    check.numbers("edge_weight", edge_weight, col.size(0))
    check.steps(step_scale, step_zero_point, step_bits, step_skew)
    needs = "it needs a square adjacency and two quantizers per step"
    check.square(rowptr, x.size(0), needs)
    if type(step_scale.size(0)) is int and step_scale.size(0) % 2:
        check.fail(f"there are {step_scale.size(0)} quantizers; {needs}")
    if primal not in ("paper", "lagrangian") or projection not in PROJECTIONS:
        raise ConfigError(
            f"{check.where}: no primal {primal!r} with projection {projection!r}; primal is "
            f"'paper' or 'lagrangian', projection one of {', '.join(PROJECTIONS)}"
        )


def _packed_extremum(
    check: Check,
    rowptr: Tensor,
    col: Tensor,
    packed: Tensor,
    num_cols: Any,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    **_: Any,
) -> None:
    check.packed(packed, num_cols, bits, scale, zero_point)
    check.graph(rowptr, col)


def _packed_attention(
    check: Check,
    rowptr: Tensor,
    col: Tensor,
    packed: Tensor,
    num_cols: Any,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    alpha: Tensor,
    **options: Any,
) -> None:
    _packed_spmm(check, rowptr, col, packed, num_cols, bits, scale, zero_point, **options)
    check.numbers("alpha", alpha, alpha.numel())
    heads = alpha.size(1) if alpha.dim() == 2 else 0
    if differ(heads and num_cols % heads, 0) or heads == 0 or differ(alpha.size(0), col.size(0)):
        check.fail(
            f"alpha has shape {list(alpha.shape)}, expected [E, H] with E = {col.size(0)} edges "
            f"and H a divisor of the {num_cols} columns"
        )


def _packed_linear(
    check: Check,
    packed: Tensor,
    num_cols: Any,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    weight_bits: int,
    weight_scale: Tensor,
    weight_zero_point: Tensor,
    bias: Tensor | None = None,
    **options: Any,
) -> None:
    check.packed(packed, num_cols, bits, scale, zero_point)
    check.packed(weight, num_cols, weight_bits, weight_scale, weight_zero_point, "weight_")
    check.numbers("bias", bias, weight.size(0))
    check.output(packed.size(0), weight.size(0), **options)


def _spmm(check: Check, rowptr: Tensor, col: Tensor, x: Tensor, **options: Any) -> None:
    check.matrix("x", x, FLOATS | INTEGERS, "of real numbers")
    check.columns(x.size(1))
    check.graph(rowptr, col)
    _weights(check, col.size(0), x.size(0), rowptr.size(0) - 1, x.size(1), **options)


def _fake_quantize(
    check: Check,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    skew: Tensor | None = None,
    **_: Any,
) -> None:
    storage_bits(bits)
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
    check.skew("skew", skew)


def _fake_quantize_backward(
    check: Check, grad: Tensor, x: Tensor, x_hat: Tensor, mask: Tensor, axis: int = -1
) -> None:
    for name, tensor in (("grad", grad), ("x", x), ("x_hat", x_hat)):
        check.dtype(name, tensor, FLOATS, "floating point")
    check.dtype("mask", mask, frozenset({torch.bool}), "bool")
    for name, tensor in (("grad", grad), ("x_hat", x_hat), ("mask", mask)):
        if not fits(tensor.shape, tuple(x.shape)):
            check.fail(f"{name} has shape {list(tensor.shape)}, x has {list(x.shape)}")
    check.axis(axis, x)


def _observed_quantize_backward(
    check: Check,
    grad: Tensor,
    x: Tensor,
    x_hat: Tensor,
    mask: Tensor,
    scale: Tensor,
    own_scale: Tensor,
    **_: Any,
) -> None:
    _fake_quantize_backward(check, grad, x, x_hat, mask)
    _fake_quantize(check, x, scale, own_scale, 8)
    if not fits(own_scale.shape, tuple(scale.shape)):
        check.fail(f"own_scale has shape {list(own_scale.shape)}, scale has {list(scale.shape)}")


_CHECKS: dict[str, Callable[..., None]] = {
    "quantize_pack": _quantize_pack,
    "pack": _pack,
    "unpack": _unpack,
    "dequantize_packed": _dequantize_packed,
    "index_select": _index_select,
    "packed_spmm": _packed_spmm,
    "packed_propagate": _packed_propagate,
    "packed_smp": _packed_smp,
    "packed_extremum": _packed_extremum,
    "packed_attention": _packed_attention,
    "packed_linear": _packed_linear,
    "spmm": _spmm,
    "quantize_rows": row_ranges.check,
    "csr": compressed_rows.check,
    "fake_quantize": _fake_quantize,
    "fake_quantize_backward": _fake_quantize_backward,
    "observed_quantize": observed.check,
    "observed_quantize_backward": _observed_quantize_backward,
}


def check_arguments(op: str, arguments: Mapping[str, Any], tensors: Iterable[str] = ()) -> None:
    r"""Raises if an op cannot take these arguments, whatever their values are.

    Args:
        op (str): Its name.
        arguments (dict): What it is called with, by name.
        tensors (list): Those that must be tensors: the dispatcher takes :obj:`None` for any.

    Raises:
        InputError: If a tensor has the wrong dtype, shape, layout or device.
        ConfigError: If a width or a name is none.

    Example:
        >>> check_arguments("pack", {"codes": torch.zeros(2, 3, dtype=torch.uint8), "bits": 4})
    """
    check = Check(f"torch.ops.qlr.{op}")
    for name in tensors:
        if arguments[name] is None:
            check.fail(f"{name} is None, it must be a tensor")
    check.place(arguments)
    _CHECKS[op](check, **arguments)


def check_values(arguments: Mapping[str, Any]) -> None:
    r"""Raises if an index of these arguments, which are on a CPU, leads out of memory.

    Raises:
        Refused: With the reason.

    Example:
        >>> rowptr, col = torch.tensor([0, 2]), torch.tensor([0, 1])
        >>> check_values({"rowptr": rowptr, "col": col, "x": torch.zeros(2, 3)})
    """
    rowptr, index = arguments.get("rowptr"), arguments.get("col", arguments.get("index"))
    if rowptr is not None:
        last = int(rowptr[-1])
        if int(rowptr[0]) != 0 or last != arguments["col"].numel() or (rowptr.diff() < 0).any():
            raise Refused(BAD_ROWPTR)
    if index is not None and index.numel():
        rows = arguments.get("packed", arguments.get("x")).size(0)
        if int(index.min()) < 0 or int(index.max()) >= rows:
            raise Refused(BAD_INDEX)
