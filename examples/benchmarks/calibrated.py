"""Accuracy without training: ranges from one pass over the graph, and bits under a budget.

    python examples/benchmarks/calibrated.py --root data --out runs.jsonl --markdown calibrated.md

A float model is trained by the README's loop, and kept at its best epoch on the validation nodes.
Then it is quantized, `qlr.calibrate` looks at the graph once, and that is all: no label is seen
again. `INT4, 5 bits on average` has the widths that `qlr.search_bits` finds within that budget.
Runs are resumed from ``--out``.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data

import torch_geometric_qlr as qlr
from _recipe import (
    MODELS,
    Recipe,
    changes,
    graph_of,
    make_model,
    parse_args,
    place_of,
    plus_minus,
    reachable,
    recipe_of,
    sparse_edges,
    sparse_words,
)
from _runs import Job, Record, add_run_options, mean_std, run_asked, show, write_rows
from readme_loop import NODE_SETS

from _common import Score, evaluate, fit, make_optimizer, score_of, train_epoch  # isort: skip

BUDGET = 5.0
COLUMNS = ("FP32", "INT8", "INT4", f"{BUDGET:g} bits on average")


def work(place: tuple[str, str], job: Job) -> Record:
    """Trains a float model, and quantizes it in every way of the table."""
    data, classes = graph_of(job, place)
    data = sparse_edges(data) if job["model"] == "SAGE" else sparse_words(data)
    seed_everything(job["seed"])
    recipe = recipe_of(job["recipe"])
    model = make_model(job["model"], data, classes, recipe).to(data.x.device)
    found = {"FP32": best(model, data, recipe)}
    for column, quantize in WAYS.items():
        qmodel = quantize(model, data)
        qlr.calibrate(qmodel, [(data.x, data.edge_index)], progress=False)
        with torch.no_grad():
            found[column] = score_of(qmodel.eval()(data.x, data.edge_index), data)
    return {column: round(100 * score.test, 3) for column, score in found.items()}


def best(model: nn.Module, data: Data, recipe: Recipe) -> Score:
    """Trains the model, and leaves it as it was at its best epoch."""
    optimizer = make_optimizer(model, recipe.lr, recipe.weight_decay)
    kept: dict[str, Tensor] = {}
    best_val = -1.0

    def score() -> Score:
        nonlocal best_val
        now = evaluate(model, data)
        if now.val > best_val:
            best_val = now.val
            kept.update(copy.deepcopy(model.state_dict()))
        return now

    found = fit("FP32", recipe.epochs, lambda: train_epoch(model, optimizer, data), score)
    model.load_state_dict(kept)
    return found


def _within_budget(model: nn.Module, data: Data) -> nn.Module:
    inputs = (data.x, data.edge_index)
    choice = qlr.search_bits(model, inputs, budget=BUDGET, measure="average_bits", progress=False)
    return qlr.quantize(model, choice.config)


WAYS: dict[str, Callable[[nn.Module, Data], nn.Module]] = {
    "INT8": lambda model, data: qlr.quantize(model, bits=8),
    "INT4": lambda model, data: qlr.quantize(model, bits=4),
    COLUMNS[-1]: _within_budget,
}


def jobs(args: argparse.Namespace) -> list[Job]:
    recipe = Recipe(epochs=args.epochs, hidden=args.hidden)
    return [
        {
            "dataset": dataset,
            "model": model,
            "seed": seed,
            "generated": args.generated,
            "recipe": changes(recipe),
        }
        for dataset, model, seed in itertools.product(args.datasets, args.models, range(args.seeds))
    ]


def rows(records: list[Record]) -> Iterator[dict[str, Any]]:
    """Mean and deviation over the seeds."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record["dataset"], record["model"]), []).append(record)
    for (dataset, model), of_seeds in found.items():
        scores = {c: [round(v, 2) for v in mean_std(r[c] for r in of_seeds)] for c in COLUMNS}
        yield {"dataset": dataset, "model": model, "seeds": len(of_seeds), "test": scores}


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--datasets", nargs="+", default=list(NODE_SETS), choices=NODE_SETS)
    parser.add_argument(
        "--models", nargs="+", default=["GCN", "SAGE", "GAT", "APPNP"], choices=MODELS
    )
    parser.add_argument("--hidden", type=int, default=64)
    add_run_options(parser)


def main() -> None:
    args = parse_args(__doc__, epochs=120, seeds=3, extend=_extend)
    args.datasets = reachable(args, args.datasets)
    done = run_asked(args, jobs(args), functools.partial(work, place_of(args)))
    found = list(rows(done))
    print("\ntest accuracy; the float model's epoch is the best on the validation nodes")
    cells = [
        [r["dataset"], r["model"], *(plus_minus(*pair, r["seeds"]) for pair in r["test"].values())]
        for r in found
    ]
    show(["data set", "model", *COLUMNS], cells, args.markdown)
    write_rows(args, found)


if __name__ == "__main__":
    main()
