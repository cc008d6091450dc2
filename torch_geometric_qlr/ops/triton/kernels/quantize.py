"""Values to packed codes, with ranges that are given or those of the rows, and codes unpacked."""

from __future__ import annotations

import triton
import triton.language as tl

from torch_geometric_qlr.ops.triton.kernels.codes import (
    at_row,
    columns,
    parameters,
    round_even,
    to_codes,
)

__all__ = ["quantize_pack_kernel", "quantize_rows_kernel", "unpack_kernel"]

_MIN_SCALE = tl.constexpr(1e-20)  # of `ops/range_grid.py`


@triton.jit
def _packed(x, s, z, skew, row, live, byte, ROWS: tl.constexpr, END: tl.constexpr):
    """Bytes with the codes of values in memory; scales in registers, or read per column."""
    done = tl.zeros((row.shape[0], byte.shape[0]), tl.int32)
    at = at_row(row, ROWS.cols, ROWS.wide)[:, None]
    FIELDS: tl.constexpr = 8 // ROWS.bits
    for k in tl.static_range(FIELDS):
        f = columns(byte, k, ROWS.bits, ROWS.unit)
        inside = f < ROWS.cols
        ok = live[:, None] & inside[None, :]
        value = tl.load(x + (at + f[None, :]), mask=ok, other=0.0).to(tl.float32)
        if END.out_axis == 1:
            sf, zf = parameters(s, z, row, live, f, inside, 1)
            q = to_codes(value, sf, zf, skew, END.levels, END.truncate)
        else:
            q = to_codes(value, s, z, skew, END.levels, END.truncate)
        done |= tl.where(ok, q, 0) << (ROWS.bits * k)
    return done.to(tl.uint8)


@triton.jit
def quantize_pack_kernel(
    x,
    scale,
    zero,
    skew,
    out,
    n,
    ROWS: tl.constexpr,
    END: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """HEIGHT rows and WIDTH bytes of them to a program."""
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    live = row < n
    byte = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    if END.out_axis == 1:
        done = _packed(x, scale, zero, skew, row, live, byte, ROWS, END)
    else:
        s, z = parameters(scale, zero, row, live, byte, live, END.out_axis)
        done = _packed(x, s, z, skew, row, live, byte, ROWS, END)
    ok = live[:, None] & (byte < ROWS.stride)[None, :]
    tl.store(out + (at_row(row, ROWS.stride, ROWS.wide)[:, None] + byte[None, :]), done, mask=ok)


@triton.jit
def _row_range(x, row, live, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The least and the largest value of rows, and zero; NaN where a value is not finite."""
    lo = tl.zeros((row.shape[0], WIDTH), tl.float32)
    hi, poison = lo, lo
    at = at_row(row, ROWS.cols, ROWS.wide)[:, None]
    for first in range(0, ROWS.cols, WIDTH):
        f = first + tl.arange(0, WIDTH)
        ok = live[:, None] & (f < ROWS.cols)[None, :]
        value = tl.load(x + (at + f[None, :]), mask=ok, other=0.0).to(tl.float32)
        lo, hi = tl.minimum(lo, value), tl.maximum(hi, value)
        poison += 0.0 * value  # a NaN does not survive a maximum
    lost = tl.sum(poison, axis=1)
    return tl.min(lo, axis=1) + lost, tl.max(hi, axis=1) + lost


@triton.jit
def _row_grid(lo, hi, LEVELS: tl.constexpr, TRUNCATE: tl.constexpr, ALIGNED: tl.constexpr):
    """`ops/range_grid.py`, of ranges that are those of the values themselves."""
    width = hi - lo
    s = tl.maximum(tl.div_rn(width, 255.0 if TRUNCATE else LEVELS * 1.0), _MIN_SCALE)
    s += 0.0 * width
    z = tl.div_rn(-lo, s)
    if TRUNCATE and ALIGNED:
        STEP: tl.constexpr = 255.0 / LEVELS
        z = round_even(tl.div_rn(z, STEP)) * STEP
    elif TRUNCATE or LEVELS > 1:
        z = round_even(z)
    return s, z


@triton.jit
def quantize_rows_kernel(
    x,
    multiplier,
    skew,
    out,
    scale,
    zero,
    n,
    ROWS: tl.constexpr,
    END: tl.constexpr,
    ALIGNED: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """HEIGHT whole rows to a program, which reads them twice: the second time from its cache."""
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    live = row < n
    lo, hi = _row_range(x, row, live, ROWS, WIDTH * (8 // ROWS.bits))
    s, z = _row_grid(lo, hi, END.levels, END.truncate, ALIGNED)
    s = tl.load(multiplier).to(tl.float32) * s
    at = at_row(row, ROWS.stride, ROWS.wide)[:, None]
    for first in range(0, ROWS.stride, WIDTH):
        byte = first + tl.arange(0, WIDTH)
        done = _packed(x, s[:, None], z[:, None], skew, row, live, byte, ROWS, END)
        ok = live[:, None] & (byte < ROWS.stride)[None, :]
        tl.store(out + (at + byte[None, :]), done, mask=ok)
    if END.truncate:  # what the codes are read back with
        STEP: tl.constexpr = 255.0 / END.levels
        s, z = s * STEP, tl.div_rn(z, STEP)
    tl.store(scale + row, s, mask=live)
    tl.store(zero + row, z, mask=live)


@triton.jit
def unpack_kernel(packed, out, n, ROWS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """HEIGHT rows and WIDTH bytes of them to a program."""
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    live = row < n
    byte = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    at = at_row(row, ROWS.stride, ROWS.wide)[:, None] + byte[None, :]
    word = tl.load(packed + at, mask=live[:, None] & (byte < ROWS.stride)[None, :], other=0)
    USED: tl.constexpr = ROWS.used
    for k in tl.static_range(USED):
        f = columns(byte, k, ROWS.bits, ROWS.unit)
        code = (word.to(tl.int32) >> (ROWS.bits * k)) & ((1 << ROWS.bits) - 1)
        to = at_row(row, ROWS.cols, ROWS.wide)[:, None] + f[None, :]
        tl.store(out + to, code.to(tl.uint8), mask=live[:, None] & (f < ROWS.cols)[None, :])
