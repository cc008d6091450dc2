"""What can be wrong with the arguments of an op, each with the words to say it.

Kernels read raw memory and the reference indexes with what it is given, so whatever decides about
an address is checked: sizes, signs, dtypes, devices, names. Values of tensors are looked at on a
CPU only, by :func:`check_values` for what Python computes; the C++ kernels look at them while they
read them anyway.

Sizes that are symbolic while a model is traced are compared when the op runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from torch_geometric_qlr.errors import ConfigError, InputError
from torch_geometric_qlr.ops.groups import (
    Epilogue,
    Graph,
    PackedMatrix,
    QParams,
    Steps,
    Weights,
)
from torch_geometric_qlr.ops.layout import row_layout, storage_bits

__all__ = [
    "BAD_INDEX",
    "BAD_ROWPTR",
    "BYTES",
    "FLOATS",
    "INDICES",
    "INTEGERS",
    "Check",
    "NOT_FINITE",
    "NotFinite",
    "Refused",
    "check_values",
    "code_too_large",
    "differ",
    "finite",
    "fits",
    "known_to_be",
    "out_of_range",
    "place_not_finite",
]

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
INDICES = frozenset({torch.int32, torch.int64})
BYTES = frozenset({torch.uint8})
#: Columns are numbered with 32 bits, with room for what is computed of the numbers.
_MAX_COLUMNS = 2**31 - 2**16

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


def differ(a: Any, b: Any) -> bool:
    """Whether two sizes are not the same, as far as that is known."""
    return type(a) is int and type(b) is int and a != b


def known_to_be(a: Any, b: int) -> bool:
    """Whether a size is known to be this."""
    return type(a) is int and a == b


def fits(shape: torch.Size, *allowed: tuple[Any, ...]) -> bool:
    """Whether a shape is one of several."""
    return any(len(shape) == len(other) and not any(map(differ, shape, other)) for other in allowed)


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
        self.dtype(name, tensor, FLOATS | INTEGERS, "of real numbers")
        if differ(tensor.numel(), numel):
            self.fail(
                f"{name} has {tensor.numel()} elements (shape {list(tensor.shape)}), expected "
                f"{numel}"
            )

    def params(self, scale: Tensor, zero: Tensor, rows: Any, cols: Any, prefix: str = "") -> None:
        """A scale and a zero point per tensor, row or column, that agree with each other."""
        names = f"{prefix}scale", f"{prefix}zero_point"
        for name, param in zip(names, (scale, zero), strict=True):
            single = known_to_be(param.numel(), 1) and param.dim() <= 2
            if not single and not fits(param.shape, (rows, 1), (1, cols)):
                self.fail(
                    f"{name} has shape {list(param.shape)}; for [{rows}, {cols}] values it is [] "
                    f"per tensor, [{rows}, 1] per row or [1, {cols}] per column"
                )
            self.dtype(name, param, FLOATS, "floating point")
        shared = known_to_be(scale.numel(), 1) or known_to_be(zero.numel(), 1)
        if not shared and not fits(scale.shape, tuple(zero.shape)):
            self.fail(
                f"{names[0]} of shape {list(scale.shape)} and {names[1]} of shape "
                f"{list(zero.shape)} run along different dimensions"
            )

    def axis(self, axis: int, x: Tensor) -> None:
        """What ranges of a tensor run along."""
        if axis not in (-1, 0, 1) or (axis != -1 and x.dim() != 2):
            self.fail(
                f"axis is -1 (one range), or 0 (per row) or 1 (per column) of a matrix; got {axis} "
                f"for x of shape {list(x.shape)}"
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
        if data.dtype != torch.uint8 or data.dim() != 2 or differ(data.size(1), stride):
            self.fail(
                f"{name} must be uint8 of shape [N, {stride}] for {num_cols} columns at {bits} "
                f"bits, got {data.dtype} of shape {list(data.shape)}"
            )

    def packed(self, matrix: PackedMatrix, prefix: str = "") -> None:
        data, num_cols, bits, scale, zero = matrix
        self.packed_rows(data, num_cols, bits, prefix.rstrip("_") or "packed")
        self.params(scale, zero, data.size(0), num_cols, prefix)

    def skew(self, name: str, skew: Tensor | None, numel: Any = 1) -> None:
        if skew is not None:
            self.numbers(name, skew, numel)

    def weights(self, weights: Weights, edges: Any, sources: Any) -> None:
        self.numbers("edge_weight", weights.edge_weight, edges)
        self.numbers("source_weight", weights.source_weight, sources)

    def epilogue(self, after: Epilogue, rows: Any, cols: Any) -> None:
        self.numbers("row_scale", after.row_scale, rows)
        self.numbers("bias", after.bias, cols)
        if after.addend is not None:
            self.numbers("addend", after.addend, after.addend.numel())
            if not fits(after.addend.shape, (rows, cols)):
                shape = list(after.addend.shape)
                self.fail(f"addend has shape {shape}, expected [{rows}, {cols}]")
        if after.reduce not in ("sum", "mean"):
            raise ConfigError(f"{self.where}: reduce must be 'sum' or 'mean', got {after.reduce!r}")

    def output(self, output: QParams | None, rows: Any, cols: Any) -> None:
        """How a result is quantized, if it is."""
        if output is None:
            return
        storage_bits(output.bits)
        if output.zero_point is None:
            self.fail("out_scale needs an out_zero_point")
        self.params(output.scale, output.zero_point, rows, cols, "out_")
        self.skew("out_skew", output.skew)

    def graph(self, graph: Graph) -> None:
        rowptr, col = graph
        for name, index in (("rowptr", rowptr), ("col", col)):
            self.dtype(name, index, INDICES, "int32 or int64")
        if rowptr.dim() != 1 or known_to_be(rowptr.numel(), 0) or col.dim() != 1:
            self.fail(
                f"rowptr and col are vectors and rowptr has at least one entry, got shapes "
                f"{list(rowptr.shape)} and {list(col.shape)}"
            )

    def square(self, graph: Graph, rows: Any, because: str) -> None:
        if differ(graph.num_rows, rows):
            self.fail(f"{rows} rows are sent to {graph.num_rows} nodes; {because}")

    def steps(self, steps: Steps) -> None:
        """Quantizers per tensor, as vectors of their numbers."""
        storage_bits(steps.bits)
        scale = steps.scale
        vectors = {"step_scale": scale, "step_zero_point": steps.zero_point}
        vectors |= {} if steps.skew is None else {"step_skew": steps.skew}
        if scale.dim() != 1 or not all(fits(v.shape, tuple(scale.shape)) for v in vectors.values()):
            shapes = ", ".join(f"{name} {list(v.shape)}" for name, v in vectors.items())
            self.fail(f"{', '.join(vectors)} are vectors of one length, got {shapes}")
        for name, vector in vectors.items():
            self.dtype(name, vector, FLOATS, "floating point")


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
    if index is None or not index.numel():
        return
    matrix, weight = arguments.get("packed", arguments.get("x")), arguments.get("source_weight")
    if matrix is not None:
        rows = matrix.size(0)
    elif weight is not None:
        rows = weight.numel()
    else:
        return  # sources that are not read
    if int(index.min()) < 0 or int(index.max()) >= rows:
        raise Refused(BAD_INDEX)


def finite(x: Tensor) -> Tensor:
    r"""What is to be quantized. On another device than a CPU a look at it would make the host wait:
    there a NaN gets code 0, and an infinity the code at its end of the range.

    Raises:
        NotFinite: On a CPU, if there is a NaN or an infinity.

    Example:
        >>> finite(torch.ones(2))
        tensor([1., 1.])
    """
    if x.device.type == "cpu" and not bool(x.isfinite().all()):
        raise NotFinite
    return x


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


def out_of_range(name: str, nodes: Tensor, count: int) -> str:
    r"""What is wrong with the nodes at one end of the edges, if some of them are not there.

    Args:
        name (str): The end.
        nodes (torch.Tensor): Indices :math:`[E]`.
        count (int): How many nodes there are.

    Example:
        >>> out_of_range("source", torch.tensor([0, 7]), 4)[:45]
        'edge_index names source nodes from 0 to 7, bu'
    """
    if not nodes.numel():
        return ""
    low, high = (int(bound) for bound in nodes.aminmax())
    if 0 <= low and high < count:
        return ""
    return (
        f"edge_index names {name} nodes from {low} to {high}, but there are {count}. Check the "
        f"number of rows of x, or reindex the edges"
    )
