"""What the rows that are gathered are added to, edge by edge."""

from __future__ import annotations

import triton
import triton.language as tl

from torch_geometric_qlr.ops.triton.kernels.codes import at_row, columns
from torch_geometric_qlr.ops.triton.kernels.counters import count_words
from torch_geometric_qlr.ops.triton.kernels.products import add_real, add_whole

__all__ = ["add_edges", "nothing"]


@triton.jit
def nothing(slot, w, SUMS: tl.constexpr, ROWS: tl.constexpr, PLANES: tl.constexpr):
    """Accumulators, and the sums of weights, before the first edge."""
    none = tl.zeros((slot.shape[0], w.shape[0]), tl.int32)
    one = tl.zeros((slot.shape[0], 1), tl.int32)
    if SUMS.mode == "count":
        return (none,) * PLANES, (one,)
    elif SUMS.mode == "whole":
        return (none,) * (4 * ROWS.used), (one,)
    elif SUMS.mode == "real":
        return (none.to(tl.float32),) * (4 * ROWS.used), (one.to(tl.float32),)
    elif SUMS.mode == "heads":
        OF: tl.constexpr = ROWS.used if SUMS.quads else 4 * ROWS.used
        return (none.to(tl.float32),) * (4 * ROWS.used), (none.to(tl.float32),) * OF
    elif SUMS.by_source:
        LEAST: tl.constexpr = float("-inf") if SUMS.mode == "max" else float("inf")
        return (none.to(tl.float32) + LEAST,) * (4 * ROWS.used), (one.to(tl.float32),)
    else:
        OF_CODES: tl.constexpr = 2**ROWS.bits - 1 if ROWS.bits <= 2 else 4 * ROWS.used
        return (none,) * OF_CODES, (one,)


@triton.jit
def _weight_of(edges, affine, e, c, here, SUMS: tl.constexpr):
    """What multiplies the codes of a source, and what its zero point counts."""
    if edges.weight is None:
        v = tl.where(here, 1.0, 0.0)
    else:
        v = tl.load(edges.weight + e, mask=here, other=0.0).to(tl.float32)
    if edges.factor is not None:
        v = v * tl.load(edges.factor + c, mask=here, other=0.0).to(tl.float32)
    if SUMS.by_source:
        v = v * tl.load(affine.scale + c, mask=here, other=0.0).to(tl.float32)
        return v, v * tl.load(affine.zero + c, mask=here, other=0.0).to(tl.float32)
    else:
        return v, v


