"""What the ops take: checked once per call, before any back end sees an argument.

Kernels read raw memory and the reference indexes with what it is given, so whatever decides about
an address is checked here: sizes, signs, dtypes, devices, names. Sizes that are symbolic while a
model is traced are compared when the op runs. Values of tensors are looked at on a CPU only, by
:func:`check_values` for the reference; the kernels look at them while they read them anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from torch_geometric_qlr.errors import ConfigError, InputError
from torch_geometric_qlr.ops.layout import row_layout, storage_bits

__all__ = [
    "BAD_INDEX",
    "BAD_ROWPTR",
    "PROJECTIONS",
    "Check",
    "NotFinite",
    "Refused",
    "check_arguments",
    "check_values",
    "code_too_large",
    "place_not_finite",
]

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
_INDICES = frozenset({torch.int32, torch.int64})
_BYTES = frozenset({torch.uint8})
#: Columns are numbered with 32 bits, with room for what is computed of the numbers.
_MAX_COLUMNS = 2**31 - 2**16

PROJECTIONS = {"none": 0, "nonnegative": 1, "nonpositive": -1}

BAD_ROWPTR = "rowptr must ascend from 0 to the number of edges"
BAD_INDEX = (
    "an index is out of range: every col (or row index) must be at least 0 and below the number of "
    "source rows"
)
NOT_FINITE = (
    "the value to quantize holds NaN or Inf, which have no code. Find the layer, weight or feature "
    "that they come from, or clean them with torch.nan_to_num"
)


class Refused(Exception):
    """What an implementation found wrong with the values of its arguments. The entry of the ops
    makes it an error with the name of the op."""


class NotFinite(Refused):
    """A value that was to become a code is NaN or infinite."""

    def __init__(self) -> None:
        super().__init__(NOT_FINITE)


def _differ(a: Any, b: Any) -> bool:
    """Whether two sizes are not the same, as far as that is known."""
    return type(a) is int and type(b) is int and a != b


def _is(a: Any, b: int) -> bool:
    """Whether a size is known to be this."""
    return type(a) is int and a == b


def _fits(shape: torch.Size, *allowed: tuple[Any, ...]) -> bool:
    """Whether a shape is one of several."""
    return any(
        len(shape) == len(other) and not any(map(_differ, shape, other)) for other in allowed
    )


class Check:
    """What can be wrong with arguments; `where` is who was called with them."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, problem: str) -> NoReturn:
        raise InputError(f"{self.where}: {problem}")

    def dtype(self, name: str, tensor: Tensor, dtypes: frozenset[torch.dtype], kind: str) -> None:
        if tensor.dtype not in dtypes:
            self.fail(f"{name} is {tensor.dtype}, it must be {kind}")

    def place(self, arguments: Mapping[str, Any]) -> None:
        """All tensors are dense and on one device."""
        device: torch.device | None = None
        for name, tensor in arguments.items():
            if not isinstance(tensor, Tensor):
                continue
            if tensor.layout != torch.strided or tensor.is_quantized:
                self.fail(f"{name} is {tensor.layout}, it must be a dense tensor")
            if device is not None and tensor.device != device:
                self.fail(
                    f"{name} is on {tensor.device}, the other tensors on {device}; move them to "
                    f"one device"
                )
            device = tensor.device

    def matrix(self, name: str, x: Tensor, dtypes: frozenset[torch.dtype], kind: str) -> None:
        self.dtype(name, x, dtypes, kind)
        if x.dim() != 2:
            self.fail(f"{name} must be a matrix [N, F], got shape {list(x.shape)}")

    def numbers(self, name: str, tensor: Tensor | None, numel: Any) -> None:
        """An optional tensor of this many real numbers."""
        if tensor is None:
            return
        self.dtype(name, tensor, FLOATS | _INTEGERS, "of real numbers")
        if _differ(tensor.numel(), numel):
            self.fail(
                f"{name} has {tensor.numel()} elements (shape {list(tensor.shape)}), expected "
                f"{numel}"
            )

    def params(self, scale: Tensor, zero: Tensor, rows: Any, cols: Any, prefix: str = "") -> None:
        """A scale and a zero point per tensor, row or column, that agree with each other."""
        names = f"{prefix}scale", f"{prefix}zero_point"
        for name, param in zip(names, (scale, zero), strict=True):
            single = _is(param.numel(), 1) and param.dim() <= 2
            if not single and not _fits(param.shape, (rows, 1), (1, cols)):
                self.fail(
                    f"{name} has shape {list(param.shape)}; for [{rows}, {cols}] values it is [] "
                    f"per tensor, [{rows}, 1] per row or [1, {cols}] per column"
                )
            self.dtype(name, param, FLOATS, "floating point")
        shared = _is(scale.numel(), 1) or _is(zero.numel(), 1)
        if not shared and not _fits(scale.shape, tuple(zero.shape)):
            self.fail(
                f"{names[0]} of shape {list(scale.shape)} and {names[1]} of shape "
                f"{list(zero.shape)} run along different dimensions"
            )

    def columns(self, num_cols: Any) -> None:
        if isinstance(num_cols, torch.SymInt):
            return
        if type(num_cols) is not int or not 0 <= num_cols <= _MAX_COLUMNS:
            self.fail(f"num_cols must be an integer from 0 to {_MAX_COLUMNS}, got {num_cols!r}")

    def packed_rows(self, data: Tensor, num_cols: Any, bits: int, name: str = "packed") -> None:
        """The tensor is what the layout of this many codes needs."""
        self.columns(num_cols)
        stride = row_layout(num_cols, bits).stride
        if data.dtype != torch.uint8 or data.dim() != 2 or _differ(data.size(1), stride):
            self.fail(
                f"{name} must be uint8 of shape [N, {stride}] for {num_cols} columns at {bits} "
                f"bits, got {data.dtype} of shape {list(data.shape)}"
            )

    def packed(
        self, data: Tensor, num_cols: Any, bits: int, scale: Tensor, zero: Tensor, prefix: str = ""
    ) -> None:
        self.packed_rows(data, num_cols, bits, prefix.rstrip("_") or "packed")
        self.params(scale, zero, data.size(0), num_cols, prefix)

    def skew(self, name: str, skew: Tensor | None, numel: Any = 1) -> None:
        if skew is not None:
            self.numbers(name, skew, numel)

    def output(
        self,
        rows: Any,
        cols: Any,
        out_scale: Tensor | None = None,
        out_zero_point: Tensor | None = None,
        out_bits: int = 8,
        out_skew: Tensor | None = None,
        **_: Any,
    ) -> None:
        """How a result is quantized, if it is."""
        if out_scale is None:
            return
        storage_bits(out_bits)
        if out_zero_point is None:
            self.fail("out_scale needs an out_zero_point")
        self.params(out_scale, out_zero_point, rows, cols, "out_")
        self.skew("out_skew", out_skew)

    def graph(self, rowptr: Tensor, col: Tensor) -> None:
        for name, index in (("rowptr", rowptr), ("col", col)):
            self.dtype(name, index, _INDICES, "int32 or int64")
        if rowptr.dim() != 1 or _is(rowptr.numel(), 0) or col.dim() != 1:
            self.fail(
                f"rowptr and col are vectors and rowptr has at least one entry, got shapes "
                f"{list(rowptr.shape)} and {list(col.shape)}"
            )

    def square(self, rowptr: Tensor, rows: Any, because: str) -> None:
        if _differ(rowptr.size(0) - 1, rows):
            self.fail(f"{rows} rows are sent to {rowptr.size(0) - 1} nodes; {because}")

    def steps(self, scale: Tensor, zero: Tensor, bits: int, skew: Tensor | None) -> None:
        """Quantizers per tensor, as vectors of their numbers."""
        storage_bits(bits)
        vectors = {"step_scale": scale, "step_zero_point": zero}
        vectors |= {} if skew is None else {"step_skew": skew}
        if scale.dim() != 1 or not all(
            _fits(v.shape, tuple(scale.shape)) for v in vectors.values()
        ):
            shapes = ", ".join(f"{name} {list(v.shape)}" for name, v in vectors.items())
            self.fail(f"{', '.join(vectors)} are vectors of one length, got {shapes}")
        for name, vector in vectors.items():
            self.dtype(name, vector, FLOATS, "floating point")


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
    check.params(scale, zero_point, x.size(0), x.size(1))
    check.skew("skew", skew)


