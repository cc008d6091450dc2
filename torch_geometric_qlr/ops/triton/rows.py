"""Launches for all rows of a graph: bin by bin, and long rows out of their pieces."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from torch_geometric_qlr.ops.fakes import float_rows
from torch_geometric_qlr.ops.triton.forms import After, Ending, Items, Out
from torch_geometric_qlr.ops.triton.kernels.gather import merge_kernel
from torch_geometric_qlr.ops.triton.launch import after_of, cdiv, ending, out_of
from torch_geometric_qlr.ops.triton.schedule import Bin, LongRows, schedule_of

__all__ = ["Launch", "launch_all"]

#: Computes rows of like degrees.
Launch = Callable[[Bin, After, Out, Ending], None]

#: Columns of a long row that one program merges: whole units of any packed result.
_MERGED = 256
_WARPS = 2


def launch_all(
    launch: Launch, rowptr: Tensor, mode: str, after: After, out: Out, end: Ending
) -> None:
    r"""Computes all rows.

    Args:
        launch (callable): What computes rows that are not long.
        rowptr (torch.Tensor): Where the edges of each row begin.
        mode (str): How pieces of a long row come together: :obj:`"sum"`, :obj:`"max"` or
            :obj:`"min"`.
        after (After): What follows, in tensors.
        out (Out): The result.
        end (Ending): What follows, in numbers.
    """
    schedule = schedule_of(rowptr)
    for part in schedule.bins:
        launch(part, after, out, end)
    if schedule.long is not None:
        _merge(schedule.long, launch, mode, after, out, end)


def _merge(long: LongRows, launch: Launch, mode: str, after: After, out: Out, end: Ending) -> None:
    """Long rows: floats of their pieces first, then these together."""
    pieces = long.pieces.row.numel()
    parts = float_rows(out.data, pieces, end.cols)
    launch(long.pieces, after_of(None), out_of(parts, None), ending(pieces, end.cols, end.axis))
    merge_kernel[(long.row.numel(), cdiv(end.cols, _MERGED))](
        parts,
        long.first_piece,
        Items(long.row, long.start, long.stop, long.row.numel()),
        after,
        out,
        MODE=mode,
        END=end,
        WIDTH=_MERGED,
        num_warps=_WARPS,
        enable_fp_fusion=False,
    )
