"""What weights of edges in few bits cost: accuracy, a regression, and noise by degree.

python examples/benchmarks/edge_weight_study.py --seeds 5 --out runs.jsonl --json edge_weights.json

Every model is trained twice at each width of everything else: with weights of the edges as floats
(``edge_weight_bits=32``) and in few bits. The two start from the same weights. What is compared is
*validation* accuracy: the study chooses a default, so it never looks at the test nodes. The
regression is on a generated graph, and its score the share of variance that is explained. Runs are
resumed from ``--out``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.nn import GCN
from torch_geometric.utils import to_undirected

import torch_geometric_qlr as qlr
from _graphs import generate
from _recipe import (
    WIDTHS,
    Recipe,
    changes,
    graph_of,
    parse_args,
    place_of,
    plus_minus,
    recipe_of,
    run,
)
from _runs import Job, Record, mean_std, recorded, run_all, show
from torch_geometric_qlr.metrics import edge_weight_error
from torch_geometric_qlr.sparse import gcn_edges

REGRESSION = "regression"
DATASETS = ("Cora", "CiteSeer", "PubMed", "CS", "Computers", "Tolokers", REGRESSION)
MODELS = ("GCN", "APPNP")
FLOAT = 32


def work(place: tuple[str, str], job: Job) -> Record:
    """Trains one model; the score of its best epoch on the validation nodes."""
    recipe = recipe_of(job["recipe"])
    if job["dataset"] == REGRESSION:
        return {"val": round(regress(job["width"], job["seed"], recipe), 5)}
    done = run(job["model"], job["width"], job["seed"], graph_of(job, place), recipe)
    return {"val": round(done.score.val, 5)}


# A regression #####################################################################################


@functools.lru_cache(maxsize=1)
def smoothed_target() -> tuple[Tensor, Tensor, Tensor]:
    """Features, edges and a target: what two layers with fixed weights make of them, and noise."""
    graph, rng = generate("cora"), torch.Generator().manual_seed(0)
    nodes, edges = graph.num_nodes, graph.edge_index()
    x = torch.randn(nodes, 16, generator=rng)
    pairs, weight = gcn_edges(edges, num_nodes=nodes)
    matrix = torch.sparse_coo_tensor(pairs.flip(0), weight, (nodes, nodes), check_invariants=False)
    first, second = (torch.randn(16, n, generator=rng) / 4 for n in (16, 1))
    y = matrix @ (torch.tanh(2 * (matrix @ x) @ first) @ second)
    y = (y - y.mean()) / y.std() + 0.1 * torch.randn(nodes, 1, generator=rng)
    return x, edges, y


def regress(width: str, seed: int, recipe: Recipe) -> float:
    """The share of variance that a GCN explains, half of the nodes to train and a quarter to
    validate with."""
    x, edges, y = smoothed_target()
    seed_everything(seed)
    order = torch.randperm(y.size(0))
    train, val = order[: len(y) // 2], order[len(y) // 2 : 3 * len(y) // 4]
    model: Any = GCN(16, recipe.hidden, 2, 1)
    model = qlr.quantize(model, **(WIDTHS[width] or {}), **dict(recipe.config))
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    best = float("-inf")
    for _ in range(recipe.epochs):
        model.train()
        optimizer.zero_grad()
        F.mse_loss(model(x, edges)[train], y[train]).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            out = model(x, edges)[val]
        best = max(best, float(1 - F.mse_loss(out, y[val]) / y[val].var()))
    return best


# Noise by degree ##################################################################################


def with_hub(nodes: int, hub: int, exponent: float, seed: int = 0) -> Tensor:
    """Edges of a graph with a power law of degrees, and a node with so many of them."""
    rng = torch.Generator().manual_seed(seed)
    uniform = torch.rand(nodes, generator=rng, dtype=torch.float64)
    share = (1 - uniform).pow(-1 / exponent)
    pairs = torch.multinomial(share, 6 * nodes, True, generator=rng).view(2, -1)
    others = torch.randperm(nodes - 1, generator=rng)[:hub] + 1
    spokes = torch.stack([torch.zeros_like(others), others])
    return to_undirected(torch.cat([pairs, spokes], dim=1), num_nodes=nodes)


def noise(nodes: int, hub: int, exponent: float, bits: int) -> Iterator[dict[str, Any]]:
    """What GCN's weights lose, by the number of edges into a node."""
    edges, weight = gcn_edges(with_hub(nodes, hub, exponent), num_nodes=nodes)
    x = torch.randn(nodes, 16, generator=torch.Generator().manual_seed(1))
    for bucket in edge_weight_error(edges, weight, x, bits=bits):
        sqnr = bucket.sqnr if math.isfinite(bucket.sqnr) else None  # of a single loop: no noise
        out = {
            **bucket._asdict(),
            "zeroed": round(bucket.zeroed, 6),
            "sqnr": sqnr and round(sqnr, 2),
        }
        yield {"exponent": exponent, "hub": hub, "bits": bits, **out}


