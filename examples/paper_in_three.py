"""The paper in three experiments: learned ranges, truncation of skewed data, smoothness over depth.

python examples/paper_in_three.py [--root FOLDER] [--plot paper.png]
python examples/paper_in_three.py --only ranges --seeds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.nn import GCN

import torch_geometric_qlr as qlr
from _common import fit_full_batch, parse_args
from _data import load_citation
from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.metrics import dirichlet_energy
from torch_geometric_qlr.quantizers import LearnedRangeQuant

GAMMAS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
LEARNED = "learned"
DEPTH = 10

Result = dict[str, Any]


# 1. A range that leaves outliers out ##############################################################
#
# Two bits have four levels. A range as wide as the data spends them on its few largest values; a
# range gamma times as wide puts them where most of the values are, and clips the rest. Which gamma
# is best nobody knows beforehand, and it differs from place to place: QLR learns it, everywhere.


def quantizers_of(model: nn.Module) -> list[LearnedRangeQuant]:
    return [module for module in model.modules() if isinstance(module, LearnedRangeQuant)]


def with_gamma(model: nn.Module, gamma: float) -> nn.Module:
    """At two bits, with all ranges a fixed multiple of what was observed."""
    qmodel = qlr.quantize(model, bits=2, search=False)
    for quantizer in quantizers_of(qmodel):
        with torch.no_grad():
            quantizer.gamma.fill_(gamma)
        quantizer.gamma.requires_grad_(False)
    return qmodel


@torch.no_grad()
def error_of_answers(model: nn.Module, qmodel: nn.Module, data: Data) -> float:
    """How far off the quantized model is before it is trained, as a share of the answers' size."""
    expected = model.eval()(data.x, data.edge_index)
    found = qmodel.eval()(data.x, data.edge_index)
    return float((found - expected).norm() / expected.norm())


def ranges(args: argparse.Namespace) -> Result:
    graph = load_citation(args.root, "Cora", args.generated)
    data = graph.data.to(args.device)
    rows: dict[str, Result] = {str(gamma): {"error": [], "test": []} for gamma in GAMMAS}
    rows[LEARNED] = {"error": [], "test": [], "gamma": []}
    for seed in range(args.seeds):
        seed_everything(seed)
        model = GCN(data.num_features, 64, 2, graph.num_classes, dropout=0.5).to(args.device)
        fit_full_batch("float", model, data, args.epochs)
        for name, row in rows.items():
            qmodel = (
                qlr.quantize(model, bits=2) if name == LEARNED else with_gamma(model, float(name))
            )
            row["error"].append(error_of_answers(model, qmodel, data))
            seed_everything(seed)
            row["test"].append(
                100 * fit_full_batch(f"gamma {name}", qmodel, data, args.epochs).test
            )
            if name == LEARNED:
                row["gamma"] += [q.gamma.mean().item() for q in quantizers_of(qmodel)]
    print(f"\n1. Ranges: a GCN in 2 bits on {graph.description}, {args.seeds} seeds")
    print(f"{'gamma':<12}{'error untrained':<18}test accuracy after {args.epochs} epochs")
    for name, row in rows.items():
        print(f"{name:<12}{mean(row['error']):<18.2f}{mean(row['test']):.1f}")
    found = rows[LEARNED]["gamma"]
    print(f"learned multipliers: {min(found):.2f} to {max(found):.2f}")
    return rows


# 2. Truncation, and where skewed data should be cut ###############################################
#
# BT quantizes to 8 bits and keeps the top ones, so that the low-bit number is a prefix of the
# 8-bit one. BT* shifts by the skewness before it cuts. An average over many neighbours keeps the
# mean error, the bias; single numbers have the squared one.


def skewed(skew: float, seed: int) -> Tensor:
    """Normal numbers, or such that have a long tail on one side."""
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(seed))
    return torch.expm1(skew * normal) / skew if skew > 0 else normal


@torch.no_grad()
def truncation(args: argparse.Namespace) -> Result:
    methods = {"plain": None, "BT": "bt", "BT*": "bt*"}
    rows: dict[str, Result] = {}
    print("\n2. Truncation to 2 bits: error over the variance, and bias over the deviation")
    print(f"{'':<12}{'':<8}{'error':<10}bias")
    for data, skew in (("symmetric", 0.0), ("skewed", 1.0)):
        for name, method in methods.items():
            errors, biases = [], []
            for seed in range(args.seeds):
                x = skewed(skew, seed)
                value = LearnedRangeQuant(QuantizerConfig(bits=2, truncation=method))(x)[0]
                errors.append(float((value - x).square().mean() / x.var()))
                biases.append(float((value - x).mean() / x.std()))
            rows[f"{data}, {name}"] = {"error": errors, "bias": biases}
            print(f"{data:<12}{name:<8}{mean(errors):<10.3f}{mean(biases):+.3f}")
    return rows


