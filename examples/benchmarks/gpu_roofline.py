"""How fast packed sums can be on a GPU, by their bytes and by the instructions that were counted.

    python examples/benchmarks/gpu_roofline.py --compiled docs/results/gpu/compiled.json \\
        --out docs/results/gpu/roofline.json --figure docs/results/gpu/roofline.png

Nothing is timed. A sum takes at least as long as its bytes take through memory or through the
second-level cache, and as its instructions take to issue, or to go through one unit of the
processors; the largest of these is its bound. Floats have the bound of their bytes alone, which
favours them. What a card is taken to reach stands in `CARDS`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple


class Card(NamedTuple):
    """What a card is known to reach; rates of data sheets less what is lost on the way."""

    name: str
    processors: int
    hertz: float
    memory: float  # bytes a second
    cache: float  # the second-level one, likewise
    cached: float  # bytes of it that hold sources
    #: Instructions of a warp that one processor takes in a clock, by unit.
    fma: float


CARDS = (
    Card("H100 SXM", 132, 1.755e9, 3.0e12, 5.5e12, 40e6, 4),
    Card("A100 80 GB", 108, 1.41e9, 1.75e12, 4.0e12, 30e6, 2),
    Card("L4", 58, 1.6e9, 0.26e12, 1.5e12, 40e6, 4),
    Card("RTX 4090", 128, 2.5e9, 0.92e12, 4.5e12, 60e6, 4),
)
_ISSUE, _ALU, _PRODUCTS, _CONVERT = 4, 2, 2, 0.5
#: Clocks until a row is there, of which an edge waits for two: its column and its source.
_LATENCY = 1400
_REGISTERS, _MOST_WARPS = 65536, 64


class Shape(NamedTuple):
    """A graph, all of whose rows are as long as their mean."""

    name: str
    nodes: int
    edges: int
    #: The bin of its rows.
    most: int


SHAPES = (Shape("Reddit", 232_965, 114_615_892, 512), Shape("arxiv", 169_343, 1_166_243, 32))
_WEIGHT_BYTES = {"count": 0, "whole": 1, "real": 4}
NAMES = {"count": "unweighted", "whole": "int8 weights", "real": "float weights"}


def memory_bound(
    card: Card, shape: Shape, row: int, weight: int, result: int
) -> tuple[float, float]:
    """Seconds through memory and through the cache: of sources once, then of what does not hit,
    and of what is read and written in a stream."""
    size, gathered = shape.nodes * row, shape.edges * -(-row // 32) * 32
    misses = max(0.0, 1 - card.cached / size)
    streams = shape.edges * (4 + weight) + shape.nodes * (12 + result)
    return (size + misses * gathered + streams) / card.memory, (gathered + streams) / card.cache


def float_bound(card: Card, shape: Shape, cols: int, width: int, weight: int) -> float:
    """Of floats of so many bytes, weights likewise, if there are any."""
    return max(memory_bound(card, shape, cols * width, weight and width, cols * width))


def packed_bound(card: Card, shape: Shape, record: dict[str, Any]) -> dict[str, float]:
    """Seconds of each resource for a kernel that was compiled."""
    tile, row = record["tile"], record["row_bytes"]
    weight = _WEIGHT_BYTES[record["mode"]]
    result = row if record["packed"] else 4 * record["cols"]
    blocks = -(-row // 4 // tile["words"])
    memory, cache = memory_bound(card, shape, row, weight, result)
    cache += (blocks - 1) * shape.edges * (4 + weight) / card.cache  # columns are read by each
    step = tile["groups"] * tile["unroll"]
    warps = shape.nodes / tile["rows"] * blocks * tile["warps"]
    trips = (shape.edges / shape.nodes + step / 2) / step  # the last one is half idle
    clocks = card.processors * card.hertz

    def of(*units: str) -> float:
        loop, rest = (sum(record[part].get(u, 0) for u in units) for part in ("loop", "rest"))
        return warps * (trips * loop + rest) / clocks

    resident = min(_MOST_WARPS, _REGISTERS // (-(-record["registers"] // 8) * 8 * 32))
    resident = resident // tile["warps"] * tile["warps"]
    waits = warps * trips / (card.processors * resident) * _LATENCY / card.hertz
    return {
        "memory": memory,
        "cache": cache,
        "issue": of("all") / _ISSUE,
        "alu": of("alu") / _ALU,
        "fma": of("fma") / card.fma + of("imad", "dp4a") / _PRODUCTS + of("convert") / _CONVERT,
        "latency": waits,
        "ends of rows": warps * record["rest"]["all"] / clocks / _ISSUE,
    }


def rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table: each card, shape and kernel, beside the bounds of floats."""
    table = []
    for card in CARDS:
        for shape in SHAPES:
            for record in records:
                if record["most"] != shape.most:
                    continue
                bounds = packed_bound(card, shape, record)
                limits = {unit: s for unit, s in bounds.items() if unit != "ends of rows"}
                by = max(limits, key=lambda unit: limits[unit])
                cols, weight = record["cols"], _WEIGHT_BYTES[record["mode"]]
                peers = {f"FP{8 * w}": float_bound(card, shape, cols, w, weight) for w in (4, 2)}
                table.append(
                    {
                        "card": card.name,
                        "shape": shape.name,
                        "columns": cols,
                        "codes": f"INT{record['bits']}",
                        "sum": NAMES[record["mode"]],
                        "ms": {unit: round(1e3 * s, 4) for unit, s in bounds.items()},
                        "bound_ms": round(1e3 * limits[by], 4),
                        "bound_by": by,
                        "over": {name: round(s / limits[by], 2) for name, s in peers.items()},
                    }
                )
    return table


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    order = list(_WEIGHT_BYTES)
    return record["cols"], record["bits"], order.index(record["mode"])


