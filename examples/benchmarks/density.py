"""SMP against the density of the graph and its depth: where the correction helps, if anywhere.

python examples/benchmarks/density.py --out density.jsonl --plot density.png

The graph loses edges (``density`` below 1) or gains some (above 1), drawn so that the share of
edges within a class stays what it is. The control is APPNP, which is SMP without its correction:
the table shows the accuracy of both, and the difference under the same seeds. Runs are resumed from
``--out``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from pathlib import Path

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import dropout_edge, homophily, to_undirected

from _recipe import (
    DATASETS,
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
from _runs import Job, Record, mean_std, pyplot, run_all, show

MODELS = ("SMP", "APPNP")


def at_density(data: Data, density: float, seed: int) -> Data:
    """The graph with so many times its edges."""
    data = data.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if density < 1:
            kept, _ = dropout_edge(data.edge_index.cpu(), p=1 - density, force_undirected=True)
            data.edge_index = kept.to(data.x.device)
        elif density > 1:
            missing = int((density - 1) * data.num_edges / 2)
            added = _pairs(data.y.cpu(), missing, homophily(data.edge_index, data.y))
            both = torch.cat([data.edge_index, added.to(data.x.device)], dim=1)
            data.edge_index = to_undirected(both, num_nodes=data.num_nodes)
    return data


def _pairs(y: Tensor, count: int, within: float) -> Tensor:
    """Random pairs of nodes, the given share of them within a class."""
    order = y.argsort()
    sizes = y.bincount()
    start = sizes.cumsum(0) - sizes
    source = torch.randint(y.numel(), (count,))
    label = y[source]
    place = (torch.rand(count) * sizes[label]).long()
    inside = torch.rand(count) < within
    # Past the own class, round the end of the order: a node of any other class.
    outside = sizes[label] + (torch.rand(count) * (y.numel() - sizes[label])).long()
    target = order[(start[label] + torch.where(inside, place, outside)) % y.numel()]
    return torch.stack([source, target])


def work(place: tuple[str, str], job: Job) -> Record:
    """Trains one model of one depth on the graph at one density."""
    data, num_classes = graph_of(job, place)
    data = at_density(data, job["density"], job["seed"])
    recipe = recipe_of(job["recipe"])
    done = run(job["model"], job["width"], job["seed"], (data, num_classes), recipe)
    scores = {"val": round(done.score.val, 4), "test": round(done.score.test, 4)}
    return {**scores, "edges": data.num_edges}


def recipe(args: argparse.Namespace, model: str, depth: int) -> Recipe:
    return Recipe(
        epochs=args.epochs,
        hidden=args.hidden,
        depth=depth,
        propagation=(("tau", args.tau),) if model == "SMP" else (),
    )


def jobs(args: argparse.Namespace) -> list[Job]:
    return [
        {
            "model": model,
            "width": args.width,
            "density": density,
            "seed": seed,
            "dataset": args.dataset,
            "generated": args.generated,
            "depth": depth,
            "recipe": changes(recipe(args, model, depth)),
        }
        for density, depth, seed, model in itertools.product(
            args.densities, args.depths, range(args.seeds), MODELS
        )
    ]


Found = dict[tuple[float, int], dict[str, list[float]]]


def gain(values: dict[str, list[float]]) -> tuple[float, float]:
    """Mean and standard deviation of the differences under the same seeds."""
    return mean_std(a - b for a, b in zip(values["SMP"], values["APPNP"], strict=True))


def draw(args: argparse.Namespace, found: Found) -> None:
    """Accuracy of SMP, and what it gains over APPNP, against density; one line per depth."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for depth in args.depths:
        own = [mean_std(found[density, depth]["SMP"]) for density in args.densities]
        gains = [gain(found[density, depth]) for density in args.densities]
        for axis, points in zip(axes, (own, gains), strict=True):
            means, stds = zip(*points, strict=True)
            axis.errorbar(
                args.densities, means, yerr=stds, marker="o", capsize=3, label=f"{depth} steps"
            )
    for axis, name in zip(axes, ("accuracy of SMP (%)", "SMP - APPNP (points)"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_xticks(args.densities, [f"{density:g}" for density in args.densities])
        axis.set_xlabel("edges, times those of the data set")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[1].axhline(0, color="black", linewidth=0.8)
    axes[0].legend()
    figure.suptitle(f"{args.dataset}, {args.width}")
    figure.savefig(args.plot, dpi=120)
    print(f"written: {args.plot}")


def extend(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset", default="Cora", choices=DATASETS)
    add("--width", default="FP32", choices=list(WIDTHS))
    add("--densities", nargs="+", type=float, default=[0.25, 0.5, 1.0, 2.0, 4.0])
    add("--depths", nargs="+", type=int, default=[2, 10, 32])
    add("--tau", type=float, default=1e-3, help="bound of SMP on the change, per edge")
    add("--hidden", type=int, default=64)
    add("--out", type=Path, help="JSON lines of the runs; those in it are not run again")
    add("--markdown", type=Path, help="write the table to this file")
    add("--plot", type=Path, help="draw the table to this file")
    add("--workers", type=int, default=1, help="processes, of one thread each")


def main() -> None:
    args = parse_args(__doc__, epochs=200, seeds=3, extend=extend)
    reachable(args, [args.dataset])
    found: Found = {}
    edges: dict[float, int] = {}
    for record in run_all(
        jobs(args), functools.partial(work, place_of(args)), args.out, args.workers
    ):
        values = found.setdefault((record["density"], record["depth"]), {})
        values.setdefault(record["model"], []).append(100 * record["test"])
        edges[record["density"]] = record["edges"]
    rows = []
    for (density, depth), values in found.items():
        cells = [mean_std(values[model]) for model in MODELS] + [gain(values)]
        row = [f"{density:g}", str(edges[density]), str(depth)]
        rows.append([*row, *(plus_minus(*cell, args.seeds) for cell in cells)])
    show(["density", "edges", "steps", *MODELS, "SMP - APPNP"], rows, args.markdown)
    if args.plot is not None:
        draw(args, found)


if __name__ == "__main__":
    main()
