"""Whether learned ranges and skewness-aware truncation carry over from GCN to GAT and GraphSAGE.

python examples/benchmarks/carry_over.py --out runs.jsonl --plot carry_over.png

Takes the options of ``accuracy.py``, and shares its runs if given the same file and settings.
Beside the columns of that table stands one with the multipliers of the ranges *kept* where the
search on the first batch put them; what QLR adds is the difference to the next column.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import accuracy
from _recipe import parse_args, reachable
from _runs import Record, mean_std, pyplot, show

KEPT = "INT2, ranges kept"
SHOWN = ("FP32", KEPT, "INT2", "INT2-BT", "INT2-BT*")
Found = dict[tuple[str, str], Sequence[Record]]  # by model and bar


def study(args: argparse.Namespace) -> Found:
    plain, quantized = accuracy.recipes(args)
    own = {column: plain if column[2] == "FP32" else quantized for column in accuracy.columns(args)}
    kept = {
        column: replace(recipe, quant_lr=0.0)
        for column, recipe in own.items()
        if column[2] == "INT2"
    }
    found: Found = {}
    for (_, model, width), records in accuracy.table(args, own).items():
        found[model, width] = records
    for (_, model, _), records in accuracy.table(args, kept).items():
        found[model, KEPT] = records
    return found


def draw(path: Path, found: Found, args: argparse.Namespace) -> None:
    """One group of bars per model."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
    colours = ("tab:gray", "tab:red", "tab:blue", "tab:cyan", "tab:green")
    for index, (name, colour) in enumerate(zip(SHOWN, colours, strict=True)):
        places, points = [], []
        for place, model in enumerate(args.models):
            if (model, name) in found:
                places.append(place + 0.16 * (index - (len(SHOWN) - 1) / 2))
                points.append(mean_std(100 * r["test"] for r in found[model, name]))
        if points:
            means, stds = zip(*points, strict=True)
            axis.bar(places, means, 0.15, yerr=stds, capsize=3, color=colour, label=name)
    axis.set_xticks(range(len(args.models)), args.models)
    axis.set_ylabel("test accuracy (%)")
    lowest = min(100 * r["test"] for records in found.values() for r in records)
    axis.set_ylim(bottom=max(0.0, 5 * (lowest // 5 - 1)))
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.set_title(args.datasets[0])
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


def extend(parser: argparse.ArgumentParser) -> None:
    accuracy.extend(parser)
    parser.set_defaults(
        models=["GCN", "GAT", "SAGE"], widths=["FP32", "INT2", "INT2-BT", "INT2-BT*"]
    )


def main() -> None:
    args = parse_args(__doc__, epochs=200, seeds=10, extend=extend)
    args.datasets = reachable(args, args.datasets[:1])
    found = study(args)
    most = max(map(len, found.values()))
    rows = [
        [model, *(accuracy.cell(found.get((model, name), []), most) for name in SHOWN)]
        for model in args.models
    ]
    print(f"\n{args.datasets[0]}, test accuracy at the best-validation epoch; {most} seeds")
    show(["model", *SHOWN], rows, args.markdown)
    if args.plot is not None:
        draw(args.plot, found, args)


if __name__ == "__main__":
    main()
