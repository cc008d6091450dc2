"""What cpu_kernels.py, cpu_models.py measured, as one picture and as tables.

    python examples/benchmarks/plot_speed.py arxiv.json reddit.json --out speed.png
    python examples/benchmarks/plot_speed.py arxiv.json reddit.json --markdown speed.md

A panel per table: how many times faster than the fastest FP32 path of PyG each candidate is. Peers
are grey, this package's float kernel is hatched: the part of a bar that reaches beyond it is owed
to fewer bits.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _runs import pyplot
from _timing import Times, markdown

COLORS = {"INT8": "#9ecae1", "INT4": "#4292c6", "INT2": "#084594"}
OWN = ("own fp32", "own float kernel")


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
    name = data["graph"]["name"]
    parts = [data[key] for key in ("gcn", "appnp") if key in data]
    return [
        Table(f"{p['title']}, {name} shape", p["fastest_peer"], p["seconds"], p["ratios"])
        for p in parts
    ]


def style(name: str) -> dict[str, Any]:
    if name in OWN:
        return {"color": "white", "edgecolor": "black", "hatch": "///"}
    return {"color": COLORS.get(name[:4], "#bdbdbd")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="write the picture here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    args = parser.parse_args()
    found = [table for path in args.json for table in tables(path)]
    if args.markdown is not None:
        args.markdown.write_text("\n".join(map(str, found)))
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
