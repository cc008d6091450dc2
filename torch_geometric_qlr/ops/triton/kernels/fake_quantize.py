"""Training: values rounded, ranges measured and moved, gradients passed straight through.

A tensor is seen as groups that share a range, each of a length: one group of all values, or the
rows, or the columns of a matrix. A program has a tile [GROUPS, LENGTH] of it. What is reduced over
a group is reduced inside a tile first, and by a second kernel over the tiles, in their order: no
atomics, so results are the same every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from torch_geometric_qlr.ops.triton.kernels.codes import round_even

__all__ = [
    "fake_quantize_kernel",
    "gradient_kernel",
    "gradient_sum_kernel",
    "grid_kernel",
    "span_kernel",
]

_MIN_SCALE = tl.constexpr(1e-20)
_MIN_MULTIPLIER = tl.constexpr(1e-3)
_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _widened(x):
    """Half precision as single: the interpreter does not compare bfloat16."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def _is_finite(x):
    return (x == x) & (tl.abs(x) != _INFINITY)


@triton.jit
def _single(number, like):
    """A number in single precision as often as there are others: the interpreter keeps Python's."""
    return tl.full(like.shape, number, tl.float32)


@triton.jit
def _at_least(x, least):
    """`tl.maximum` may drop a NaN."""
    return tl.where(x < least, least, x)


@triton.jit
def _at_most(x, most):
    return tl.where(x > most, most, x)


