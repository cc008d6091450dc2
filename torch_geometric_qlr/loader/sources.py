"""Where features come from when they are packed: one batch of rows after the other, as float32."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_geometric_qlr.errors import InputError

__all__ = ["Source", "source_of"]

#: Batches have at most so many bytes as float32, however large what is read is.
_BATCH_BYTES = 1 << 24


class Source(ABC):
    r"""Rows of features.

    Attributes:
        num_cols (int): Columns.
        num_rows (int, optional): Rows, if that is known before they are read.
        repeats (bool): Whether they can be read more than once.
    """

    num_cols: int
    num_rows: int | None = None
    repeats = True

    @abstractmethod
    def parts(self) -> Iterator[Any]:
        """The rows, in parts of any size."""

    @property
    def batch_rows(self) -> int:
        """Rows that fit into a batch."""
        return max(1, _BATCH_BYTES // max(1, 4 * self.num_cols))

    def batches(self) -> Iterator[Tensor]:
        """The rows as float32 matrices of limited size, with memory of their own."""
        at = 0
        for part in self.parts():
            if len(part.shape) != 2 or part.shape[1] != self.num_cols:
                raise InputError(
                    f"features: the rows from {at} on have shape {list(part.shape)}, the ones "
                    f"before {self.num_cols} columns"
                )
            for start in range(0, part.shape[0], self.batch_rows):  # nothing of an empty part
                yield _floats(part[start : start + self.batch_rows])
            at += part.shape[0]


class _Matrix(Source):
    """A tensor or an array, perhaps one that is mapped from a file."""

    def __init__(self, matrix: Any) -> None:
        _check_matrix(matrix)
        self.matrix = matrix
        self.num_rows, self.num_cols = (int(size) for size in matrix.shape)

    def parts(self) -> Iterator[Any]:
        for start in range(0, self.matrix.shape[0], self.batch_rows):
            yield self.matrix[start : start + self.batch_rows]


class _Arrow(Source):
    """A table or an array of Arrow, through its own methods: a number, or a list of them of fixed
    length, in each column."""

    def __init__(self, columns: list[Any], num_rows: int) -> None:
        self.columns, self.num_rows = columns, num_rows
        self.num_cols = sum(_arrow_width(column.type) for column in columns)

    def _rows(self, start: int, count: int) -> Any:
        values = [_of_arrow(column.slice(start, count)) for column in self.columns]
        return np.concatenate(values, axis=1) if values else np.empty((0, 0), np.float32)

    def parts(self) -> Iterator[Any]:
        assert self.num_rows is not None
        for start in range(0, self.num_rows, self.batch_rows):
            yield self._rows(start, self.batch_rows)


class _Batches(Source):
    """Anything that can be iterated over, such as a loader or a generator."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.repeats = not isinstance(batches, Iterator)
        self._batches, self._ahead = batches, iter(batches)
        self._first = next(self._ahead, None)
        if self._first is None:
            raise InputError("features: there is no batch, so the number of columns is unknown")
        _check_matrix(self._first)
        self.num_cols = int(self._first.shape[1])

    def parts(self) -> Iterator[Any]:
        if self._first is None:
            self._ahead = iter(self._batches)
        else:
            yield self._first
            self._first = None
        for batch in self._ahead:
            _check_matrix(batch)
            yield batch


def source_of(x: Any) -> Source:
    r"""The rows of whatever holds features.

    Args:
        x (Any): A tensor, an array of NumPy, in memory or mapped, the path of a ``.npy``, a table
            or array of Arrow, or an iterable of batches of rows.

    Raises:
        InputError: If it is none of these, or holds something else than floats in two dimensions.
    """
    if isinstance(x, (Tensor, np.ndarray)):
        return _Matrix(x)
    if isinstance(x, (str, os.PathLike)):
        return _Matrix(_npy(os.fspath(x)))
    if type(x).__module__.partition(".")[0] == "pyarrow":
        is_table = hasattr(x, "columns") and hasattr(x, "num_rows")
        return _Arrow(list(x.columns) if is_table else [x], x.num_rows if is_table else len(x))
    if isinstance(x, Iterable):
        return _Batches(x)
    raise InputError(
        f"features: {type(x).__name__} holds no rows. Pass a tensor, a NumPy array or memmap, the "
        f"path of a .npy file, an Arrow table, or an iterable of batches of rows."
    )


def _check_matrix(x: Any) -> None:
    if not isinstance(x, (Tensor, np.ndarray)):
        raise InputError(f"features: a batch is {type(x).__name__}, not a tensor or array")
    if isinstance(x, Tensor) and x.layout != torch.strided:
        raise InputError(f"features: the matrix has layout {x.layout}; pass it as x.to_dense()")
    if len(x.shape) != 2:
        raise InputError(f"features are a matrix [N, F], got shape {list(x.shape)}")
    floating = x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind == "f"
    if not floating:
        raise InputError(f"features are {x.dtype}, not floating point: cast them to float32")


def _npy(path: str) -> np.ndarray:
    if not path.endswith(".npy"):
        raise InputError(f"features: {path} is no .npy file; save it with numpy.save(path, x)")
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"features: {path} cannot be read as .npy: {error}") from error
    return mapped


def _of_arrow(values: Any) -> np.ndarray:
    """A piece of a column as a matrix, one row for each entry."""
    chunks = getattr(values, "chunks", [values])
    width = _arrow_width(values.type)
    parts = [np.empty((0, width), np.float32)]
    for chunk in chunks:
        flat = chunk.flatten() if _is_list(chunk.type) else chunk
        if str(flat.type) not in ("halffloat", "float", "double"):
            raise InputError(f"features: a column is {chunk.type}, not of floating point numbers")
        if chunk.null_count or flat.null_count:
            raise InputError("features: a column has entries that are null; fill them first")
        parts.append(flat.to_numpy(zero_copy_only=False).reshape(len(chunk), width))
    joined: np.ndarray = np.concatenate(parts)
    return joined


def _is_list(kind: Any) -> bool:
    return hasattr(kind, "list_size")


def _arrow_width(kind: Any) -> int:
    return int(kind.list_size) if _is_list(kind) else 1


def _floats(part: Any) -> Tensor:
    if isinstance(part, Tensor):
        return part.detach().cpu().float()
    return torch.from_numpy(np.array(part, dtype=np.float32))
