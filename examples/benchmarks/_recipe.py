"""How a model of the benchmarks is made, quantized and trained: a recipe, written down as data."""

from __future__ import annotations

import argparse
import copy
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.transforms as T
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.datasets import Amazon, Coauthor, HeterophilousGraphDataset, Reddit
from torch_geometric.nn import MessagePassing

import torch_geometric_qlr as qlr
from _baselines import baseline
from torch_geometric_qlr.sparse import csr_graph

sys.path.append(str(Path(__file__).resolve().parent.parent))
from _common import Score, fit, make_optimizer, parse_args, plus_minus, score_of
from _data import DOWNLOAD_ERRORS, announce, load_citation

__all__ = [
    "DATASETS",
    "MODELS",
    "WIDTHS",
    "Recipe",
    "Run",
    "changes",
    "graph_of",
    "make_model",
    "parse_args",
    "place_of",
    "plus_minus",
    "quantize",
    "reachable",
    "recipe_of",
    "run",
    "train",
]

DATASETS = ("Cora", "CiteSeer", "PubMed", "CS", "Reddit")

#: What `qlr.quantize` is called with, by the name of the column; `None` keeps the float twin.
WIDTHS: Mapping[str, Mapping[str, Any] | None] = {
    "FP32": None,
    "INT8": {"bits": 8},
    "INT4": {"bits": 4},
    "INT2": {"bits": 2},
    "INT2-mixed": {"preset": "int2-mixed"},
    "INT2-BT": {"bits": 2, "truncation": "bt"},
    "INT2-BT*": {"bits": 2, "truncation": "bt*"},
}

#: Names of the rows -> the propagation of an SMPGNN, or a baseline of depth two.
_PROPAGATION = {"SMP": "smp", "EMP": "emp", "APPNP": "appnp"}
_BASELINES = {
    "GCN": "gcn",
    "DropEdge": "dropedge",
    "PairNorm": "pairnorm",
    "GAT": "gat",
    "SAGE": "sage",
}
MODELS = (*_PROPAGATION, *_BASELINES)

#: Models that send the features themselves over the edges, which takes a dense matrix.
_SEND_FEATURES = ("SAGE",)

_WITHOUT_SPLIT: Mapping[str, type] = {
    "CS": Coauthor,
    "Physics": Coauthor,
    "Computers": Amazon,
    "Photo": Amazon,
}

#: Everything that the paper quantizes, sources per node in place of messages per edge.
_STRICT = ("input", "weight", "linear_output", "source", "aggregate")


@dataclass(frozen=True)
class Recipe:
    """What a run is made with, beyond its data, model, width and seed."""

    epochs: int = 200
    hidden: int = 64
    depth: int = 0  # 0: 10 propagation steps, or 2 layers
    lr: float = 0.01
    weight_decay: float = 5e-4
    dropout: float = 0.5
    quant_lr: float | None = 0.01  # of all ranges; None: as `qlr.parameter_groups` does
    distill: float = 0.0  # weight of the float twin's answers
    temperature: float = 1.0
    ema: float = 0.0  # decay of the averaged weights that are evaluated
    wide_logits: int = 0  # bits of the last Linear's output; 0: like the rest
    placement: str = "default"  # "strict": all the paper quantizes; "paper": exactly where it does
    propagation: tuple[tuple[str, Any], ...] = ()  # options of SMP, EMP or APPNP
    config: tuple[tuple[str, Any], ...] = ()  # further fields of QLRConfig


@dataclass(frozen=True)
class Run:
    """What came out: scores of the best-validation epoch, and the answers of that epoch."""

    score: Score
    last: Score
    logits: Tensor
    epochs: int  # fewer than asked for: the loss was infinite then
    losses: list[float]


def changes(recipe: Recipe) -> dict[str, Any]:
    """What a recipe does not leave at its default, as plain values."""
    default = asdict(Recipe())
    return {name: value for name, value in asdict(recipe).items() if value != default[name]}


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """The recipe with these :func:`changes`, which may have been written down as JSON."""
    pairs = {
        name: tuple((key, value) for key, value in values[name])
        for name in ("propagation", "config")
        if name in values
    }
    return Recipe(**{**values, **pairs})


def graph_of(job: Mapping[str, Any], place: tuple[str, str]) -> tuple[Data, int]:
    """The graph of a job, from a folder and on a device, which no result depends on."""
    root, device = place
    return load(root, job["dataset"], job["generated"], device)


def place_of(args: argparse.Namespace) -> tuple[str, str]:
    """Where the graphs are, and where they go."""
    return str(args.root), args.device


