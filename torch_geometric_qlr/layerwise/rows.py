"""The rows of all nodes between two layers: as the next layer reads them, in memory or in files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from torch_geometric_qlr.codes.chains import with_promise
from torch_geometric_qlr.codes.readings import Readings
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["FloatRows", "GivenRows", "Memory", "Rows", "keep", "readers_of"]

#: So many rows show who reads them.
_SHOWN = 256

#: Calls the layer that reads rows with some of them.
Reader = Callable[[Readings], Any]


class Rows(Protocol):
    """What a layer reads."""

    def select(self, nodes: Tensor, device: torch.device) -> Any:
        r"""The rows of some nodes, as a layer takes them.

        Args:
            nodes (torch.Tensor): Which.
            device (torch.device): Where they are wanted.
        """


class FloatRows:
    r"""Rows as floats.

    Args:
        values (torch.Tensor): All of them.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def select(self, nodes: Tensor, device: torch.device) -> Any:
        return self.values.index_select(0, nodes.to(self.values.device)).to(device)


class GivenRows:
    r"""Packed rows that a user has passed.

    Args:
        values (PackedTensor): All of them.
        as_codes (bool): Whether the model computes with the codes, or reads their values.
    """

    def __init__(self, values: PackedTensor, as_codes: bool) -> None:
        self.values, self.as_codes = values, as_codes

    def select(self, nodes: Tensor, device: torch.device) -> Any:
        rows = self.values.index_select(nodes.to(self.values.device)).to(device)
        return with_promise(rows) if self.as_codes else rows.dequantize()


class PackedRows:
    r"""Rows as the codes that each quantizer which reads them makes of them.

    Args:
        codes (dict): All of them, by the quantizer.
    """

    def __init__(self, codes: Mapping[Any, PackedTensor]) -> None:
        self.codes = codes

    def select(self, nodes: Tensor, device: torch.device) -> Any:
        kept = self.codes.items()
        rows = {q: x.index_select(nodes.to(x.device)).to(device) for q, x in kept}
        return with_promise(Readings(rows))


class Memory:
    r"""Where rows are kept.

    Args:
        folder (str or os.PathLike, optional): For files that are mapped, and gone with the rows;
            :obj:`None` for memory.
        device (torch.device): Which memory.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, device: torch.device) -> None:
        self.folder, self.device = folder, device

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        r"""Room for a tensor.

        Args:
            shape (tuple): Its shape.
            dtype (torch.dtype): Its type.
        """
        count = torch.Size(shape).numel()
        if self.folder is None or count == 0:
            return torch.empty(shape, dtype=dtype, device=self.device)
        handle, path = tempfile.mkstemp(prefix="rows-", dir=self.folder)
        os.close(handle)
        try:
            return torch.from_file(path, shared=True, size=count, dtype=dtype).view(shape)
        finally:
            os.unlink(path)  # what is mapped stays until nobody has it


def readers_of(rows: Tensor, read: Reader) -> list[Any]:
    r"""The quantizers that read a matrix, found by letting a layer read some of its rows.

    Args:
        rows (torch.Tensor): The rows.
        read (callable): Calls the layer.

    Returns:
        list: Empty if anything else reads it as well, which needs floats.
    """
    readings = Readings({}, rows)
    read(readings)
    return [] if readings.is_read else readings.readers


def keep(
    blocks: Iterator[tuple[int, Tensor]], num_rows: int, read: Reader | None, memory: Memory
) -> Rows:
    r"""Keeps rows that come block by block.

    Args:
        blocks (iterator): The number of the first row of each, and its floats.
        num_rows (int): Number of all rows.
        read (callable, optional): What will read them, see :func:`readers_of`.
        memory (Memory): Where to keep them.
    """
    start, block = next(blocks)
    readers = [] if read is None or len(block) == 0 else readers_of(block[:_SHOWN], read)
    if not readers:
        floats = memory.empty((num_rows, *block.shape[1:]), block.dtype)
        floats[start : start + len(block)] = block
        for start, block in blocks:
            floats[start : start + len(block)] = block
        return FloatRows(floats)
    codes = {quantizer: _room(quantizer.pack(block[:1]), num_rows, memory) for quantizer in readers}
    _fill(codes, start, block)
    for start, block in blocks:
        _fill(codes, start, block)
    return PackedRows(codes)


def _room(first: PackedTensor, num_rows: int, memory: Memory) -> PackedTensor:
    """Room for the codes of all rows that are made like the first ones."""

    def numbers(own: Tensor) -> Tensor:
        by_row = own.dim() == 2 and own.size(0) == len(first) and own.size(1) == 1
        return memory.empty((num_rows, 1), own.dtype) if by_row else own.clone().to(memory.device)

    data = memory.empty((num_rows, first.stride), first.data.dtype)
    scale, zero_point = numbers(first.scale), numbers(first.zero_point)
    return PackedTensor.unchecked(data, first.num_cols, first.bits, scale, zero_point)


def _fill(codes: Mapping[Any, PackedTensor], start: int, block: Tensor) -> None:
    for quantizer, kept in codes.items():
        packed = quantizer.pack(block)
        end = start + len(block)
        kept.data[start:end] = packed.data
        for own, new in ((kept.scale, packed.scale), (kept.zero_point, packed.zero_point)):
            if own.dim() == 2 and own.size(0) == len(kept):
                own[start:end] = new
