"""Sums of codes without weights: a carry-save tree over words, whatever fields these have."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["count_words", "halves"]


@triton.jit
def count_words(planes, words):
    """Adds words to bit-sliced counters: plane p holds bit p of 32 counters. An adder takes three
    words of one weight and gives one of that weight and one of the next: two instructions."""
    new = ()
    for p in tl.static_range(len(planes)):
        s = planes[p]
        carry = ()
        for i in tl.static_range(len(words) // 2):
            a, b = words[2 * i], words[2 * i + 1]
            carry = carry + ((a & b) | (s & (a ^ b)),)
            s = s ^ a ^ b
        if len(words) == 1:
            carry = (s & words[0],)
            s = s ^ words[0]
        new = new + (s,)
        words = carry
    return new


@triton.jit
def _in_bytes(planes, k: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, BITS: tl.constexpr):
    """Sums of field k of planes, less their common weight, where these fit into bytes."""
    total = planes[0] & 0
    for p in tl.static_range(FROM, TO):
        if BITS == 1:
            total += ((planes[p] >> k) & 0x01010101) << (p - FROM)
        elif BITS == 2 and (p - FROM) % 2 == 0:  # a pair of planes fits into nibbles: 3 + 6
            low = (planes[p] >> (2 * (k % 2))) & 0x33333333
            high = (planes[p + 1] >> (2 * (k % 2))) & 0x33333333
            pair = ((low + (high << 1)) >> (4 * (k // 2))) & 0x0F0F0F0F
            total += pair << (p - FROM)
        elif BITS == 4:
            total += ((planes[p] >> (4 * k)) & 0x0F0F0F0F) << (p - FROM)
    return total


@triton.jit
def halves(planes, USED: tl.constexpr, BITS: tl.constexpr):
    """Sums out of the counters, two of 16 bits to a word: of each field bytes (0, 2), then (1, 3).

    As many planes are added up at once as fit into bytes: 1 + 2 + ... + 128, and 15 * (1 + 2 + 4 +
    8); at 2 bits 9 * (1 + 4 + 16), in pairs.
    """
    P: tl.constexpr = len(planes)
    LOW: tl.constexpr = 8 if BITS == 1 else 6 if BITS == 2 else 4
    CUT: tl.constexpr = LOW if P > LOW else P
    out = ()
    for k in tl.static_range(USED):
        if BITS < 8:
            low = _in_bytes(planes, k, 0, CUT, BITS)
            if P > LOW:
                high = _in_bytes(planes, k, LOW, P, BITS)
        for odd in tl.static_range(2):
            if BITS == 8:
                h = (planes[0] >> (8 * odd)) & 0x00FF00FF
                for p in tl.static_range(1, P):
                    h += ((planes[p] >> (8 * odd)) & 0x00FF00FF) << p
            else:
                h = (low >> (8 * odd)) & 0x00FF00FF
                if P > LOW:
                    h += ((high >> (8 * odd)) & 0x00FF00FF) << LOW
            out = out + (h,)
    return out
