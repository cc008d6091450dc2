"""Packed rows gathered along a CSR: sums, weighted sums and extrema, ended where they are."""

from __future__ import annotations

import triton
import triton.language as tl

from torch_geometric_qlr.ops.triton.kernels.codes import at_row, columns, parameters, round_even
from torch_geometric_qlr.ops.triton.kernels.ending import finish, result_codes, write_columns
from torch_geometric_qlr.ops.triton.kernels.terms import add_edges, nothing
from torch_geometric_qlr.ops.triton.kernels.totals import masses, totals

__all__ = ["gather_kernel", "merge_kernel"]


@triton.jit
def _value(
    total,
    mass,
    count,
    row,
    live,
    f,
    affine,
    SUMS: tl.constexpr,
    END: tl.constexpr,
    BITS: tl.constexpr,
):
    """What the sum or extremum of codes stands for."""
    if SUMS.mode == "max" or SUMS.mode == "min":
        some = (count > 0)[:, None]
        if SUMS.by_source:
            total += mass
        else:
            code = total if SUMS.mode == "max" else ((1 << BITS) - 1) - total
            s, z = parameters(affine.scale, affine.zero, row, live, f, f < END.cols, END.axis)
            total = s * (code.to(tl.float32) - z)
        return tl.where(some, total, 0.0)
    elif SUMS.by_source:
        return total - mass
    else:
        s, z = parameters(affine.scale, affine.zero, row, live, f, f < END.cols, END.axis)
        if SUMS.mode == "real" or SUMS.mode == "heads":
            y = tl.fma(-mass, z, total)
        else:
            # The whole part of a zero point is taken off in integers: no digit is lost.
            whole = round_even(tl.minimum(tl.maximum(z, -4096.0), 4096.0))
            rest = (total - mass * whole.to(tl.int32)).to(tl.float32)
            y = tl.fma(-(mass.to(tl.float32)), z - whole, rest)
        return y * s


@triton.jit
def _write(
    total,
    mass,
    count,
    row,
    live,
    byte,
    affine,
    after,
    out,
    SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    END: tl.constexpr,
):
    """Ends each field. Codes of a result stay in the bytes of the source if they have as many bits;
    wider ones fill several bytes, of narrower ones a byte has those of several units."""
    FIELDS: tl.constexpr = 8 // END.bits if END.bits > 0 else 1
    RATIO: tl.constexpr = ROWS.bits // END.bits if END.bits > 0 and END.bits < ROWS.bits else 1
    done = tl.zeros(total[0].shape, tl.int32)
    USED: tl.constexpr = ROWS.used
    for k in tl.static_range(USED):
        f = columns(byte, k, ROWS.bits, ROWS.unit)
        m = mass[k] if SUMS.mode == "heads" else mass[0]
        y = _value(total[k], m, count, row, live, f, affine, SUMS, END, ROWS.bits)
        y = finish(y, count, row, live, f, after, END)
        if END.bits == 0:
            at = at_row(row, END.cols, END.wide)[:, None] + f[None, :]
            tl.store(out.data + at, y, mask=live[:, None] & (f < END.cols)[None, :])
        else:
            q = result_codes(y, row, live, f, out, END)
            done |= q << (END.bits * (k % FIELDS))
            if k % FIELDS == FIELDS - 1 or k == ROWS.used - 1:
                _store(done, k, row, live, byte, out, RATIO, ROWS, END)
                done = tl.zeros(done.shape, tl.int32)