def _first_tiles(kernels: list[dict[str, Any]], sm: int) -> list[dict[str, Any]]:
    """Sums with packed results, as they run where nothing was timed."""
    chosen = {}
    for record in kernels:
        if record["sm"] == sm and record["mode"] in NAMES and record["packed"]:
            chosen.setdefault((*_key(record), record["most"]), record)
    return sorted(chosen.values(), key=_key)


def _print(table: list[dict[str, Any]]) -> None:
    before = None
    for row in table:
        place = row["card"], row["shape"]
        if place != before:
            print(f"\n### {row['card']}, {row['shape']} shape\n")
            print("| F | codes | sum | bound, ms | by | ends of rows, ms | over FP32 | over FP16 |")
            print("|---|---|---|---|---|---|---|---|")
        before = place
        ends, over = row["ms"]["ends of rows"], row["over"]
        print(
            f"| {row['columns']} | {row['codes']} | {row['sum']} | {row['bound_ms']:.3f} "
            f"| {row['bound_by']} | {ends:.3f} | {over['FP32']:.1f} | {over['FP16']:.1f} |"
        )


def _draw(table: list[dict[str, Any]], path: Path) -> None:
    """What the bounds allow on each card, with weights of edges as a converted model has them."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    kind = {"shape": "Reddit", "columns": 128, "sum": NAMES["whole"]}
    some = [row for row in table if kind.items() <= row.items() and row["codes"] != "INT1"]
    cards = list(dict.fromkeys(row["card"] for row in some))
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for number, codes in enumerate(("INT8", "INT4", "INT2")):
        over = {row["card"]: row["over"]["FP32"] for row in some if row["codes"] == codes}
        at = [place + 0.27 * (number - 1) for place in range(len(cards))]
        bars = axes.bar(
            at, [over[card] for card in cards], 0.25, label=codes, color=_COLOURS[codes]
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks(range(len(cards)), cards)
    axes.set_ylabel("times faster than FP32, bound over bound")
    axes.set_title("Packed sum, Reddit shape, F = 128: bounds, not measured", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


#: Of a palette that is told apart by everybody.
_COLOURS = {"INT8": "#56B4E9", "INT4": "#0072B2", "INT2": "#D55E00"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiled", type=Path, required=True, help="what gpu_compile.py wrote")
    parser.add_argument("--sm", type=int, default=90, help="whose machine code")
    parser.add_argument("--out", type=Path, help="a JSON file with the table")
    parser.add_argument("--figure", type=Path, help="a picture of the bounds")
    args = parser.parse_args()
    kernels = json.loads(args.compiled.read_text())["kernels"]
    table = rows(_first_tiles(kernels, args.sm))
    _print(table)
    if args.figure is not None:
        _draw(table, args.figure)
    if args.out is not None:
        cards = [card._asdict() for card in CARDS]
        lines = ",\n".join(json.dumps(row) for row in table)
        args.out.write_text(f'{{"cards": {json.dumps(cards)}, "sums": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
