"""Codes times weights, in the words they lie in."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["UNSHIFT", "add_real", "add_whole"]

#: Lifts the product of a weight and a denormal number into the normal ones, with weights from
#: 2**-40 to 2**36 exact.
_UP = tl.constexpr(2.0**90)
UNSHIFT = tl.constexpr(59)  # 149 - 90: the exponent that is left to take back

# Instructions of the hardware that Triton has no words for. Inline assembly does not run in the
# interpreter, where INTERPRETED selects the same in plain operations.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _dp4a(a, b, c):
    """c plus the products of four unsigned bytes with four signed ones."""
    if INTERPRETED:
        for i in tl.static_range(4):
            c += ((a >> (8 * i)) & 255) * ((b << (24 - 8 * i)) >> 24)
    else:
        c = tl.inline_asm_elementwise(
            "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], tl.int32, is_pure=True, pack=1
        )
    return c


@triton.jit
def _prmt(a, b, PICK: tl.constexpr):
    """Four of the eight bytes of two words, by the digits of a number from its last on."""
    if INTERPRETED:
        r = a & 0
        for i in tl.static_range(4):
            byte = (b if (PICK >> (4 * i)) & 4 else a) >> (8 * ((PICK >> (4 * i)) & 3))
            r |= (byte & 255) << (8 * i)
    else:
        r = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, PICK], tl.int32, is_pure=True, pack=1
        )
    return r


@triton.jit
def add_whole(acc, x0, x1, x2, x3, w0, w1, w2, w3, BITS: tl.constexpr):
    """Four edges at once: the bytes of four words transposed, masked where they are, times four
    int8 weights in one word. Field k counts 2**(BITS k) times."""
    w = _prmt(_prmt(w0, w1, 0x0040), _prmt(w2, w3, 0x0040), 0x5410)
    w = tl.broadcast_to(w[:, None], x0.shape)
    a, b, c, d = (
        _prmt(x0, x1, 0x6240),
        _prmt(x2, x3, 0x6240),
        _prmt(x0, x1, 0x7351),
        _prmt(x2, x3, 0x7351),
    )
    turned = (
        _prmt(a, b, 0x5410),
        _prmt(c, d, 0x5410),
        _prmt(a, b, 0x7632),
        _prmt(c, d, 0x7632),
    )
    new = ()
    ONES: tl.constexpr = 0x01010101 * ((1 << BITS) - 1)
    for j in tl.static_range(len(acc)):
        # The compiler takes no 2**31 for an int32: a mask of the last field is a negative number.
        masked = turned[j % 4] & ((ONES << (BITS * (j // 4))) - ((j // 4 + 1) * BITS // 8 << 32))
        new = new + (_dp4a(masked, w, acc[j]),)
    return new


@triton.jit
def add_real(acc, x, weights, BITS: tl.constexpr):
    """One edge. A word masked to one field is, read as a float, a denormal number proportional to
    the code: bits 0 to 23 times 2**-149. So only the last byte is shifted, and nothing converted.

    There is one tile of weights, or one for each field, or one for each of its bytes.
    """
    new = ()
    CODE: tl.constexpr = (1 << BITS) - 1
    for j in tl.static_range(len(acc)):
        shifted = (x >> 8) if j % 4 == 3 else x
        field = shifted & (CODE << (BITS * (j // 4) + (16 if j % 4 == 3 else 8 * (j % 4))))
        if len(weights) == 1:
            weight = weights[0]
        elif len(weights) == len(acc):
            weight = weights[j]
        else:
            weight = weights[j // 4]
        new = new + (tl.fma(field.to(tl.float32, bitcast=True), weight * _UP, acc[j]),)
    return new
