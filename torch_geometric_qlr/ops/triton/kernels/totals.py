"""What the lane groups of a row have, together: a tile of columns for each field."""

from __future__ import annotations

import triton
import triton.language as tl

from torch_geometric_qlr.ops.triton.kernels.counters import halves
from torch_geometric_qlr.ops.triton.kernels.products import UNSHIFT

__all__ = ["masses", "over_groups", "totals"]


@triton.jit
def over_groups(v, MODE: tl.constexpr, TILE: tl.constexpr):
    """One tile [rows, *] of what the lane groups of each row have."""
    if TILE.groups == 1:
        return v
    else:
        v = tl.reshape(v, (TILE.rows, TILE.groups, v.shape[1]))
        if MODE == "max":
            return tl.max(v, axis=1)
        elif MODE == "min":
            return tl.min(v, axis=1)
        else:
            return tl.sum(v, axis=1)


@triton.jit
def _bytes(v0, v1, v2, v3):
    """Four tiles [*, words], one for each byte of a word, as one [*, bytes]."""
    v = tl.join(tl.join(v0, v2), tl.join(v1, v3))
    return tl.reshape(v, (v0.shape[0], 4 * v0.shape[1]))


@triton.jit
def _field(acc, k: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    """Field k of all bytes, of accumulators that hold each byte apart."""
    BITS: tl.constexpr = ROWS.bits
    if SUMS.mode == "real" or SUMS.mode == "heads":
        v = _bytes(
            acc[4 * k] * 2.0 ** (UNSHIFT - BITS * k),
            acc[4 * k + 1] * 2.0 ** (UNSHIFT - 8 - BITS * k),
            acc[4 * k + 2] * 2.0 ** (UNSHIFT - 16 - BITS * k),
            acc[4 * k + 3] * 2.0 ** (UNSHIFT - 16 - BITS * k),
        )
        return over_groups(v, "sum", TILE)
    elif SUMS.mode == "whole":
        v = _bytes(acc[4 * k], acc[4 * k + 1], acc[4 * k + 2], acc[4 * k + 3]) >> (BITS * k)
        return over_groups(v, "sum", TILE)
    elif SUMS.by_source:
        v = _bytes(acc[4 * k], acc[4 * k + 1], acc[4 * k + 2], acc[4 * k + 3])
        return over_groups(v, SUMS.mode, TILE)
    elif BITS <= 2:
        a = acc[0] >> (BITS * k)
        M: tl.constexpr = (1 << BITS) - 1
        v = _bytes(a & M, (a >> 8) & M, (a >> 16) & M, (a >> 24) & M)
        return over_groups(v, "max", TILE)
    else:
        v = _bytes(acc[4 * k], acc[4 * k + 1] >> 8, acc[4 * k + 2], acc[4 * k + 3] >> 8)
        return over_groups(v >> (BITS * k), "max", TILE)


@triton.jit
def totals(acc, SUMS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    """A tile [rows, bytes] for each field."""
    USED: tl.constexpr = ROWS.used
    total = ()
    if SUMS.mode == "count":
        acc = halves(acc, ROWS.used, ROWS.bits)
        # All edges of a row fit into 16 bits, other than at 8 bits.
        for k in tl.static_range(USED):
            a, b = acc[2 * k], acc[2 * k + 1]
            if ROWS.bits < 8:
                a, b = over_groups(a, "sum", TILE), over_groups(b, "sum", TILE)
            v = _bytes(a & 0xFFFF, b & 0xFFFF, (a >> 16) & 0xFFFF, (b >> 16) & 0xFFFF)
            total = total + (v if ROWS.bits < 8 else over_groups(v, "sum", TILE),)
    else:
        if not SUMS.by_source and ROWS.bits == 2 and (SUMS.mode == "max" or SUMS.mode == "min"):
            acc = (acc[0] + acc[1] + acc[2],)
        for k in tl.static_range(USED):
            total = total + (_field(acc, k, SUMS, ROWS, TILE),)
    return total


@triton.jit
def masses(mass, SUMS: tl.constexpr, TILE: tl.constexpr):
    """The sums of weights of rows; for each field, if there are heads."""
    total = ()
    if SUMS.mode != "heads":
        total = (over_groups(mass[0], "sum", TILE),)
    elif SUMS.quads:
        for k in tl.static_range(len(mass)):
            m = over_groups(mass[k], "sum", TILE)
            total = total + (_bytes(m, m, m, m),)
    else:
        for k in tl.static_range(len(mass) // 4):
            m = _bytes(mass[4 * k], mass[4 * k + 1], mass[4 * k + 2], mass[4 * k + 3])
            total = total + (over_groups(m, "sum", TILE),)
    return total