@functools.lru_cache(maxsize=2)
def load(root: str, name: str, generated: bool, device: str) -> tuple[Data, int]:
    """A graph and its number of classes, in the public split.

    Those of coauthors and of Amazon have none; they are split at random, with one seed for all
    runs, into 20 nodes per class to train with, 450 to validate with, and the rest. Tolokers has
    ten; the first is it.
    """
    if name in _WITHOUT_SPLIT:
        data = T.NormalizeFeatures()(_WITHOUT_SPLIT[name](root, name)[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            split = T.RandomNodeSplit("test_rest", num_train_per_class=20, num_val=450)
            data = split(data)
    elif name == "Tolokers":
        data = HeterophilousGraphDataset(root, "Tolokers")[0]
        for mask in ("train_mask", "val_mask", "test_mask"):
            data[mask] = data[mask][:, 0]
    elif name == "Reddit":
        data = Reddit(str(Path(root) / "Reddit"))[0]
    else:
        graph = load_citation(Path(root), name, generated)
        if not generated and graph.description.startswith("generated"):
            # A stand-in must not pass for the data set in a table.
            raise ConnectionError(f"{name} is not under {root}, and could not be downloaded")
        data = graph.data
    return data.to(device), int(data.y.max()) + 1


def reachable(args: argparse.Namespace, datasets: Sequence[str]) -> list[str]:
    """The data sets that are there or can be downloaded; the others are announced."""
    found = []
    for name in datasets:
        try:
            graph_of({"dataset": name, "generated": args.generated}, place_of(args))
            found.append(name)
        except DOWNLOAD_ERRORS as error:
            announce(f"{name} is left out: it could not be downloaded ({type(error).__name__}).")
    if not found:
        raise SystemExit("No data set is left. Set --root, or use --generated.")
    return found


def make_model(name: str, data: Data, num_classes: int, recipe: Recipe) -> nn.Module:
    """A float model by the name of its row."""
    sizes = (data.num_features, recipe.hidden)
    if name in _PROPAGATION:
        options = dict(recipe.propagation) if name != "APPNP" else {}
        return qlr.nn.SMPGNN(
            *sizes,
            num_classes,
            K=recipe.depth or 10,
            propagation=_PROPAGATION[name],
            dropout=recipe.dropout,
            **options,
        )
    return baseline(
        _BASELINES[name], *sizes, recipe.depth or 2, num_classes, dropout=recipe.dropout
    )


def quantize(model: nn.Module, width: str, recipe: Recipe) -> nn.Module:
    """The quantized twin at a width; the float model itself at full precision."""
    config = WIDTHS[width]
    if config is None:
        return model
    if recipe.placement == "strict":
        config = {**config, "points": _STRICT}
    elif recipe.placement == "paper":
        config = {**config, "preset": "paper"}
    config = {**config, **dict(recipe.config)}
    if recipe.wide_logits:
        points = qlr.QLRConfig(**config).points or ()
        wide = {
            "points": [point for point in points if point != "linear_output"],
            "output_bits": recipe.wide_logits,
        }
        config["overrides"] = dict.fromkeys(_last_linears(model), wide)
    return qlr.quantize(model, **config)


def _last_linears(model: nn.Module) -> list[str]:
    linears = [entry.name for entry in qlr.plan(model).entries if entry.family == "linear"]
    parent = linears[-1].rpartition(".")[0]
    if not isinstance(model.get_submodule(parent), MessagePassing):
        return linears[-1:]
    return [name for name in linears if name.rpartition(".")[0] == parent]


def sparse_words(data: Data) -> Data:
    """The graph with its features as a sparse matrix, if nearly all of them are zeros.

    A run then takes a fraction of the time, and the models compute the same.
    """
    if int((data.x != 0).sum()) > 0.1 * data.x.numel():
        return data
    graph = csr_graph(data.x.to_sparse())
    data = copy.copy(data)
    data.x = graph.to_torch_csr()
    return data


def sparse_edges(data: Data) -> Data:
    """The graph with its edges as a matrix: wide features then need no copy per edge."""
    graph = csr_graph(data.edge_index, num_src=data.num_nodes, num_dst=data.num_nodes)
    data = copy.copy(data)
    data.edge_index = graph.to_torch_csr()
    return data


def train(
    label: str, model: nn.Module, data: Data, recipe: Recipe, teacher: Tensor | None = None
) -> Run:
    """Trains on the full graph, and evaluates the averaged weights if the recipe averages."""
    optimizer = _optimizer(model, recipe)
    average = None
    if recipe.ema:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
    judged = model if average is None else average.module
    # A matrix is the faster form of the edges forwards, and the slower one backwards.
    edges = sparse_edges(data).edge_index if isinstance(model, qlr.nn.SMPGNN) else data.edge_index
    scores: list[Score] = []
    losses: list[float] = []
    kept: list[Tensor] = []

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)
        loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
        if teacher is not None:
            loss = loss + recipe.distill * qlr.distill(out, teacher, recipe.temperature)
        if not loss.isfinite():
            raise FloatingPointError(label)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        if average is not None:
            average.update_parameters(model)

    def score() -> Score:
        judged.eval()
        with torch.no_grad():
            out = judged(data.x, edges)
        now = score_of(out, data)
        if not scores or now.val > max(before.val for before in scores):
            kept[:] = [out]
        scores.append(now)
        return now

    try:
        fit(label, recipe.epochs, step, score)
    except FloatingPointError:
        announce(f"{label} diverged after {len(scores)} epochs; the best of them counts.")
    best = max(scores, key=lambda one: one.val)
    return Run(best, scores[-1], kept[0], len(scores), losses)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.quant_lr is None:
        return make_optimizer(model, recipe.lr, recipe.weight_decay)
    weights, ranges = list(qlr.weight_parameters(model)), list(qlr.quant_parameters(model))
    groups = [{"params": weights, "lr": recipe.lr, "weight_decay": recipe.weight_decay}]
    groups += [{"params": ranges, "lr": recipe.quant_lr, "weight_decay": 0.0}] if ranges else []
    return torch.optim.Adam(groups)


def run(
    name: str,
    width: str,
    seed: int,
    graph: tuple[Data, int],
    recipe: Recipe,
    teacher: Callable[[], Tensor] | None = None,
) -> Run:
    """One model, at one width, under one seed; twins start from the same weights."""
    data, num_classes = graph
    data = sparse_edges(data) if name in _SEND_FEATURES else sparse_words(data)
    answers = teacher() if teacher is not None and recipe.distill and WIDTHS[width] else None
    seed_everything(seed)
    model = quantize(make_model(name, data, num_classes, recipe).to(data.x.device), width, recipe)
    return train(f"{name} {width} seed {seed}", model, data, recipe, answers)