@triton.jit
def _weights_of_heads(edges, affine, e, c, here, w, SUMS: tl.constexpr, ROWS: tl.constexpr):
    """The same for each field, or each of its bytes where a head may end between them."""
    weights, masses = (), ()
    WIDTH: tl.constexpr = ROWS.cols // SUMS.heads
    if SUMS.by_source:
        s = tl.load(affine.scale + c, mask=here, other=0.0).to(tl.float32)[:, None]
        z = tl.load(affine.zero + c, mask=here, other=0.0).to(tl.float32)[:, None]
    USED: tl.constexpr = ROWS.used
    APART: tl.constexpr = 1 if SUMS.quads else 4
    for k in tl.static_range(USED):
        for j in tl.static_range(APART):
            f = columns(4 * w + j, k, ROWS.bits, ROWS.unit)
            at = at_row(e, SUMS.heads, SUMS.wide)[:, None] + (f // WIDTH)[None, :]
            ok = here[:, None] & (f < ROWS.cols)[None, :]
            v = tl.load(edges.weight + at, mask=ok, other=0.0).to(tl.float32)
            if SUMS.by_source:
                v = v * s
                masses = masses + (v * z,)
            else:
                masses = masses + (v,)
            weights = weights + (v,)
    return weights, masses


@triton.jit
def _larger(acc, x, SUMS: tl.constexpr, ROWS: tl.constexpr):
    """One more edge of a maximum; of a minimum codes are taken from the largest code."""
    if ROWS.bits == 1:
        return (acc[0] | x,)
    elif ROWS.bits == 2:
        # Which of the codes 1, 2, 3 are reached: as fields, whose sum is the largest code.
        low, high = x & 0x55555555, (x >> 1) & 0x55555555
        return (acc[0] | low | high, acc[1] | high, acc[2] | (low & high))
    else:
        new = ()
        CODE: tl.constexpr = (1 << ROWS.bits) - 1
        for j in tl.static_range(len(acc)):
            shifted = (x >> 16) if j % 4 >= 2 else x
            field = shifted & (CODE << (8 * (j % 2) + ROWS.bits * (j // 4)))
            new = new + (tl.maximum(acc[j], field),)
        return new


@triton.jit
def _larger_values(acc, x, ok, s, z, SUMS: tl.constexpr, ROWS: tl.constexpr):
    """The same of values, where each source has its own scale."""
    new = ()
    for j in tl.static_range(len(acc)):
        code = (x >> (8 * (j % 4) + ROWS.bits * (j // 4))) & ((1 << ROWS.bits) - 1)
        value = s[:, None] * (code.to(tl.float32) - z[:, None])
        value = tl.maximum(acc[j], value) if SUMS.mode == "max" else tl.minimum(acc[j], value)
        new = new + (tl.where(ok, value, acc[j]),)
    return new


@triton.jit
def _added(acc, x, weights, SUMS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    """Accumulators with the words of these edges."""
    UNROLL: tl.constexpr = TILE.unroll
    if SUMS.mode == "count":
        acc = count_words(acc, x)
    elif SUMS.mode == "whole":
        for i in tl.static_range(0, UNROLL, 4):
            v = weights
            acc = add_whole(
                acc,
                x[i],
                x[i + 1],
                x[i + 2],
                x[i + 3],
                v[i],
                v[i + 1],
                v[i + 2],
                v[i + 3],
                ROWS.bits,
            )
    elif SUMS.mode == "real" or SUMS.mode == "heads":
        for i in tl.static_range(UNROLL):
            acc = add_real(acc, x[i], weights[i], ROWS.bits)
    elif SUMS.by_source:
        for i in tl.static_range(UNROLL):
            ok, s, z = weights[i]
            acc = _larger_values(acc, x[i], ok, s, z, SUMS, ROWS)
    else:
        for i in tl.static_range(UNROLL):
            acc = _larger(acc, x[i], SUMS, ROWS)
    return acc


@triton.jit
def _edges_of(packed, edges, e, end, w, SUMS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    """Edges, one of each lane group: whether there is one, its source and the words of that."""
    WORDS: tl.constexpr = ROWS.stride // 4
    here = e < end
    c = tl.load(edges.col + e, mask=here, other=0)
    # Compared again in two dimensions: with one group to a row the compiler cannot lay out one
    # mask for both loads.
    ok = e[:, None] < end[:, None]
    if WORDS % TILE.words != 0:
        ok = ok & (w < WORDS)[None, :]
    x = tl.load(packed + (at_row(c, WORDS, ROWS.wide)[:, None] + w[None, :]), mask=ok, other=0)
    if SUMS.mode == "min" and not SUMS.by_source:
        x = tl.where(ok, ~x, 0)
    return here, c, ok, x


@triton.jit
def add_edges(
    acc,
    mass,
    packed,
    edges,
    affine,
    edge,
    end,
    w,
    SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """As many edges of each lane group as are unrolled, loaded before the first is used."""
    UNROLL: tl.constexpr = TILE.unroll
    x, weights = (), ()
    for i in tl.static_range(UNROLL):
        e = edge + i * TILE.groups
        here, c, ok, word = _edges_of(packed, edges, e, end, w, SUMS, ROWS, TILE)
        x = x + (word,)
        if SUMS.mode == "whole":
            v = tl.load(edges.weight + e, mask=here, other=0).to(tl.int32)
            weights, mass = weights + (v,), (mass[0] + v[:, None],)
        elif SUMS.mode == "real":
            v, m = _weight_of(edges, affine, e, c, here, SUMS)
            weights, mass = weights + ((v[:, None],),), (mass[0] + m[:, None],)
        elif SUMS.mode == "heads":
            v, m = _weights_of_heads(edges, affine, e, c, here, w, SUMS, ROWS)
            new = ()
            for j in tl.static_range(len(mass)):
                new = new + (mass[j] + m[j],)
            weights, mass = weights + (v,), new
        elif SUMS.by_source:
            s = tl.load(affine.scale + c, mask=here, other=1.0).to(tl.float32)
            z = tl.load(affine.zero + c, mask=here, other=0.0).to(tl.float32)
            # A maximum drops a NaN, which this sum keeps.
            weights, mass = weights + ((ok, s, z),), (mass[0] + (0.0 * (s + z))[:, None],)
    return _added(acc, x, weights, SUMS, ROWS, TILE), mass
