"""Which rows of a graph are computed together: bins of like degrees, and long rows in pieces.

No two programs add to one sum, so results do not depend on the order in which programs run, and
are the same every time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr.errors import BackendError
from torch_geometric_qlr.ops.triton.memo import Memo

__all__ = ["PIECE", "Bin", "LongRows", "Schedule", "schedule_of"]

#: Edges of the longest row that is computed whole.
PIECE = 2048
_BINS = (32, 128, 512, PIECE)
#: Rows whose degrees differ by less count as alike, and stay in their order.
_ALIKE = 8
_INT32 = 2**31 - 2**16


class Bin(NamedTuple):
    r"""Rows of like degrees, the longest first, or pieces of long rows in their order.

    Args:
        row (torch.Tensor): Which rows, or pieces.
        start (torch.Tensor): Their first edges.
        stop (torch.Tensor): The edges after their last ones.
        most (int): No row has more edges.
    """

    row: Tensor
    start: Tensor
    stop: Tensor
    most: int


class LongRows(NamedTuple):
    r"""Rows above :data:`PIECE` edges.

    Args:
        row (torch.Tensor): Which rows.
        start (torch.Tensor): Their first edges.
        stop (torch.Tensor): The edges after their last ones.
        first_piece (torch.Tensor): Where the pieces of each begin.
        pieces (Bin): All pieces.
    """

    row: Tensor
    start: Tensor
    stop: Tensor
    first_piece: Tensor
    pieces: Bin


class Schedule(NamedTuple):
    r"""All rows of a graph.

    Args:
        bins (tuple): Those that are computed whole.
        long (LongRows, optional): The others.
    """

    bins: tuple[Bin, ...]
    long: LongRows | None


_MEMO: Memo[Schedule] = Memo(most=256)


def schedule_of(rowptr: Tensor) -> Schedule:
    r"""The schedule of a graph. To make one waits for the device, once per graph.

    Args:
        rowptr (torch.Tensor): Where the edges of each row begin.

    Raises:
        BackendError: If there is none yet while a CUDA graph is captured.

    Example:
        >>> schedule = schedule_of(torch.tensor([0, 2, 2, 5]))
        >>> [(bin.row.tolist(), bin.stop.tolist()) for bin in schedule.bins]
        [([0, 2, 1], [2, 5, 2])]
    """
    return _MEMO.get(rowptr, "schedule", lambda: _schedule(rowptr))


def _schedule(rowptr: Tensor) -> Schedule:
    if rowptr.is_cuda and torch.cuda.is_current_stream_capturing():
        raise BackendError(
            "these edges are new, and what is made of them once cannot be captured in a CUDA "
            "graph. Run the model once before, with the same edges."
        )
    narrow = rowptr.numel() < _INT32 and int(rowptr[-1]) < _INT32
    dtype = torch.int32 if narrow else torch.int64
    start, stop = rowptr[:-1].to(dtype), rowptr[1:].to(dtype)
    degree, bins, low = stop - start, [], -1
    for most in _BINS:
        row = ((degree > low) & (degree <= most)).nonzero().view(-1)
        if row.numel():
            alike = (degree[row] + _ALIKE - 1) // _ALIKE
            row = row[torch.sort(alike, descending=True, stable=True).indices]
            bins.append(Bin(row.to(dtype), start[row], stop[row], most))
        low = most
    row = (degree > PIECE).nonzero().view(-1)
    long = _in_pieces(row, start[row], stop[row]) if row.numel() else None
    return Schedule(tuple(bins), long)


def _in_pieces(row: Tensor, start: Tensor, stop: Tensor) -> LongRows:
    count = (stop - start + PIECE - 1) // PIECE
    first = torch.nn.functional.pad(count.cumsum(0), (1, 0)).to(start.dtype)
    owner = torch.arange(row.numel(), device=row.device).repeat_interleave(count)
    number = torch.arange(owner.numel(), device=row.device, dtype=start.dtype)
    begin = start[owner] + (number - first[owner]) * PIECE
    end = torch.minimum(begin + PIECE, stop[owner])
    return LongRows(row.to(start.dtype), start, stop, first, Bin(number, begin, end, PIECE))
