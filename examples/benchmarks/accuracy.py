"""Accuracy of every model at every width: test accuracy at the best-validation epoch, over seeds.

python examples/benchmarks/accuracy.py --out runs.jsonl              the table on Cora, 10 seeds
python examples/benchmarks/accuracy.py --out runs.jsonl --search     choose the settings first
python examples/benchmarks/accuracy.py --models SMP APPNP --widths FP32 "INT2-BT*" --epochs 300 \\
    --placement strict --distill 3 --ema 0.95 --quantized-weight-decay 1e-5 --float-dropout 0.8 \\
    --dropout 0.2 --config '{"zero_aligned": true}'

Runs are written to ``--out`` as they finish, and what is there is not run again. The float twin
under the same seed is the teacher of ``--distill``. ``--search`` looks at the validation nodes
only, under seeds of its own. ``--placement strict`` quantizes everything that the paper does at the
width of the column; the default leaves outputs of layers and of aggregations alone.

Dropout doubles what a quantizer behind it sees in training, at a rate of one half. At 2 bits a
range that has learned this may round all of a hidden layer to zero in evaluation, so quantized
models want little of it, and distillation in its place.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from _recipe import (
    DATASETS,
    MODELS,
    WIDTHS,
    Recipe,
    Run,
    load,
    parse_args,
    reachable,
    run,
    source_of,
)
from _runs import Job, Record, mean_std, pyplot, run_all, show

FIRST_SEARCH_SEED = 1000
GRID = {"lr": [0.01, 0.02], "dropout": [0.5, 0.8], "weight_decay": [5e-4, 5e-5]}
#: What is compared under the same settings: a search looks at their mean.
TWINS = ("SMP", "APPNP")


# One run ##########################################################################################


@functools.lru_cache(maxsize=4)
def float_twin(model: str, seed: int, source: tuple[Any, ...], recipe: Recipe) -> Run:
    """The model in full precision; kept, because it teaches several widths."""
    return run(model, "FP32", seed, load(*source), recipe)


def work(job: Job) -> Record:
    """Runs one job, in whichever process it lands."""
    source = tuple(job["source"])
    recipe = _recipe(job["recipe"])
    if job["width"] == "FP32":
        done = float_twin(job["model"], job["seed"], source, recipe)
    else:

        def teacher() -> Tensor:
            twin = _recipe(job["float_recipe"])
            return float_twin(job["model"], job["seed"], source, twin).logits

        done = run(job["model"], job["width"], job["seed"], load(*source), recipe, teacher)
    return {"val": done.score.val, "test": done.score.test, "last_test": done.last.test}


def _recipe(values: dict[str, Any]) -> Recipe:
    pairs = {k: tuple((n, v) for n, v in values[k]) for k in ("propagation", "config")}
    return Recipe(**{**values, **pairs})


# All runs #########################################################################################


def recipes(args: argparse.Namespace) -> tuple[Recipe, Recipe]:
    """What float and quantized models are trained with, unless a search finds better."""
    plain = Recipe(
        epochs=args.epochs,
        hidden=args.hidden,
        depth=args.depth,
        lr=args.lr,
        dropout=args.float_dropout,
        weight_decay=args.weight_decay,
        propagation=tuple(json.loads(args.propagation).items()),
    )
    quantized = replace(
        plain,
        epochs=args.quantized_epochs or args.epochs,
        dropout=args.dropout,
        weight_decay=args.quantized_weight_decay or args.weight_decay,
        quant_lr=args.quant_lr,
        distill=args.distill,
        temperature=args.temperature,
        ema=args.ema,
        wide_logits=args.wide_logits,
        placement=args.placement,
        config=tuple(json.loads(args.config).items()),
    )
    return replace(plain, ema=args.float_ema), quantized


Column = tuple[str, str, str]  # data set, model, width


def columns(args: argparse.Namespace) -> list[Column]:
    return list(itertools.product(args.datasets, args.models, args.widths))


def job(args: argparse.Namespace, column: Column, seed: int, own: Recipe, twin: Recipe) -> Job:
    dataset, model, width = column
    return {
        "dataset": dataset,
        "model": model,
        "width": width,
        "seed": seed,
        "source": source_of(args, dataset),
        "recipe": asdict(own),
        "float_recipe": asdict(twin) if own.distill else None,
    }


def candidates(start: Recipe, grid: dict[str, list[Any]]) -> Iterator[Recipe]:
    for values in itertools.product(*grid.values()):
        yield replace(start, **dict(zip(grid, values, strict=True)))


def group(column: Column) -> Column:
    """What shares a setting: the twins of a width, or a column on its own."""
    dataset, model, width = column
    return dataset, "+".join(TWINS) if model in TWINS else model, width


def search(args: argparse.Namespace, start: dict[Column, Recipe]) -> dict[Column, Recipe]:
    """For every column the setting with the best mean validation accuracy."""
    grid = json.loads(args.grid)
    seeds = range(FIRST_SEARCH_SEED, FIRST_SEARCH_SEED + args.search_seeds)
    twin, _ = recipes(args)
    tried: dict[tuple[Column, Recipe], list[Job]] = {}
    for column, recipe in start.items():
        for candidate in candidates(recipe, grid):
            jobs = [job(args, column, seed, candidate, twin) for seed in seeds]
            tried.setdefault((group(column), candidate), []).extend(jobs)
    records = iter(
        run_all([one for jobs in tried.values() for one in jobs], work, args.out, args.workers)
    )
    best: dict[Column, tuple[float, Recipe]] = {}
    for (shared, candidate), jobs in tried.items():
        val, std = mean_std(next(records)["val"] for _ in jobs)
        setting = {name: getattr(candidate, name) for name in grid}
        print(f"{' '.join(shared)}: validation {100 * val:.2f} +- {100 * std:.2f}  {setting}")
        if shared not in best or val > best[shared][0]:
            best[shared] = (val, candidate)
    for shared, (val, chosen) in best.items():
        setting = {name: getattr(chosen, name) for name in grid}
        print(f"chosen for {' '.join(shared)}: {setting}, validation {100 * val:.2f}", flush=True)
    return {column: best[group(column)][1] for column in start}


def table(args: argparse.Namespace, chosen: dict[Column, Recipe]) -> dict[Column, list[Record]]:
    """All runs of the table, by column."""
    twin, _ = recipes(args)
    jobs = [
        job(args, column, seed, own, chosen.get((*column[:2], "FP32"), twin))
        for column, own in chosen.items()
        for seed in range(args.seeds)
    ]
    # Widths of a seed follow one another, so that a process finds their teacher at hand.
    jobs.sort(key=lambda one: (one["dataset"], one["model"], one["seed"]))
    found: dict[Column, list[Record]] = {column: [] for column in chosen}
    for record in run_all(jobs, work, args.out, args.workers):
        found[record["dataset"], record["model"], record["width"]].append(record)
    return found


# What comes out ###################################################################################


def cell(records: list[Record]) -> str:
    mean, std = mean_std(100 * record["test"] for record in records)
    return f"{mean:.1f} +- {std:.1f}"


def draw(args: argparse.Namespace, found: dict[Column, list[Record]]) -> None:
    """Accuracy over the widths, one line per model, one panel per data set."""
    plt = pyplot()
    count = len(args.datasets)
    figure, axes = plt.subplots(
        1, count, figsize=(6 * count, 4.2), squeeze=False, layout="constrained"
    )
    for axis, dataset in zip(axes[0], args.datasets, strict=True):
        for model in args.models:
            points = [
                mean_std(100 * r["test"] for r in found[dataset, model, width])
                for width in args.widths
            ]
            means, stds = zip(*points, strict=True)
            axis.errorbar(args.widths, means, yerr=stds, marker="o", capsize=3, label=model)
        axis.set_title(dataset)
        axis.set_ylabel("test accuracy (%)")
        axis.grid(axis="y", alpha=0.3)
        axis.legend(ncols=2, fontsize="small")
    figure.savefig(args.plot, dpi=120)
    print(f"written: {args.plot}")


def extend(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--datasets", nargs="+", default=["Cora"], choices=DATASETS)
    add("--models", nargs="+", default=list(MODELS), choices=MODELS)
    add("--widths", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    add("--out", type=Path, help="JSON lines of the runs; those in it are not run again")
    add("--markdown", type=Path, help="write the table to this file")
    add("--plot", type=Path, help="draw the table to this file")
    add("--workers", type=int, default=1, help="processes, of one thread each")
    add("--hidden", type=int, default=64)
    add("--depth", type=int, default=0, help="0: 10 propagation steps, 2 layers")
    add("--lr", type=float, default=0.01)
    add("--dropout", type=float, default=0.5, help="of quantized models")
    add("--float-dropout", type=float, default=0.5)
    add("--float-ema", type=float, default=0.0)
    add("--weight-decay", type=float, default=5e-4)
    add("--quantized-weight-decay", type=float, help="(default: that of float models)")
    add("--quantized-epochs", type=int, help="(default: those of float models)")
    add("--quant-lr", type=float, default=0.01, help="of the learned ranges")
    add("--distill", type=float, default=0.0, help="weight of the float twin's answers")
    add("--temperature", type=float, default=1.0)
    add("--ema", type=float, default=0.0, help="decay of averaged weights; 0: no averaging")
    add("--wide-logits", type=int, default=0, help="bits of the last Linear's output")
    add("--placement", default="default", choices=["default", "strict", "paper"])
    add("--propagation", default="{}", help="JSON: options of SMP and EMP")
    add("--config", default="{}", help="JSON: further fields of QLRConfig")
    add("--search", action="store_true", help="choose on the validation nodes first")
    add("--grid", default=json.dumps(GRID), help="JSON: what --search tries, lists by field")
    add("--search-only", action="store_true", help="stop after the search")
    add("--search-seeds", type=int, default=2)


def main() -> None:
    args = parse_args(__doc__, epochs=200, seeds=10, extend=extend)
    args.datasets = reachable(args, args.datasets)
    plain, quantized = recipes(args)
    chosen = {column: plain if column[2] == "FP32" else quantized for column in columns(args)}
    if args.search:
        chosen = search(args, chosen)
        if args.search_only:
            return
    found = table(args, chosen)
    print(
        f"\ntest accuracy at the best-validation epoch; {args.seeds} seeds, placement "
        f"{args.placement}"
    )
    head = ["data set", "model", *args.widths]
    rows = [
        [
            dataset + " (generated)" * args.generated,
            model,
            *(cell(found[dataset, model, width]) for width in args.widths),
        ]
        for dataset, model in itertools.product(args.datasets, args.models)
    ]
    show(head, rows, args.markdown)
    if args.plot is not None:
        draw(args, found)


if __name__ == "__main__":
    main()