# 3. Smoothness over depth #########################################################################
#
# Each propagation makes neighbours more alike. A GCN of ten layers cannot be trained any more: what
# its layers give says nothing of a node. Ten steps of SMP after a small network on each node pull
# neighbours together, and every node back to where it started.


def layers_of(model: nn.Module, data: Data) -> list[Tensor]:
    """What each layer of a GCN gives."""
    found: list[Tensor] = []
    hooks = [
        conv.register_forward_hook(lambda _, inputs, out: found.append(out)) for conv in model.convs
    ]
    model(data.x, data.edge_index)
    for hook in hooks:
        hook.remove()
    return found


def steps_of(model: nn.Module, data: Data) -> list[Tensor]:
    """What each step of SMP gives."""
    given: list[Any] = []
    hook = model.propagation.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    model(data.x, data.edge_index)
    hook.remove()
    _, history = model.propagation(*given[0], return_history=True)
    return list(history.states)


def depth(args: argparse.Namespace) -> Result:
    graph = load_citation(args.root, "CiteSeer", args.generated)
    data, classes = graph.data.to(args.device), graph.num_classes
    deep: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Data], list[Tensor]]]] = {
        "GCN": (lambda: GCN(data.num_features, 64, DEPTH, classes, dropout=0.5), layers_of),
        "SMP": (lambda: qlr.nn.SMPGNN(data.num_features, 64, classes, K=DEPTH), steps_of),
    }
    rows: dict[str, Result] = {}
    print(f"\n3. Depth: {DEPTH} propagations in 4 bits on {graph.description}, energy after each")
    for name, (make, parts_of) in deep.items():
        row: Result = {"test": [], "energy": []}
        for seed in range(args.seeds):
            seed_everything(seed)
            qmodel = qlr.quantize(make(), bits=4).to(args.device)
            row["test"].append(100 * fit_full_batch(name, qmodel, data, args.epochs).test)
            with torch.no_grad():
                parts = parts_of(qmodel.eval(), data)
                energy = [dirichlet_energy(x, data.edge_index, relative=True) for x in parts]
            row["energy"].append([float(e) for e in energy])
        rows[name] = row
        after = " ".join(f"{mean(layer):.3f}" for layer in zip(*row["energy"], strict=True))
        print(f"{name:<6}{after}   test accuracy {mean(row['test']):.1f}")
    return rows


EXPERIMENTS = {"ranges": ranges, "truncation": truncation, "depth": depth}


def mean(values: Any) -> float:
    return statistics.fmean(values)


def plot(found: dict[str, Result], path: Path) -> None:
    """One figure for each experiment, named after it."""
    import matplotlib.pyplot as plt

    for name, rows in found.items():
        figure, axes = plt.subplots(figsize=(5, 3.2), constrained_layout=True)
        if name == "ranges":
            accuracy = [mean(rows[str(gamma)]["test"]) for gamma in GAMMAS]
            axes.plot(GAMMAS, accuracy, "o-", color="#0072B2", label="fixed")
            learned = mean(rows[LEARNED]["test"])
            axes.axhline(learned, linestyle="--", color="#D55E00", label="learned")
            axes.set(xlabel="range over that of the data, gamma", ylabel="test accuracy, %")
            axes.legend()
        elif name == "truncation":
            heights = [mean(row["bias"]) for row in rows.values()]
            axes.barh(list(rows), heights, color=["#0072B2", "#56B4E9", "#D55E00"] * 2)
            axes.axvline(0.0, color="black", linewidth=0.8)
            axes.invert_yaxis()
            axes.set(xlabel="bias, in standard deviations")
        else:
            for (label, row), color in zip(rows.items(), ("#0072B2", "#D55E00"), strict=True):
                layers = [mean(layer) for layer in zip(*row["energy"], strict=True)]
                axes.plot(range(1, len(layers) + 1), layers, "o-", label=label, color=color)
            axes.set(xlabel="layer or step", ylabel="relative Dirichlet energy")
            axes.legend()
        figure.savefig(path.with_name(f"{path.stem}_{name}.png"), dpi=150)
        plt.close(figure)


def main() -> None:
    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--only", choices=EXPERIMENTS, help="one of the three")
        parser.add_argument("--plot", type=Path, help="draw figures, named after this file")
        parser.add_argument("--json", type=Path, help="write what was found here")

    args = parse_args(__doc__, epochs=100, seeds=3, extend=extend)
    names = EXPERIMENTS if args.only is None else [args.only]
    found = {name: EXPERIMENTS[name](args) for name in names}
    if args.plot is not None:
        plot(found, args.plot)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
