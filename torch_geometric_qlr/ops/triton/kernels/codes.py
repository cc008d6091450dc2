"""Floats to codes and back, one tile at a time."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["at_row", "columns", "parameters", "round_even", "to_codes"]

# Added and subtracted it rounds half to even, below 2**22: `libdevice` does not run in the
# interpreter.
_ROUND = tl.constexpr(12582912.0)
# The interpreter of older versions rounds a product before it adds to it.
_FUSES = tl.constexpr(
    not triton.knobs.runtime.interpret
    or tuple(int(n) for n in triton.__version__.split(".")[:2]) >= (3, 9)
)


@triton.jit
def columns(byte, k: tl.constexpr, BITS: tl.constexpr, UNIT: tl.constexpr):
    """The columns in field k of bytes (`ops/layout.py`)."""
    return (byte // UNIT) * (UNIT * (8 // BITS)) + k * UNIT + byte % UNIT


@triton.jit
def at_row(row, STRIDE: tl.constexpr, WIDE: tl.constexpr):
    """Where rows begin."""
    if WIDE:
        return row.to(tl.int64) * STRIDE
    else:
        return row.to(tl.int32) * STRIDE


@triton.jit
def round_even(x):
    """To whole numbers, of absolute values below 2**22."""
    return (x + _ROUND) - _ROUND


@triton.jit
def parameters(scale, zero, row, live, f, inside, AXIS: tl.constexpr):
    """Scale and zero point of a tile with these rows and columns."""
    if AXIS == 0:
        s = tl.load(scale + row, mask=live, other=1.0)[:, None]
        z = tl.load(zero + row, mask=live, other=0.0)[:, None]
    elif AXIS == 1:
        s = tl.load(scale + f, mask=inside, other=1.0)[None, :]
        z = tl.load(zero + f, mask=inside, other=0.0)[None, :]
    else:
        s, z = tl.load(scale), tl.load(zero)
    return s.to(tl.float32), z.to(tl.float32)


@triton.jit
def _inverse(s):
    """1 / s, and a power of two for both sides of a quotient, which keeps what follows away from
    the ends of the floats."""
    lift = tl.where(tl.abs(s) < 2.0**-70, 2.0**70, tl.where(tl.abs(s) > 2.0**100, 2.0**-60, 1.0))
    s = s * lift
    return s, tl.div_rn(1.0, s), lift


@triton.jit
def _quotient(y, s, inverse, lift):
    """y / s as division rounds it, where that counts: below 2**22, to which it is clamped. A
    product that is a few units of its last place off is corrected twice by its exact rest
    (Markstein, 1990), with half the instructions of a division."""
    y = y * lift
    if _FUSES:
        most = tl.abs(s) * 4194304.0
        y = tl.minimum(tl.maximum(y, -most), most)
        q = y * inverse
        q = tl.fma(tl.fma(-q, s, y), inverse, q)
        return tl.fma(tl.fma(-q, s, y), inverse, q)
    else:
        return tl.div_rn(y, s)


@triton.jit
def to_codes(y, s, z, skew, LEVELS: tl.constexpr, TRUNCATE: tl.constexpr):
    """int32 codes. Limits are whole numbers, so to clamp first rounds to the same codes, and keeps
    the rounding within its bounds. The maximum of zero and a NaN is zero."""
    TOP: tl.constexpr = 255.0 if TRUNCATE else LEVELS * 1.0
    s, inverse, lift = _inverse(s)
    q = _quotient(y, s, inverse, lift) + z
    q = tl.minimum(tl.maximum(q, 0.0), TOP)
    if TRUNCATE:
        q = round_even(q)
        if skew is not None:
            q += tl.load(skew).to(tl.float32)
        q = tl.div_rn(q, 255.0 / LEVELS)
        q = tl.minimum(tl.maximum(q, 0.0), LEVELS * 1.0)
    # The last bits of the sum are the whole number: to convert takes four times as long.
    return (q + _ROUND).to(tl.int32, bitcast=True) & 255
