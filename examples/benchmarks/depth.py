"""Oversmoothing: accuracy, Dirichlet energy and mean average distance, at 2 to 64 layers.

python examples/benchmarks/depth.py --out depth.jsonl --plot depth.png
python examples/benchmarks/depth.py --models SMP APPNP --width "INT2-BT*" --depths 2 8 32

Energy is the Rayleigh quotient of the answers (``relative=True``), so that it does not depend on
their scale; distance is the MAD over the edges. Depth is propagation steps for SMP, EMP and APPNP,
and layers for the others. Runs are resumed from ``--out``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from pathlib import Path

from _recipe import (
    DATASETS,
    MODELS,
    WIDTHS,
    Recipe,
    changes,
    graph_of,
    parse_args,
    place_of,
    plus_minus,
    reachable,
    recipe_of,
    run,
)
from _runs import Job, Record, mean_std, pyplot, recorded, run_all, show
from torch_geometric_qlr.metrics import dirichlet_energy, mean_average_distance

MEASURES = {"test": "accuracy", "energy": "energy", "mad": "distance"}
AXES = {
    "test": "test accuracy",
    "energy": "relative Dirichlet energy",
    "mad": "mean average distance",
}


def work(place: tuple[str, str], job: Job) -> Record:
    """Trains one model of one depth, and looks at what it answers."""
    graph = graph_of(job, place)
    done = run(job["model"], job["width"], job["seed"], graph, recipe_of(job["recipe"]))
    edges = graph[0].edge_index
    return {
        "val": round(done.score.val, 4),
        "test": round(done.score.test, 4),
        "energy": float(dirichlet_energy(done.logits, edges, relative=True)),
        "mad": float(mean_average_distance(done.logits, edges)),
    }


def recipe(args: argparse.Namespace, depth: int) -> Recipe:
    return Recipe(epochs=args.epochs, hidden=args.hidden, depth=depth, dropout=args.dropout)


def jobs(args: argparse.Namespace) -> list[Job]:
    return [
        {
            "model": model,
            "width": args.width,
            "seed": seed,
            "dataset": args.dataset,
            "generated": args.generated,
            "depth": depth,
            "recipe": changes(recipe(args, depth)),
        }
        for model, depth, seed in itertools.product(args.models, args.depths, range(args.seeds))
    ]


def draw(args: argparse.Namespace, found: dict[tuple[str, int], list[Record]]) -> None:
    """One panel per measure, one line per model."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for axis, measure in zip(axes, MEASURES, strict=True):
        for index, model in enumerate(args.models):
            depths = [depth for depth in args.depths if (model, depth) in found]
            points = [mean_std(r[measure] for r in found[model, depth]) for depth in depths]
            if points:
                means, stds = zip(*points, strict=True)
                # Dashed, so that a line under another one shows.
                style = "o-" if index % 2 == 0 else "s--"
                axis.errorbar(depths, means, yerr=stds, fmt=style, capsize=3, label=model)
        axis.set_xscale("log", base=2)
        axis.set_xticks(args.depths, [str(depth) for depth in args.depths])
        axis.set_ylim(0, 1)
        axis.set_xlabel("depth")
        axis.set_ylabel(AXES[measure])
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.suptitle(f"{args.dataset}, {args.width}")
    figure.savefig(args.plot, dpi=120)
    print(f"written: {args.plot}")


def extend(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset", default="Cora", choices=DATASETS)
    add(
        "--models",
        nargs="+",
        default=["SMP", "APPNP", "GCN", "PairNorm", "DropEdge"],
        choices=MODELS,
    )
    add("--width", default="FP32", choices=list(WIDTHS))
    add("--depths", nargs="+", type=int, default=[2, 4, 8, 16, 32, 64])
    add("--hidden", type=int, default=64)
    add("--dropout", type=float, default=0.5)
    add("--out", type=Path, help="JSON lines of the runs; those in it are not run again")
    add("--recorded", action="store_true", help="only the runs that --out holds, no new ones")
    add("--markdown", type=Path, help="write the table to this file")
    add("--plot", type=Path, help="draw the table to this file")
    add("--workers", type=int, default=1, help="processes, of one thread each")


def main() -> None:
    args = parse_args(__doc__, epochs=200, seeds=3, extend=extend)
    reachable(args, [args.dataset])
    found: dict[tuple[str, int], list[Record]] = {}
    todo = recorded(jobs(args), args.out) if args.recorded else jobs(args)
    for record in run_all(todo, functools.partial(work, place_of(args)), args.out, args.workers):
        found.setdefault((record["model"], record["depth"]), []).append(record)
    rows = []
    for (model, depth), records in found.items():
        accuracy, spread = mean_std(100 * r["test"] for r in records)
        energy, _ = mean_std(r["energy"] for r in records)
        distance, _ = mean_std(r["mad"] for r in records)
        row = [model, str(depth), plus_minus(accuracy, spread, len(records))]
        rows.append([*row, f"{energy:.2e}", f"{distance:.2e}"])
    show(["model", "depth", *MEASURES.values()], rows, args.markdown)
    if args.plot is not None:
        draw(args, found)


if __name__ == "__main__":
    main()