# All of it ########################################################################################


def jobs(args: argparse.Namespace) -> list[Job]:
    out = []
    options = itertools.product(args.datasets, args.models, args.widths, range(args.seeds))
    for dataset, model, width, seed in options:
        if dataset == REGRESSION and model != "GCN":
            continue
        for bits in (args.bits, FLOAT):
            recipe = Recipe(
                epochs=args.epochs, hidden=args.hidden, config=(("edge_weight_bits", bits),)
            )
            out.append(
                {
                    "dataset": dataset,
                    "model": model,
                    "width": width,
                    "edge_weight_bits": bits,
                    "seed": seed,
                    "generated": args.generated,
                    "recipe": changes(recipe),
                }
            )
    return out


Found = dict[tuple[str, str, str], dict[int, list[float]]]


def compared(records: list[Record]) -> Iterator[dict[str, Any]]:
    """For each column both scores, and their difference under the same seeds, in points."""
    found: Found = {}
    for r in records:
        column = found.setdefault((r["dataset"], r["model"], r["width"]), {})
        column.setdefault(r["edge_weight_bits"], []).append(100 * r["val"])
    for (dataset, model, width), by_bits in found.items():
        (bits,) = (b for b in by_bits if b != FLOAT)
        few, floats = by_bits[bits], by_bits[FLOAT]
        difference = [a - b for a, b in zip(few, floats, strict=True)]
        yield {
            "dataset": dataset,
            "model": model,
            "width": width,
            "edge_weight_bits": bits,
            "seeds": len(few),
            "few": [round(v, 3) for v in mean_std(few)],
            "float": [round(v, 3) for v in mean_std(floats)],
            "difference": [round(v, 3) for v in mean_std(difference)],
        }


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--widths", nargs="+", default=["INT8", "INT4", "INT2"], choices=WIDTHS)
    parser.add_argument("--bits", type=int, default=8, help="of the weights of edges")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=100_000, help="of the graphs with a hub")
    parser.add_argument("--hub", type=int, default=30_000, help="its number of edges")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON lines of the runs")
    parser.add_argument("--recorded", action="store_true", help="only what --out holds")
    parser.add_argument("--json", type=Path, help="what is printed, as plain values")
    parser.add_argument("--markdown", type=Path, help="the first table, as a file")


def main() -> None:
    args = parse_args(__doc__, epochs=200, seeds=5, extend=_extend)
    todo = jobs(args)
    if args.recorded:
        todo = recorded(todo, args.out)
    done = run_all(todo, functools.partial(work, place_of(args)), args.out, args.workers)
    scores = list(compared(done))
    show(
        ["data set", "model", "width", f"{args.bits}-bit edges", "float edges", "difference"],
        [
            [s["dataset"], s["model"], s["width"]]
            + [
                plus_minus(*s[column], s["seeds"], digits=2)
                for column in ("few", "float", "difference")
            ]
            for s in scores
        ],
        args.markdown,
    )
    buckets = [b for e in (1.2, 2.0) for w in (8, 4) for b in noise(args.nodes, args.hub, e, w)]
    print()
    show(
        ["power law", "bits", "edges into a node", "nodes", "rounded to 0 (%)", "SQNR (dB)"],
        [
            [str(b["exponent"]), str(b["bits"]), f"{b['low']}-{b['high']}", str(b["num_nodes"])]
            + [f"{100 * b['zeroed']:.3f}", "exact" if b["sqnr"] is None else f"{b['sqnr']:.1f}"]
            for b in buckets
        ],
    )
    if args.json is not None:
        made = {"epochs": args.epochs, "scores": scores, "noise": buckets}
        args.json.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
