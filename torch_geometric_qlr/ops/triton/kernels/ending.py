"""How a tile of sums leaves a kernel: epilogue, codes, packing."""

from __future__ import annotations

import triton
import triton.language as tl

from torch_geometric_qlr.ops.triton.kernels.codes import at_row, parameters, to_codes

__all__ = ["finish", "result_codes", "write_columns"]


@triton.jit
def finish(y, count, row, live, f, after, END: tl.constexpr):
    """The operations of `reference.finish`, each rounded as torch rounds it."""
    inside = f < END.cols
    if END.mean:
        y = tl.div_rn(y, tl.maximum(count, 1).to(tl.float32)[:, None])
    if after.row_scale is not None:
        y = y * tl.load(after.row_scale + row, mask=live, other=0.0).to(tl.float32)[:, None]
    if after.addend is not None:
        at = at_row(row, END.cols, END.wide)[:, None] + f[None, :]
        ok = live[:, None] & inside[None, :]
        y = y + after.addend_scale * tl.load(after.addend + at, mask=ok, other=0.0).to(tl.float32)
    if after.bias is not None:
        y = y + tl.load(after.bias + f, mask=inside, other=0.0).to(tl.float32)[None, :]
    if END.relu:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return y


@triton.jit
def result_codes(y, row, live, f, out, END: tl.constexpr):
    """Codes of results, zero beyond the last column."""
    inside = f < END.cols
    s, z = parameters(out.scale, out.zero, row, live, f, inside, END.out_axis)
    q = to_codes(y, s, z, out.skew, END.levels, END.truncate)
    if END.cols % (END.unit * (8 // END.bits)) != 0:
        q = tl.where(inside[None, :], q, 0)
    return q


@triton.jit
def write_columns(y, first, row, live, out, END: tl.constexpr):
    """A tile of columns from `first` on; whole units, if it is packed."""
    WIDTH: tl.constexpr = y.shape[1]
    f = first + tl.arange(0, WIDTH)
    if END.bits == 0:
        ok = live[:, None] & (f < END.cols)[None, :]
        tl.store(out.data + (at_row(row, END.cols, END.wide)[:, None] + f[None, :]), y, mask=ok)
    else:
        FIELDS: tl.constexpr = 8 // END.bits
        UNITS: tl.constexpr = WIDTH // (END.unit * FIELDS)
        q = result_codes(y, row, live, f, out, END)
        q = tl.reshape(q, (y.shape[0], UNITS, FIELDS, END.unit))
        q = q << (END.bits * tl.arange(0, FIELDS))[None, None, :, None]
        bytes = tl.reshape(tl.sum(q, axis=2), (y.shape[0], UNITS * END.unit)).to(tl.uint8)
        to = first // FIELDS + tl.arange(0, UNITS * END.unit)
        ok = live[:, None] & (to < END.stride)[None, :]
        tl.store(out.data + (at_row(row, END.stride, END.wide)[:, None] + to[None, :]), bytes, ok)
