"""What comes out of the README's own loop: Adam, weight decay, no search, features of any scale.

    python examples/benchmarks/readme_loop.py --out runs.jsonl --json loop.json --markdown loop.md
    python examples/benchmarks/readme_loop.py --datasets Cora --scales 0.1 1 10 --widths FP32 INT2

Every model starts from scratch and takes the steps of ``qlr.parameter_groups(model, lr=1e-2,
weight_decay=5e-4)``, with a dropout of 0.5 and no distillation. Nothing was searched for on any of
the graphs. `escape` is the first epoch whose loss is below 0.8 of that of a guess: what stalls
escapes late. Runs are resumed from ``--out``.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

from torch_geometric.data import Data

from _recipe import (
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
from _runs import Job, Record, add_run_options, mean_std, run_asked, show, write_rows

NODE_SETS = ("Cora", "CiteSeer", "PubMed", "CS", "Physics", "Photo", "Computers")


def work(place: tuple[str, str], job: Job) -> Record:
    """Trains one model: the scores of its best epoch in percent, and when it escaped."""
    data, classes = graph_of(job, place)
    graph = scaled(data, job["scale"]), classes
    done = run(job["model"], job["width"], job["seed"], graph, recipe_of(job["recipe"]))
    below = 0.8 * math.log(classes)
    escape = next((epoch for epoch, loss in enumerate(done.losses) if loss < below), None)
    return {
        "val": round(100 * done.score.val, 3),
        "test": round(100 * done.score.test, 3),
        "escape": escape,
    }


def scaled(data: Data, scale: float) -> Data:
    """The graph with its features times a number."""
    data = copy.copy(data)
    data.x = scale * data.x
    return data


def jobs(args: argparse.Namespace) -> list[Job]:
    recipe = Recipe(epochs=args.epochs, hidden=args.hidden, quant_lr=None)
    options = itertools.product(
        args.datasets, args.models, args.scales, args.widths, range(args.seeds)
    )
    return [
        {
            "dataset": dataset,
            "model": model,
            "scale": scale,
            "width": width,
            "seed": seed,
            "generated": args.generated,
            "recipe": changes(recipe),
        }
        for dataset, model, scale, width, seed in options
    ]


def rows(records: list[Record]) -> Iterator[dict[str, Any]]:
    """Mean and deviation over the seeds."""
    keys = ("dataset", "model", "scale", "width")
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(record[key] for key in keys), []).append(record)
    for key, of_seeds in found.items():
        escapes = [r["escape"] for r in of_seeds]
        yield {
            **dict(zip(keys, key, strict=True)),
            "seeds": len(of_seeds),
            "val": [round(v, 2) for v in mean_std(r["val"] for r in of_seeds)],
            "test": [round(v, 2) for v in mean_std(r["test"] for r in of_seeds)],
            "escape": escapes,
        }


def table(found: list[dict[str, Any]], widths: list[str]) -> Iterator[list[str]]:
    """A row for each graph, model and scale; test accuracy, and when the models escaped."""
    groups: dict[tuple[str, str, float], dict[str, dict[str, Any]]] = {}
    for row in found:
        key = (row["dataset"], row["model"], row["scale"])
        groups.setdefault(key, {})[row["width"]] = row
    for (dataset, model, scale), by_width in groups.items():
        cells = [_cell(by_width.get(width)) for width in widths]
        yield [dataset, model, f"{scale:g}", *cells]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    when = "/".join("never" if e is None else str(e) for e in row["escape"])
    return f"{plus_minus(*row['test'], row['seeds'])} ({when})"


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--datasets", nargs="+", default=list(NODE_SETS), choices=NODE_SETS)
    parser.add_argument("--models", nargs="+", default=["GCN", "APPNP"], choices=MODELS)
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0], help="of the features")
    parser.add_argument(
        "--widths", nargs="+", default=["FP32", "INT4", "INT2-mixed", "INT2"], choices=WIDTHS
    )
    parser.add_argument("--hidden", type=int, default=64)
    add_run_options(parser)


def main() -> None:
    args = parse_args(__doc__, epochs=120, seeds=3, extend=_extend)
    args.datasets = reachable(args, args.datasets)
    done = run_asked(args, jobs(args), functools.partial(work, place_of(args)))
    found = list(rows(done))
    print("\ntest accuracy at the best-validation epoch (epochs of the escapes)")
    head = ["data set", "model", "features times", *args.widths]
    show(head, table(found, args.widths), args.markdown)
    write_rows(args, found)


if __name__ == "__main__":
    main()
