"""Tables for people."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned"]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    r"""The lines of a table with its columns side by side.

    Args:
        rows (list): The cells of each row, the same number in all; the head comes first.

    Example:
        >>> aligned([("module", "bits"), ("lin", "4")])
        ['module  bits', 'lin     4']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
