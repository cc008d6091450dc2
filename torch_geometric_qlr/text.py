"""Tables for people: in a terminal, and in a notebook."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

__all__ = ["aligned", "as_html", "folded"]

#: A table of more rows than this is folded.
MANY_ROWS = 30

#: A part of a dotted name that is a number, as those of layers in a list are.
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


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


def as_html(rows: Sequence[Sequence[str]], totals: Iterable[str] = ()) -> str:
    r"""A table as a notebook shows it.

    Args:
        rows (list): The cells of each row; the head comes first.
        totals (list): Lines to stand below it.

    Example:
        >>> as_html([("bits",), ("4",)], ["4 < 8"])
        '<table><thead><tr><th>bits</th></tr></thead><tbody><tr><td>4</td>...<p>4 &lt; 8</p>'
    """
    head, *body = rows
    below = "<br>".join(map(html.escape, totals))
    return (
        f"<table><thead>{_html_row('th', head)}</thead>"
        f"<tbody>{''.join(_html_row('td', row) for row in body)}</tbody></table><p>{below}</p>"
    )


def folded(rows: Sequence[tuple[str, ...]], many: int = MANY_ROWS) -> list[tuple[str, ...]]:
    r"""The rows of a table, where a deep model's equal layers are one row.

    Rows that differ in nothing but the first number of their name are one; the rest stays.

    Args:
        rows (list): The cells of each row, without a head; the first is the name of a module.
        many (int): Up to so many rows nothing is folded.

    Example:
        >>> rows = [(f"convs.{i}.lin", "4") for i in (0, 1, 2, 3, 4, 5, 8)] + [("head", "4")]
        >>> folded(rows, many=3)
        [('convs.0-5,8.lin', '4'), ('head', '4')]
        >>> folded(rows) == rows
        True
    """
    if len(rows) <= many:
        return list(rows)
    numbers: dict[tuple[str, str | None, tuple[str, ...]], list[int]] = {}
    for name, *cells in rows:
        found = _NUMBER.search(name)
        if found is None:
            numbers[name, None, tuple(cells)] = []
        else:
            key = (name[: found.start()], name[found.end() :], tuple(cells))
            numbers.setdefault(key, []).append(int(found[0]))
    return [
        (f"{before}{_runs(of)}{after or ''}", *cells)
        for (before, after, cells), of in numbers.items()
    ]


def _runs(numbers: Sequence[int]) -> str:
    """Numbers with those that follow each other as one run: ``0-5,8``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