def _pack(check: Check, codes: Tensor, bits: int) -> None:
    check.matrix("codes", codes, _BYTES, "uint8")
    check.columns(codes.size(1))
    row_layout(codes.size(1), bits)


def _unpack(check: Check, packed: Tensor, num_cols: Any, bits: int) -> None:
    check.packed_rows(packed, num_cols, bits)


def _dequantize_packed(
    check: Check, packed: Tensor, num_cols: Any, bits: int, scale: Tensor, zero_point: Tensor
) -> None:
    check.packed(packed, num_cols, bits, scale, zero_point)


def _index_select(check: Check, packed: Tensor, index: Tensor) -> None:
    check.matrix("packed", packed, _BYTES, "uint8")
    check.dtype("index", index, _INDICES, "int32 or int64 (of a mask: mask.nonzero())")
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
        if not _fits(addend.shape, (rows, cols)):
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
    if _differ(heads and num_cols % heads, 0) or heads == 0 or _differ(alpha.size(0), col.size(0)):
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
    check.matrix("x", x, FLOATS | _INTEGERS, "of real numbers")
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
    elif not (_is(scale.numel(), 1) and _is(zero_point.numel(), 1)):
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
        if not _fits(tensor.shape, tuple(x.shape)):
            check.fail(f"{name} has shape {list(tensor.shape)}, x has {list(x.shape)}")
    if axis not in (-1, 0, 1) or (axis != -1 and x.dim() != 2):
        check.fail(
            f"axis is -1 (one range), or 0 (per row) or 1 (per column) of a matrix; got {axis} for "
            f"x of shape {list(x.shape)}"
        )


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
    "fake_quantize": _fake_quantize,
    "fake_quantize_backward": _fake_quantize_backward,
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


def code_too_large(codes: Tensor, bits: int) -> str:
    r"""That codes spill, and into what.

    Example:
        >>> code_too_large(torch.tensor([[7]], dtype=torch.uint8), 2)[:30]
        'code 7 does not fit into 2 bit'
    """
    return (
        f"code {int(codes.max())} does not fit into {bits} bits; choose more bits, or clamp codes"
    )


def place_not_finite(x: Tensor) -> str:
    r"""Where the first NaN or Inf of a matrix is.

    Example:
        >>> place_not_finite(torch.tensor([[0.0, torch.inf]]))[:14]
        'x[0, 1] is inf'
    """
    row, column = (int(i) for i in torch.isfinite(x).logical_not().nonzero()[0])
    return f"x[{row}, {column}] is {x[row, column].item()}; {NOT_FINITE}"