@triton.jit
def _tile(
    num_groups, length, group_stride, step, GROUPS: tl.constexpr, LENGTH: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The groups of a program, the place of its tile along them, where its values lie, and which
    of them exist."""
    across = tl.cdiv(length, LENGTH)
    piece = tl.program_id(0) % across
    group = (tl.program_id(0) // across) * GROUPS + tl.arange(0, GROUPS)
    along = piece * LENGTH + tl.arange(0, LENGTH)
    if WIDE:
        at = group.to(tl.int64)[:, None] * group_stride + along.to(tl.int64)[None, :] * step
    else:
        at = group[:, None] * group_stride + along[None, :] * step
    return group, piece, at, (group < num_groups)[:, None] & (along < length)[None, :]


# Values ###########################################################################################


@triton.jit
def _code_of(q, TOP: tl.constexpr):
    """The nearest whole number, one beyond the limits where it is further out. They are whole, so
    to clamp before rounding changes nothing, and keeps the rounding within its bounds."""
    return round_even(_at_most(_at_least(q, -1.0), TOP + 1.0))


@triton.jit
def _clamped(q, TOP: tl.constexpr):
    """A NaN has code 0."""
    return tl.where(q == q, _at_most(_at_least(q, 0.0), TOP), 0.0)


@triton.jit
def fake_quantize_kernel(
    x, scale, zero, skew, x_hat, mask, num_groups, length, group_stride, step,
    LEVELS: tl.constexpr, TRUNCATE: tl.constexpr, SHARED: tl.constexpr,
    GROUPS: tl.constexpr, LENGTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The values that codes stand for, and where no clamp acted. SHARED: one range for all."""
    group, _, at, inside = _tile(num_groups, length, group_stride, step, GROUPS, LENGTH, WIDE)
    if SHARED:
        s, z = tl.load(scale).to(tl.float32), tl.load(zero).to(tl.float32)
    else:
        s = tl.load(scale + group, mask=group < num_groups, other=1.0).to(tl.float32)[:, None]
        z = tl.load(zero + group, mask=group < num_groups, other=0.0).to(tl.float32)[:, None]
    value = _widened(tl.load(x + at, mask=inside, other=0.0))
    finite = _is_finite(value)
    TOP: tl.constexpr = 255.0 if TRUNCATE else LEVELS * 1.0
    q = _code_of(tl.div_rn(value.to(tl.float32), s) + z, TOP)
    passed = finite & (q >= 0.0) & (q <= TOP)
    q = _clamped(q, TOP)
    if TRUNCATE:
        STEP: tl.constexpr = 255.0 / LEVELS
        if skew is not None:
            q += tl.load(skew).to(tl.float32)
        q = _code_of(tl.div_rn(q, STEP), LEVELS * 1.0)
        if skew is not None:
            passed = passed & (q >= 0.0) & (q <= LEVELS * 1.0)
        q = _clamped(q, LEVELS * 1.0)
        s, z = s * STEP, tl.div_rn(z, STEP)
    y = tl.where(finite, (s * (q - z)).to(value.dtype), value)
    tl.store(x_hat + at, y.to(x_hat.dtype.element_ty), mask=inside)
    tl.store(mask + at, passed.to(tl.int8), mask=inside)


# Gradients ########################################################################################


@triton.jit
def gradient_kernel(
    grad, x, x_hat, mask, grad_x, partial, num_groups, length, group_stride, step,
    GROUPS: tl.constexpr, LENGTH: tl.constexpr, DOUBLE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The gradient of the values, and of the ranges what a tile adds: grad (x_hat - x), of x only
    where no clamp acted."""
    TYPE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    group, piece, at, inside = _tile(num_groups, length, group_stride, step, GROUPS, LENGTH, WIDE)
    g = tl.load(grad + at, mask=inside, other=0.0)
    value = _widened(tl.load(x + at, mask=inside, other=0.0))
    passed = tl.load(mask + at, mask=inside, other=0) != 0
    tl.store(grad_x + at, tl.where(passed, g, 0.0).to(grad_x.dtype.element_ty), mask=inside)
    rest = tl.load(x_hat + at, mask=inside, other=0.0).to(TYPE)
    rest = g.to(TYPE) * (rest - tl.where(passed, value.to(TYPE), 0.0))
    rest = tl.where(_is_finite(value), rest, 0.0)
    to = partial + piece.to(tl.int64) * num_groups + group
    tl.store(to, tl.sum(rest, axis=1), mask=group < num_groups)


@triton.jit
def gradient_sum_kernel(
    partial, scale, own_scale, out, factor, num_groups, pieces,
    SCALED: tl.constexpr, GROUPS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """What the tiles add up to, in order. SCALED: as the gradient of the multiplier."""
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    live = group < num_groups
    total = tl.zeros((GROUPS,), tl.float64)
    for first in range(0, pieces, PIECES):
        piece = first + tl.arange(0, PIECES)
        at = partial + piece.to(tl.int64)[:, None] * num_groups + group[None, :]
        part = tl.load(at, mask=(piece < pieces)[:, None] & live[None, :], other=0.0)
        total += tl.sum(part.to(tl.float64), axis=0)
    y = total.to(tl.float32)
    if SCALED:
        s = tl.load(scale + group, mask=live, other=1.0).to(tl.float32)
        own = tl.load(own_scale + group, mask=live, other=1.0).to(tl.float32)
        y = tl.div_rn(y, s) * own * _single(factor, y)
    tl.store(out + group, y, mask=live)


# Ranges ###########################################################################################


@triton.jit
def _span(x, axis: tl.constexpr):
    """The least and the greatest of values, and zero; a NaN if there is any."""
    bad = tl.max((x != x).to(tl.int32), axis=axis) > 0
    known = tl.where(x == x, x, 0.0)
    lo = tl.minimum(tl.min(known, axis=axis), 0.0)
    hi = tl.maximum(tl.max(known, axis=axis), 0.0)
    # Not a constant of this module: the compiler compares those, and a NaN is not equal to itself.
    return tl.where(bad, float("nan"), lo), tl.where(bad, float("nan"), hi)


@triton.jit
def span_kernel(
    x, lows, highs, num_groups, length, group_stride, step,
    GROUPS: tl.constexpr, LENGTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The span of each group inside of a tile."""
    group, piece, at, inside = _tile(num_groups, length, group_stride, step, GROUPS, LENGTH, WIDE)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    lo, hi = _span(value, 1)
    to = piece.to(tl.int64) * num_groups + group
    tl.store(lows + to, lo, mask=group < num_groups)
    tl.store(highs + to, hi, mask=group < num_groups)


@triton.jit
def _moved(kept, seen, momentum):
    """A moving average as `torch.lerp` computes it, rounding once. What is not finite moves
    nothing."""
    seen = tl.where(_is_finite(seen), seen, kept)
    way, share = seen - kept, _single(momentum, seen)
    near = tl.fma(way, share, kept)
    return tl.where(tl.abs(share) < 0.5, near, tl.fma(way, share - 1.0, seen))


@triton.jit
def _multiplier(gamma, factor, FACTOR: tl.constexpr):
    """That of `ops/multiplier.py`: what autograd would be told of it is rounded, too."""
    if FACTOR:
        scaled = gamma * _single(factor, gamma)
        gamma = scaled + (gamma - scaled)
    return gamma + (_at_least(gamma, _MIN_MULTIPLIER) - gamma)


@triton.jit
def grid_kernel(
    lows, highs, kept_lo, kept_hi, gamma, out, momentum, factor, num_groups, pieces,
    LEVELS: tl.constexpr, TRUNCATE: tl.constexpr, ALIGNED: tl.constexpr, FACTOR: tl.constexpr,
    ONE_GAMMA: tl.constexpr, GROUPS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """From the spans of the tiles to the range, moved if one is kept, and the grid that it is cut
    into: scale, zero point, scale at a multiplier of one, and both ends."""
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    live = group < num_groups
    lo, hi = tl.zeros((GROUPS,), tl.float32), tl.zeros((GROUPS,), tl.float32)
    for first in range(0, pieces, PIECES):
        piece = first + tl.arange(0, PIECES)
        at = piece.to(tl.int64)[:, None] * num_groups + group[None, :]
        there = (piece < pieces)[:, None] & live[None, :]
        low, _ = _span(tl.load(lows + at, mask=there, other=0.0), 0)
        _, high = _span(tl.load(highs + at, mask=there, other=0.0), 0)
        # A NaN is less than nothing, and stays.
        lo = tl.where((lo != lo) | (lo < low), lo, low)
        hi = tl.where((hi != hi) | (hi > high), hi, high)
    if kept_lo is not None:
        lo = _moved(tl.load(kept_lo + group, mask=live, other=0.0).to(tl.float32), lo, momentum)
        hi = _moved(tl.load(kept_hi + group, mask=live, other=0.0).to(tl.float32), hi, momentum)
    width = hi - lo
    own = _at_least(tl.div_rn(width, 255.0 if TRUNCATE else LEVELS * 1.0), _MIN_SCALE)
    if kept_lo is None:
        own += 0.0 * width  # where its width is not finite there is no scale
    zero = tl.div_rn(-lo, own)
    if TRUNCATE and ALIGNED:
        zero = round_even(tl.div_rn(zero, 255.0 / LEVELS)) * (255.0 / LEVELS)
    elif TRUNCATE or LEVELS > 1:
        zero = round_even(zero)
    g = tl.load(gamma + (group * 0 if ONE_GAMMA else group), mask=live, other=1.0).to(tl.float32)
    results = (_multiplier(g, factor, FACTOR) * own, zero, own, lo, hi)
    for i in tl.static_range(5):
        tl.store(out + (i * num_groups + group), results[i], mask=live)