@triton.jit
def _store(
    codes,
    k: tl.constexpr,
    row,
    live,
    byte,
    out,
    RATIO: tl.constexpr,
    ROWS: tl.constexpr,
    END: tl.constexpr,
):
    """The bytes that end with field k."""
    if RATIO > 1:  # neighbouring units of the source are fields of one
        UNITS: tl.constexpr = codes.shape[1] // (ROWS.unit * RATIO)
        SHIFT: tl.constexpr = END.bits * (8 // ROWS.bits)
        q = tl.reshape(codes, (codes.shape[0], UNITS, RATIO, ROWS.unit))
        q = tl.sum(q << (SHIFT * tl.arange(0, RATIO))[None, None, :, None], axis=2)
        codes = tl.reshape(q, (codes.shape[0], UNITS * ROWS.unit))
        to = tl.min(byte, axis=0) // RATIO + tl.arange(0, UNITS * ROWS.unit)
    else:
        FIELDS: tl.constexpr = 8 // END.bits
        part = (byte // ROWS.unit) * ((8 // ROWS.bits) // FIELDS) + k // FIELDS
        to = part * ROWS.unit + byte % ROWS.unit
    ok = live[:, None] & (to < END.stride)[None, :]
    at = at_row(row, END.stride, END.wide)[:, None] + to[None, :]
    tl.store(out.data + at, codes.to(tl.uint8), mask=ok)


@triton.jit
def gather_kernel(
    packed,
    edges,
    items,
    affine,
    after,
    out,
    SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    END: tl.constexpr,
):
    """Several rows to a program, several lane groups to a row, each of which reads the words of
    every so-manieth edge. Sources are read as words of 32 bits."""
    slot = tl.arange(0, TILE.rows * TILE.groups)
    item = tl.program_id(0) * TILE.rows + slot // TILE.groups
    live = item < items.count
    edge = tl.load(items.start + item, mask=live, other=0) + slot % TILE.groups
    end = tl.load(items.stop + item, mask=live, other=0)
    w = tl.program_id(1) * TILE.words + tl.arange(0, TILE.words)
    acc, mass = nothing(slot, w, SUMS, ROWS, TILE.planes)
    STEP: tl.constexpr = TILE.groups * TILE.unroll
    for _ in range(tl.cdiv(tl.max(end - edge + slot % TILE.groups, axis=0), STEP)):
        acc, mass = add_edges(acc, mass, packed, edges, affine, edge, end, w, SUMS, ROWS, TILE)
        edge += STEP
    total, mass = totals(acc, SUMS, ROWS, TILE), masses(mass, SUMS, TILE)
    item = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    live = item < items.count
    first = tl.load(items.start + item, mask=live, other=0)
    count = (tl.load(items.stop + item, mask=live, other=0) - first).to(tl.int32)
    if SUMS.mode == "count":
        mass = (count[:, None],)
    row = tl.load(items.row + item, mask=live, other=0)
    byte = tl.program_id(1) * (4 * TILE.words) + tl.arange(0, 4 * TILE.words)
    _write(total, mass, count, row, live, byte, affine, after, out, SUMS, ROWS, END)


@triton.jit
def merge_kernel(
    parts,
    first_part,
    items,
    after,
    out,
    MODE: tl.constexpr,
    END: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One long row to a program: the results of its pieces in the order of its edges."""
    item = tl.program_id(0) + tl.arange(0, 1)
    live = item < items.count
    first = tl.program_id(1) * WIDTH
    f = first + tl.arange(0, WIDTH)
    begin = tl.load(first_part + tl.program_id(0))
    stop = tl.load(first_part + tl.program_id(0) + 1)
    at = at_row(begin, END.cols, True)
    y = tl.load(parts + (at + f), mask=f < END.cols, other=0.0).to(tl.float64)
    for _ in range(begin + 1, stop):
        at += END.cols
        part = tl.load(parts + (at + f), mask=f < END.cols, other=0.0).to(tl.float64)
        if MODE == "max":
            y = tl.where((part > y) | (part != part), part, y)
        elif MODE == "min":
            y = tl.where((part < y) | (part != part), part, y)
        else:
            y += part
    row = tl.load(items.row + item, mask=live, other=0)
    count = tl.load(items.stop + item, mask=live, other=0) - tl.load(items.start + item, live, 0)
    y = finish(y.to(tl.float32)[None, :], count, row, live, f, after, END)
    write_columns(y, first, row, live, out, END)
