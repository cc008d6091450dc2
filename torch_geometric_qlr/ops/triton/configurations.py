"""How the work of a kernel is divided: the choices there are, the first of which counts favour."""

from __future__ import annotations

import functools

from torch_geometric_qlr.ops.triton.forms import Rows, Sums, Tile

__all__ = ["block_words", "float_tile", "tiles"]

_WARPS = 4
#: Lanes that keep a large GPU busy: with fewer, a row is shared by several groups.
_BUSY = 1 << 17
#: A lane group has that many edges at least, or its last trip is mostly idle.
_FEWEST = 32
#: Sums of this many edges fit into 16 bits: counters of 10 planes, or of 8 at 4 and 8 bits.
_MOST_COUNTED = {1: 1023, 2: 1023, 4: 255, 8: 255}


def block_words(rows: Rows) -> int:
    """What a lane group reads of a row at once: the widest block that wastes an eighth at most;
    8 words are a sector of memory."""
    words = rows.stride // 4
    return next(w for w in (32, 16, 8, 4) if -(-words // w) * w <= words * 1.125)


def _words_of_a_lane(sums: Sums, rows: Rows) -> int:
    """One load of 128 bits, where a lane has registers for all fields of four words."""
    fits = 4 if sums.mode == "heads" or sums.by_source else 2
    return 4 if rows.bits >= fits else 2


def _tile(sums: Sums, rows: Rows, most: int, groups: int, unroll: int, warps: int) -> Tile:
    words = block_words(rows)
    height = 32 * warps * _words_of_a_lane(sums, rows) // (words * groups)
    edges = -(-most // groups)
    planes = edges.bit_length() + edges.bit_length() % 2  # 2 bits are added up in pairs of them
    return Tile(max(1, height), groups, words, unroll, planes, warps)


def _groups(sums: Sums, rows: Rows, most: int, items: int) -> int:
    """As few lane groups as possible: what ends a row is done by each of them."""
    lanes = items * max(1, rows.stride // 4 // _words_of_a_lane(sums, rows))
    groups = 1
    if sums.mode == "count":
        while -(-most // groups) > _MOST_COUNTED[rows.bits]:
            groups *= 2
    while lanes * groups < _BUSY and most // (2 * groups) >= _FEWEST and groups < 16:
        groups *= 2
    return groups


def float_tile(cols: int, most: int, items: int) -> Tile:
    r"""The tile for a bin of rows of floats, four of which a lane reads at once.

    Args:
        cols (int): Columns.
        most (int): No row has more edges.
        items (int): How many rows there are.

    Example:
        >>> float_tile(128, most=32, items=100_000)
        Tile(rows=4, groups=1, words=128, unroll=4, planes=0, warps=4)
    """
    words = min(128, max(4, 1 << (cols - 1).bit_length()))
    groups = 1
    while items * (words // 4) * groups < _BUSY and most // (2 * groups) >= _FEWEST and groups < 16:
        groups *= 2
    return Tile(max(1, 128 * _WARPS // (words * groups)), groups, words, 4, 0, _WARPS)


@functools.lru_cache(maxsize=4096)
def tiles(sums: Sums, rows: Rows, most: int, items: int) -> tuple[Tile, ...]:
    r"""Tiles for a bin of rows.

    Args:
        sums (Sums): What is made of sources.
        rows (Rows): Their layout.
        most (int): No row has more edges.
        items (int): How many rows there are.

    Example:
        >>> rows = Rows(cols=128, bits=2, unit=32, stride=32, used=4, wide=False)
        >>> tiles(Sums("count"), rows, most=32, items=100_000)[0]
        Tile(rows=64, groups=1, words=8, unroll=8, planes=6, warps=4)
    """
    groups = _groups(sums, rows, most, items)
    unroll = 8 if sums.mode == "count" else 4
    first = _tile(sums, rows, most, groups, unroll, _WARPS)
    others = [_tile(sums, rows, most, groups, 2 * unroll, _WARPS)]
    # Floats are added up in the order that groups and warps prescribe: there it stays the same.
    if sums.mode not in ("real", "heads"):
        others.append(_tile(sums, rows, most, groups, unroll, _WARPS // 2))
        if most // (4 * groups) >= _FEWEST and groups <= 4:
            others.append(_tile(sums, rows, most, 4 * groups, unroll, _WARPS))
    return (first, *(tile for tile in others if tile != first))
