"""Rows of floats gathered along a CSR, with the schedule of packed ones."""

from __future__ import annotations

import triton
import triton.language as tl

from torch_geometric_qlr.ops.triton.kernels.codes import at_row
from torch_geometric_qlr.ops.triton.kernels.ending import finish, write_columns
from torch_geometric_qlr.ops.triton.kernels.totals import over_groups

__all__ = ["float_kernel"]


@triton.jit
def float_kernel(
    x,
    edges,
    items,
    after,
    out,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
    END: tl.constexpr,
):
    """As `gather_kernel`; a word is a float."""
    slot = tl.arange(0, TILE.rows * TILE.groups)
    item = tl.program_id(0) * TILE.rows + slot // TILE.groups
    live = item < items.count
    edge = tl.load(items.start + item, mask=live, other=0) + slot % TILE.groups
    end = tl.load(items.stop + item, mask=live, other=0)
    first = tl.program_id(1) * TILE.words
    f = first + tl.arange(0, TILE.words)
    acc = tl.zeros((TILE.rows * TILE.groups, TILE.words), tl.float32)
    UNROLL: tl.constexpr = TILE.unroll
    STEP: tl.constexpr = TILE.groups * UNROLL
    for _ in range(tl.cdiv(tl.max(end - edge + slot % TILE.groups, axis=0), STEP)):
        for i in tl.static_range(UNROLL):
            e = edge + i * TILE.groups
            here = e < end
            c = tl.load(edges.col + e, mask=here, other=0)
            ok = (e[:, None] < end[:, None]) & (f < END.cols)[None, :]
            at = at_row(c, END.cols, WIDE)[:, None] + f[None, :]
            value = tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
            if edges.weight is not None:
                value *= tl.load(edges.weight + e, mask=here, other=0.0).to(tl.float32)[:, None]
            if edges.factor is not None:
                value *= tl.load(edges.factor + c, mask=here, other=0.0).to(tl.float32)[:, None]
            acc += value
        edge += STEP
    y = over_groups(acc, "sum", TILE)
    item = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    live = item < items.count
    begin = tl.load(items.start + item, mask=live, other=0)
    count = (tl.load(items.stop + item, mask=live, other=0) - begin).to(tl.int32)
    row = tl.load(items.row + item, mask=live, other=0)
    y = finish(y, count, row, live, first + tl.arange(0, TILE.words), after, END)
    write_columns(y, first, row, live, out, END)
