"""What cpu_kernels.py, cpu_models.py measured, as one picture.

    python examples/benchmarks/plot_speed.py arxiv.json reddit.json --out speed.png

A panel per table: how many times faster than the fastest FP32 path of PyG each candidate is. Peers
are grey, this package's float kernel is hatched: the part of a bar that reaches beyond it is owed
to fewer bits.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from _runs import pyplot

COLORS = {"INT8": "#9ecae1", "INT4": "#4292c6", "INT2": "#084594"}
OWN = ("own fp32", "own float kernel")


def tables(path: Path) -> list[tuple[str, str, dict[str, float]]]:
    """Title, fastest peer, and ratios over it, of every table in a file."""
    data: dict[str, Any] = json.loads(path.read_text())
    if "tables" in data:
        found = [(t.get("graph"), t.get("fastest_peer"), t["ratios"]) for t in data["tables"]]
    else:
        name = data["graph"]["name"]
        parts = [data[key] for key in ("gcn", "appnp") if key in data]
        found = [(f"{p['title']}, {name} shape", p["fastest_peer"], p["ratios"]) for p in parts]
    return [
        (title, peer, {name: ratios[peer] for name, ratios in by_name.items()})
        for title, peer, by_name in found
        if title is not None
    ]


def style(name: str) -> dict[str, Any]:
    if name in OWN:
        return {"color": "white", "edgecolor": "black", "hatch": "///"}
    return {"color": COLORS.get(name[:4], "#bdbdbd")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    panels = [table for path in args.json for table in tables(path)]
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    longest = max(len(ratios) for _, _, ratios in panels)
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
    for axis, (title, peer, ratios) in zip(axes.flat, panels, strict=False):
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
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f"times faster than {peer}")
    figure.savefig(args.out, dpi=120)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
