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
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from _recipe import (
    DATASETS,
    MODELS,
    WIDTHS,
    Recipe,
    Run,
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

FIRST_SEARCH_SEED = 1000
GRID = {"lr": [0.01, 0.02], "dropout": [0.5, 0.8], "weight_decay": [5e-4, 5e-5]}
#: What is compared under the same settings: a search looks at their mean.
TWINS = ("SMP", "APPNP")


# One run ##########################################################################################


@functools.lru_cache(maxsize=4)
def float_twin(
    model: str, seed: int, dataset: str, generated: bool, place: tuple[str, str], recipe: Recipe
) -> Run:
    """The model in full precision; kept, because it teaches several widths."""
    graph = graph_of({"dataset": dataset, "generated": generated}, place)
    return run(model, "FP32", seed, graph, recipe)


def work(place: tuple[str, str], job: Job) -> Record:
    """Runs one job, in whichever process it lands."""
    recipe = recipe_of(job["recipe"])
    twin = functools.partial(
        float_twin, job["model"], job["seed"], job["dataset"], job["generated"], place
    )
    if job["width"] == "FP32":
        done = twin(recipe)
    else:

        def teacher() -> Tensor:
            return twin(recipe_of(job["float_recipe"])).logits

        graph = graph_of(job, place)
        done = run(job["model"], job["width"], job["seed"], graph, recipe, teacher)
    scores = {"val": done.score.val, "test": done.score.test, "last_test": done.last.test}
    return {name: round(value, 4) for name, value in scores.items()} | {"epochs": done.epochs}


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
        lr=args.quantized_lr or args.lr,
        dropout=args.dropout,
        weight_decay=args.quantized_weight_decay or args.weight_decay,
        quant_lr=args.quant_lr,
        distill=args.distill,
        temperature=args.temperature,
        ema=args.ema,
        wide_logits=args.wide_logits,
        placement=args.placement,
        propagation=tuple(json.loads(args.quantized_propagation or args.propagation).items()),
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
        "generated": args.generated,
        "recipe": changes(own),
        "float_recipe": changes(twin) if own.distill else None,
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
    everything = [one for jobs in tried.values() for one in jobs]
    place = functools.partial(work, place_of(args))
    records = iter(run_all(everything, place, args.out, args.workers))
    best: dict[Column, tuple[float, Recipe]] = {}
    for (shared, candidate), jobs in tried.items():
        val, std = mean_std(next(records)["val"] for _ in jobs)
        setting = {name: getattr(candidate, name) for name in grid}
        found = plus_minus(100 * val, 100 * std, len(jobs), digits=2)
        print(f"{' '.join(shared)}: validation {found}  {setting}")
        if shared not in best or val > best[shared][0]:
            best[shared] = (val, candidate)
    for shared, (val, chosen) in best.items():
        setting = {name: getattr(chosen, name) for name in grid}
        print(f"chosen for {' '.join(shared)}: {setting}, validation {100 * val:.2f}", flush=True)
    return {column: best[group(column)][1] for column in start}


Found = dict[Column, list[Record]]


def table(args: argparse.Namespace, chosen: dict[Column, Recipe]) -> Found:
    """All runs of the table, by column."""
    twin, _ = recipes(args)
    jobs = [
        job(args, column, seed, own, chosen.get((*column[:2], "FP32"), twin))
        for column, own in chosen.items()
        for seed in range(args.seeds)
    ]
    # Widths of a model follow one another, so that a process finds their teacher at hand.
    jobs.sort(key=lambda one: (one["dataset"], one["seed"], one["model"]))
    if args.recorded:
        jobs = recorded(jobs, args.out)
    found: Found = {}
    for record in run_all(jobs, functools.partial(work, place_of(args)), args.out, args.workers):
        found.setdefault((record["dataset"], record["model"], record["width"]), []).append(record)
    return found


# What comes out ###################################################################################


def write(path: Path, found: Found) -> None:
    """Results without the rest: a line per column, with the scores of each seed."""
    lines = []
    for (dataset, model, width), records in found.items():
        line = {"dataset": dataset, "model": model, "width": width, "recipe": records[0]["recipe"]}
        scores = {key: [r[key] for r in records] for key in ("seed", "val", "test")}
        lines.append(json.dumps({**line, **scores}))
    path.write_text("\n".join(lines) + "\n")


def read(paths: Sequence[Path]) -> Found:
    """What :func:`write` has written."""
    found: Found = {}
    for line in (json.loads(text) for path in paths for text in path.read_text().splitlines()):
        keys = ("seed", "val", "test")
        found[line["dataset"], line["model"], line["width"]] = [
            dict(zip(keys, scores, strict=True))
            for scores in zip(*(line[key] for key in keys), strict=True)
        ]
    return found


def cell(records: Sequence[Record], most: int) -> str:
    """Mean and standard deviation, and of how many seeds if others have more."""
    if not records:
        return ""
    mean, std = mean_std(100 * record["test"] for record in records)
    return plus_minus(mean, std, len(records)) + f" ({len(records)})" * (len(records) < most)


def difference(found: Found, dataset: str, width: str) -> str:
    """What SMP gains over APPNP under the same seeds, and the standard error of that."""
    own, control = (
        {r["seed"]: 100 * r["test"] for r in found.get((dataset, model, width), [])}
        for model in TWINS
    )
    pairs = [own[seed] - control[seed] for seed in own if seed in control]
    if len(pairs) < 2:
        return ""
    mean, std = mean_std(pairs)
    return f"{mean:+.2f} ± {std / math.sqrt(len(pairs)):.2f}"


def present(found: Found, place: int, order: Sequence[str]) -> list[str]:
    return [name for name in order if any(column[place] == name for column in found)]


def draw(path: Path, found: Found) -> None:
    """Accuracy over the widths, one line per model, one panel per data set."""
    plt = pyplot()
    datasets, models = present(found, 0, DATASETS), present(found, 1, MODELS)
    widths = present(found, 2, list(WIDTHS))
    figure, axes = plt.subplots(
        1,
        len(datasets),
        figsize=(1.5 + 6 * len(datasets), 4.6),
        squeeze=False,
        layout="constrained",
    )
    for axis, dataset in zip(axes[0], datasets, strict=True):
        for index, model in enumerate(models):
            shown = [i for i, width in enumerate(widths) if (dataset, model, width) in found]
            points = [
                mean_std(100 * r["test"] for r in found[dataset, model, widths[i]]) for i in shown
            ]
            if not points:
                continue
            means, stds = zip(*points, strict=True)
            # Side by side, so that error bars do not hide one another.
            places = [i + 0.08 * (index - (len(models) - 1) / 2) for i in shown]
            axis.errorbar(
                places, means, yerr=stds, marker=".", capsize=2, label=model, color=f"C{index}"
            )
        axis.set_xticks(range(len(widths)), widths)
        axis.set_xlim(-0.5, len(widths) - 0.5)
        axis.set_title(dataset)
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("test accuracy (%)")
    # One legend for all panels, of the lines in any of them.
    lines = {
        label: line
        for axis in axes[0]
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    named = {model: lines[model] for model in models}
    axes[0][-1].legend(named.values(), named.keys(), loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


def report(args: argparse.Namespace, found: Found) -> None:
    widths = present(found, 2, list(WIDTHS))
    most = max(map(len, found.values()))
    rows = []
    for dataset in present(found, 0, DATASETS):
        name = dataset + " (generated)" * args.generated
        for model in present(found, 1, MODELS):
            records = [found.get((dataset, model, width), []) for width in widths]
            if any(records):
                rows.append([name, model, *(cell(of_width, most) for of_width in records)])
        gains = [difference(found, dataset, width) for width in widths]
        if any(gains):
            rows.append([name, "SMP - APPNP", *gains])
    print(
        f"\ntest accuracy at the best-validation epoch, mean ± standard deviation over {most} "
        f"seeds (fewer: in brackets); differences ± standard error"
    )
    show(["data set", "model", *widths], rows, args.markdown)
    if args.json is not None:
        write(args.json, found)
    if args.plot is not None:
        draw(args.plot, found)


def extend(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--datasets", nargs="+", default=["Cora"], choices=DATASETS)
    add("--models", nargs="+", default=list(MODELS), choices=MODELS)
    add("--widths", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    add("--out", type=Path, help="JSON lines of the runs; those in it are not run again")
    add("--recorded", action="store_true", help="only the runs that --out holds, no new ones")
    add("--json", type=Path, help="write the scores of the table to this file, a line per column")
    add("--show", nargs="+", type=Path, help="read such files, and train nothing")
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
    add("--quantized-lr", type=float, help="(default: that of float models)")
    add("--quantized-epochs", type=int, help="(default: those of float models)")
    add("--quant-lr", type=float, default=0.01, help="of the learned ranges")
    add("--distill", type=float, default=0.0, help="weight of the float twin's answers")
    add("--temperature", type=float, default=1.0)
    add("--ema", type=float, default=0.0, help="decay of averaged weights; 0: no averaging")
    add("--wide-logits", type=int, default=0, help="bits of the last Linear's output")
    add("--placement", default="default", choices=["default", "strict", "paper"])
    add("--propagation", default="{}", help="JSON: options of SMP and EMP")
    add("--quantized-propagation", help="JSON (default: those of float models)")
    add("--config", default="{}", help="JSON: further fields of QLRConfig")
    add("--search", action="store_true", help="choose on the validation nodes first")
    add("--grid", default=json.dumps(GRID), help="JSON: what --search tries, lists by field")
    add("--search-only", action="store_true", help="stop after the search")
    add("--search-seeds", type=int, default=2)


def main() -> None:
    args = parse_args(__doc__, epochs=200, seeds=10, extend=extend)
    if args.show:
        report(args, read(args.show))
        return
    args.datasets = reachable(args, args.datasets)
    plain, quantized = recipes(args)
    chosen = {column: plain if column[2] == "FP32" else quantized for column in columns(args)}
    if args.search:
        chosen = search(args, chosen)
        if args.search_only:
            return
    report(args, table(args, chosen))


if __name__ == "__main__":
    main()
