"""What cpu_kernels.py, cpu_models.py, cpu_batches.py measured, as one picture and as tables.

    python examples/benchmarks/plot_speed.py arxiv.json reddit.json --out speed.png
    python examples/benchmarks/plot_speed.py arxiv.json reddit.json --markdown speed.md
    python examples/benchmarks/plot_speed.py arxiv.json reddit.json --summary s.md --into README.md

In the picture three bars per model: how many times faster than the fastest FP32 path of PyG it is,
in the default configuration or the nearest one that was measured, and marks for the strongest peer.

The summary has a line per model: the default configuration with float features and with packed
ones, over the strongest FP32 peer there is, which nobody's library calls, and over the fastest path
of PyG; and one range per tensor, where that was measured. `--into` writes it between two marks of
another file.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from _bags import BAG
from _runs import pyplot
from _timing import Times, markdown

COLORS = {"INT8": "#9ecae1", "INT4": "#4292c6", "INT2": "#084594"}

WIDTHS = ("INT8", "INT4", "INT2")
#: Rows of a table that the summary shows, by the end of their names.
ROWS = {
    "float x": ", float x",
    "packed x": ", packed x",
    "per tensor, float x": ", per tensor, float x",
    "per tensor, packed x": ", per tensor, packed x",
}
STRONGEST, PYG = "over the strongest FP32 peer", "over PyG"
#: What belongs to no float peer's name, and marks another configuration than the default one.
OPTIONS = ("per tensor", "float edges")
MARKS = ("<!-- speed:begin -->", "<!-- speed:end -->")

T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """Times of candidates; a product has no fastest peer among the graph's."""

    title: str
    fastest: str | None
    times: Times
    ratios: dict[str, dict[str, float]]

    def __str__(self) -> str:
        fastest = "" if self.fastest is None else f" \N{EM DASH} fastest FP32 peer: {self.fastest}"
        peers = list(next(iter(self.ratios.values())))
        return f"**{self.title}**{fastest}\n\n{markdown(self.times, peers)}\n"


def tables(path: Path) -> list[Table]:
    """All tables in a file of either script."""
    data: dict[str, Any] = json.loads(path.read_text())
    if "tables" in data:
        return [
            Table(
                *(t.get("graph") or t["dense"], t.get("fastest_peer")),
                *(t["seconds"], t["ratios"]),
            )
            for t in data["tables"]
        ]
    graph = data["graph"].get("title") or f"{data['graph']['name']} shape"
    parts = [data[key] for key in ("gcn", "gin", "sage", "appnp", "smp") if key in data]
    return [
        Table(
            *(f"{p['title']}, {graph}", p["fastest_peer"]),
            *(named(p["seconds"]), named(p["ratios"])),
        )
        for p in parts
    ]


def named(rows: dict[str, T]) -> dict[str, T]:
    """Rows under names that say the configuration.

    Files of release 0.1 have one configuration, a range per tensor, and do not name it.
    """
    if any(mark in name for name in rows for mark in (*OPTIONS, BAG)):
        return rows
    return {re.sub("^(INT\\d+), ", r"\1, per tensor, ", name): row for name, row in rows.items()}


# In short ########################################################################################


def summary(found: list[Table]) -> str:
    """A line per model: how many times faster than its strongest peer, and than PyG."""
    models = [table for table in found if any(name.endswith(" x") for name in table.ratios)]
    columns = [
        (peer, suffix, f"{title}, {peer}")
        for peer in (STRONGEST, PYG)
        for title, suffix in ROWS.items()
        if any(peer_of(table, peer) and WIDTHS[0] + suffix in table.ratios for table in models)
    ]
    header = ["model", *(f"{title}: {' / '.join(WIDTHS)}" for *_, title in columns)]
    lines = [header, ["---"] * len(header)]
    for table in models:
        lines.append([table.title, *(cell(table, *column) for *column, _ in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def peer_of(table: Table, kind: str) -> str | None:
    """The peer of a column; the strongest is known where one was called by hand."""
    if kind == PYG:
        return table.fastest
    by_hand = [name for name in table.times if name.endswith("by hand")]
    peers = [name for name in (table.fastest, *by_hand) if name is not None]
    return min(peers, key=lambda name: median(table.times[name])) if by_hand else None


def cell(table: Table, kind: str, suffix: str) -> str:
    """The three widths; bold where the converted model is the slower one."""
    rows, peer = [table.ratios.get(width + suffix) for width in WIDTHS], peer_of(table, kind)
    if None in rows or peer is None:
        return "\N{EN DASH}"
    ratios = [row[peer] for row in rows if row is not None]
    return " / ".join(shown(r) if r >= 1 else f"**{shown(r)}**" for r in ratios)


def shown(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 1.05 else f"{ratio:.2f}"


def write_into(path: Path, text: str) -> None:
    """Replaces what is between the marks of a file."""
    before, rest = path.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    path.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


# As a picture ####################################################################################


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="write the picture here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--summary", type=Path, help="write a line per model here")
    parser.add_argument("--into", type=Path, help="and between the marks of this file")
    args = parser.parse_args()
    found = [table for path in args.json for table in tables(path)]
    if args.markdown is not None:
        args.markdown.write_text("\n".join(map(str, found)))
    if args.summary is not None:
        args.summary.write_text(summary(found) + "\n")
    if args.into is not None:
        write_into(args.into, summary(found))
    if args.out is not None:
        draw(args.out, found)


def draw(path: Path, found: list[Table]) -> None:
    """A group of bars per model: its configuration nearest to the default one."""
    models = [(table, kind) for table in found if (kind := drawn(table)) is not None]
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6, 0.6 + 0.52 * len(models)), layout="constrained")
    for place, (table, kind) in enumerate(models):
        strongest = peer_of(table, STRONGEST)
        for number, width in enumerate(WIDTHS):
            row = table.ratios[width + ROWS[kind]]
            ratio, y = row[str(table.fastest)], place + 0.26 * (number - 1)
            axis.barh(y, ratio - 1, 0.24, left=1, color=COLORS[width])
            text = {"ha": "left" if ratio >= 1 else "right", "va": "center", "fontsize": 7}
            axis.annotate(shown(ratio), (ratio, y), (3, 0), textcoords="offset points", **text)
            if strongest not in (None, table.fastest):
                axis.plot(row[strongest], y, "|", color="black", markersize=6)
    axis.set_yticks(range(len(models)), [table.title for table, _ in models], fontsize=8)
    axis.invert_yaxis()
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.margins(x=0.14)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel("times faster than PyG's fastest path", fontsize=8)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[width]) for width in WIDTHS]
    mark = plt.Line2D([], [], color="black", marker="|", linestyle="none")
    labels = [*WIDTHS, "over the strongest FP32 peer"]
    figure.legend([*handles, mark], labels, loc="outside upper center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=160)
    print(f"written: {path}")


def drawn(table: Table) -> str | None:
    """What of a model is drawn; nothing of a table of single operations."""
    kinds = (kind for kind, suffix in ROWS.items() if WIDTHS[0] + suffix in table.ratios)
    return next(kinds, None) if table.fastest is not None else None


if __name__ == "__main__":
    main()
