"""What cpu_kernels.py, cpu_models.py, cpu_batches.py measured, as one picture and as tables.

    python examples/benchmarks/plot_speed.py arxiv.json reddit.json --out speed.png
    python examples/benchmarks/plot_speed.py arxiv.json reddit.json --markdown speed.md
    python examples/benchmarks/plot_speed.py arxiv.json reddit.json --summary s.md --into README.md

A panel per table: how many times faster than the fastest FP32 path of PyG each candidate is. Peers
are grey, this package's float kernel is hatched: the part of a bar that reaches beyond it is owed
to fewer bits. Bars with dots have another configuration than the default one, which they name.

The summary has a line per model: the default configuration with float features and with packed
ones, over the strongest FP32 peer there is, which nobody's library calls, and over the fastest path
of PyG; and one range per tensor, where that was measured. `--into` writes it between two marks of
another file.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from _bags import BAG
from _runs import pyplot
from _timing import Times, markdown

COLORS = {"INT8": "#9ecae1", "INT4": "#4292c6", "INT2": "#084594"}
OWN = ("own fp32", "own float kernel")

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


def style(name: str) -> dict[str, Any]:
    if name in OWN:
        return {"color": "white", "edgecolor": "black", "hatch": "///"}
    # The default configuration stands out.
    other = any(option in name for option in OPTIONS)
    option = {"hatch": "...", "edgecolor": "white"} if other else {}
    return {"color": COLORS.get(name[:4], "#bdbdbd"), **option}


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
        draw(args.out, [table for table in found if table.fastest is not None])


def draw(path: Path, panels: list[Table]) -> None:
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    longest = max(len(panel.ratios) for panel in panels)
    plt = pyplot()
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(7 * columns, (0.28 * longest + 1.1) * rows),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        peer = str(panel.fastest)
        ratios = {name: by_peer[peer] for name, by_peer in panel.ratios.items()}
        # Packing is a cost beside the sums, not another way to take them.
        names = sorted(
            (name for name in ratios if not name.endswith("quantize and pack")),
            key=lambda name: ratios[name],
        )
        for place, name in enumerate(names):
            axis.barh(place, ratios[name], **style(name))
            axis.text(ratios[name], place, f" {ratios[name]:.1f}", va="center", fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xlim(0, 1.1 * max(ratios[name] for name in names))
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(f"times faster than {peer}")
    figure.savefig(path, dpi=120)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
