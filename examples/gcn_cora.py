"""A GCN on Cora at every width, measured with care: 10 seeds, choices made on the validation nodes.

python examples/gcn_cora.py [--root FOLDER]             the table, with the settings below
python examples/gcn_cora.py --search                    choose the settings anew, then the table
python examples/gcn_cora.py --distill --json out.json   all quantized ones learn from the float
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.nn import GCN

import torch_geometric_qlr as qlr
from _common import (
    Row,
    Score,
    evaluate,
    feature_bytes,
    fit,
    make_optimizer,
    model_bytes,
    parse_args,
    print_table,
    train_epoch,
)
from _data import load_citation


@dataclass(frozen=True)
class Setting:
    """What a run is made with; ``config`` goes to ``qlr.quantize``, ``None`` keeps it float."""

    config: Mapping[str, Any] | None = field(default_factory=dict)
    lr: float = 0.01
    dropout: float = 0.5
    weight_decay: float = 5e-4
    range_lr: float | None = None
    distill: bool = False  # learn from the float twin


SETTINGS = {
    "FP32": Setting(None, lr=0.02, dropout=0.8, weight_decay=5e-5),
    "INT8": Setting({"bits": 8}, lr=0.02, dropout=0.8, distill=True),
    "INT4": Setting({"bits": 4}, lr=0.02, distill=True),
    "INT2": Setting({"bits": 2}, weight_decay=5e-5, distill=True),
}

# The search is small on purpose, and its seeds are not the seeds of the table.
GRID = {"lr": (0.01, 0.02), "dropout": (0.5, 0.8), "weight_decay": (5e-4, 5e-5)}
FIRST_SEARCH_SEED = 1000


class Bench:
    """The graph and the loops: one method trains one model under one setting and one seed."""

    def __init__(self, args: argparse.Namespace) -> None:
        graph = load_citation(args.root, args.dataset, args.generated, sparse=True)
        self.args = args
        self.data: Data = graph.data.to(args.device)
        self.num_classes = graph.num_classes
        self.description = graph.description

    def float_model(self, setting: Setting) -> nn.Module:
        model = GCN(
            self.data.num_features,
            self.args.hidden,
            num_layers=2,
            out_channels=self.num_classes,
            dropout=setting.dropout,
        )
        return model.to(self.args.device)

    def run(self, name: str, setting: Setting, seed: int) -> Score:
        """Trains once. To distill, the float twin is trained first, under the same seed."""
        seed_everything(seed)
        model = self.float_model(setting)
        if setting.config is None:
            return self._fit(f"{name} seed {seed}", model, setting, self._hard_labels)
        teacher_logits = None
        if setting.distill or self.args.distill:
            teacher_logits = self._teacher_logits(seed)
        seed_everything(seed)
        qmodel = qlr.quantize(self.float_model(setting), **setting.config)
        if teacher_logits is None:
            return self._fit(f"{name} seed {seed}", qmodel, setting, self._hard_labels)
        step = self._soft_labels(teacher_logits)
        return self._fit(f"{name} seed {seed}", qmodel, setting, step)

    def _fit(
        self,
        label: str,
        model: nn.Module,
        setting: Setting,
        step: Callable[[nn.Module, torch.optim.Optimizer], None],
    ) -> Score:
        optimizer = make_optimizer(model, setting.lr, setting.weight_decay, setting.range_lr)
        return fit(
            label,
            self.args.epochs,
            train=lambda: step(model, optimizer),
            score=lambda: evaluate(model, self.data),
        )

    def _hard_labels(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        train_epoch(model, optimizer, self.data)

    def _soft_labels(
        self, teacher_logits: Tensor
    ) -> Callable[[nn.Module, torch.optim.Optimizer], None]:
        """Labels on the training nodes and, on all nodes, the softened answer of the float twin."""
        data, heat = self.data, self.args.temperature

        def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            model.train()
            optimizer.zero_grad()
            out = model(data.x, data.edge_index)
            hard = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
            (hard + qlr.distill(out, teacher_logits, heat)).backward()
            optimizer.step()

        return step

    def _teacher_logits(self, seed: int) -> Tensor:
        """The float twin of this seed, at the epoch that validation chose."""
        setting = SETTINGS["FP32"]
        seed_everything(seed)
        model = self.float_model(setting)
        kept: list[Tensor] = []
        best = -1.0

        def score() -> Score:
            nonlocal best
            now = evaluate(model, self.data)
            if now.val > best:
                best = now.val
                with torch.no_grad():
                    kept[:] = [model(self.data.x, self.data.edge_index)]
            return now

        optimizer = make_optimizer(model, setting.lr, setting.weight_decay)
        train = lambda: train_epoch(model, optimizer, self.data)  # noqa: E731
        fit(f"teacher seed {seed}", self.args.epochs, train, score)
        return kept[0]


def search(bench: Bench, name: str, setting: Setting, seeds: int) -> Setting:
    """The setting of the grid with the best mean validation accuracy, and for a quantized model
    then whether to distill. No look at the test nodes."""

    def validate(candidate: Setting) -> float:
        runs = range(FIRST_SEARCH_SEED, FIRST_SEARCH_SEED + seeds)
        val = 100 * statistics.fmean(bench.run(name, candidate, seed).val for seed in runs)
        print(f"search {name}: validation {val:.2f}  {candidate}", flush=True)
        return val

    candidates = [
        replace(setting, **dict(zip(GRID, values, strict=True)))
        for values in itertools.product(*GRID.values())
    ]
    best = max(candidates, key=validate)
    if setting.config is None:
        return best
    return max(best, replace(best, distill=True), key=validate)


def as_json(bench: Bench, rows: list[Row], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Everything that is needed to check the table or to draw it elsewhere."""
    return {
        "graph": bench.description,
        "versions": {
            "torch": torch.__version__,
            "torch_geometric": torch_geometric.__version__,
            "torch_geometric_qlr": qlr.__version__,
        },
        "epochs": bench.args.epochs,
        "hidden": bench.args.hidden,
        "distilled": bench.args.distill,
        "rows": [
            {
                "name": row.name,
                "setting": asdict(settings[row.name]),
                "test": dict(zip(("mean", "std"), row.accuracy("test"), strict=True)),
                "val": dict(zip(("mean", "std"), row.accuracy("val"), strict=True)),
                "runs": [asdict(score) for score in row.scores],
                "model_bytes": row.model_bytes,
                "feature_bytes": row.feature_bytes,
            }
            for row in rows
        ],
    }


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", default="Cora", choices=["Cora", "CiteSeer", "PubMed"])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--widths", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument(
        "--search", action="store_true", help="choose on the validation nodes first"
    )
    parser.add_argument("--search-seeds", type=int, default=5)
    parser.add_argument("--distill", action="store_true", help="learn from the float twin")
    parser.add_argument("--temperature", type=float, default=2.0, help="of the distillation")
    parser.add_argument("--json", type=Path, help="write the runs to this file")


def main() -> None:
    args = parse_args(__doc__, epochs=200, seeds=10, extend=extend)
    bench = Bench(args)
    settings = {name: SETTINGS[name] for name in args.widths}
    if args.search:
        settings = {
            name: search(bench, name, setting, args.search_seeds)
            for name, setting in settings.items()
        }
    rows = []
    for name, setting in settings.items():
        model = bench.float_model(setting)
        row = Row(
            name,
            scores=[bench.run(name, setting, seed) for seed in range(args.seeds)],
            model_bytes=model_bytes(model, setting.config),
            feature_bytes=feature_bytes(bench.data.x, setting.config),
        )
        rows.append(row)
    layers = f"GCN {bench.data.num_features}-{args.hidden}-{bench.num_classes}"
    if args.distill:
        layers += ", distilled from the float twin"
    print_table(bench.description, layers, args, rows)
    if args.json is not None:
        args.json.write_text(json.dumps(as_json(bench, rows, settings), indent=2) + "\n")
        print(f"written: {args.json}")


if __name__ == "__main__":
    main()
