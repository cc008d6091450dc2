"""What the examples share: the command line, the training loop, the sizes and the table."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data
from tqdm import tqdm

import torch_geometric_qlr as qlr

EXTRA = 'python -m pip install -e ".[examples]"'

# What `qlr.quantize` is called with, by the name of the table's row; `None` keeps the float twin.
Variants = Mapping[str, Mapping[str, Any] | None]


def require(found: bool, part: str, command: str = EXTRA) -> None:
    """Ends the program where an optional part is missing, with the command that installs it."""
    if not found:
        sys.exit(f"{part}, which is not installed here. Run {command}")


def parse_args(
    description: str | None,
    *,
    epochs: int,
    seeds: int,
    extend: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
    """The options every example has, and those that ``extend`` adds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--seeds", type=int, default=seeds, help="runs per row of the table")
    parser.add_argument("--epochs", type=int, default=epochs, help="epochs per run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    # These graphs are small: more threads gain little, and lose a lot beside other load.
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument(
        "--generated", action="store_true", help="use a generated graph, do not try to download"
    )
    if extend is not None:
        extend(parser)
    args = parser.parse_args()
    if args.seeds < 1 or args.epochs < 1:
        parser.error("--seeds and --epochs must be at least 1")
    torch.set_num_threads(args.threads)
    return args


@dataclass(frozen=True)
class Score:
    """One run: the best validation accuracy, and the test accuracy of that same epoch."""

    val: float
    test: float


@dataclass
class Row:
    """One line of the table: the runs of one variant and what its model takes."""

    name: str
    scores: list[Score] = field(default_factory=list)
    model_bytes: int = 0
    feature_bytes: int | None = None

    def accuracy(self, split: str = "test") -> tuple[float, float]:
        """Mean and standard deviation over the runs, in percent."""
        values = [100.0 * getattr(score, split) for score in self.scores]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def make_optimizer(
    model: nn.Module,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    range_lr: float | None = None,
) -> torch.optim.Optimizer:
    """Adam with the learned ranges in a group of their own."""
    groups = qlr.parameter_groups(model, lr=lr, weight_decay=weight_decay, range_lr=range_lr)
    return torch.optim.Adam(groups)


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data) -> None:
    """One step on the full graph. Nothing in it knows that the model is quantized."""
    model.train()
    optimizer.zero_grad()
    out = model(data.x, data.edge_index)
    F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
    optimizer.step()


def train_on_batches(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[Data],
    device: str | torch.device,
) -> None:
    """One pass over the training nodes, each batch a sampled subgraph around its seed nodes."""
    model.train()
    for batch in loader:
        batch = batch.to(device)
        optimizer.zero_grad()
        out = model(batch.x, batch.edge_index)[: batch.batch_size]
        F.cross_entropy(out, batch.y[: batch.batch_size]).backward()
        optimizer.step()


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> Score:
    """Accuracy on the validation and the test nodes."""
    model.eval()
    return score_of(model(data.x, data.edge_index), data)


def score_of(out: Tensor, data: Data) -> Score:
    """Accuracy of answers on the validation and the test nodes."""
    hit = out.argmax(dim=-1) == data.y
    return Score(share(hit[data.val_mask]), share(hit[data.test_mask]))


def share(hit: Tensor) -> float:
    """The share of hits."""
    return float(hit.float().mean())


def fit(label: str, epochs: int, train: Callable[[], None], score: Callable[[], Score]) -> Score:
    """Trains, and returns the score of the epoch with the best validation accuracy."""
    best = Score(val=-1.0, test=-1.0)
    with tqdm(range(epochs), desc=f"training {label}", leave=False, disable=None) as progress:
        for _ in progress:
            train()
            now = score()
            if now.val > best.val:
                best = now
                progress.set_postfix(val=f"{100 * best.val:.1f}", refresh=False)
    return best


def fit_full_batch(
    label: str, model: nn.Module, data: Data, epochs: int, **optimizer_options: float
) -> Score:
    """Trains on the full graph; ``optimizer_options`` are those of :func:`make_optimizer`."""
    optimizer = make_optimizer(model, **optimizer_options)
    return fit(
        label,
        epochs,
        train=lambda: train_epoch(model, optimizer, data),
        score=lambda: evaluate(model, data),
    )


def compare(
    variants: Variants,
    seeds: int,
    make_model: Callable[[], nn.Module],
    run: Callable[[str, nn.Module], Score],
    features: Tensor | None = None,
) -> list[Row]:
    """Trains every variant under the same seeds: float twin and quantized model start alike."""
    rows = []
    for name, config in variants.items():
        row = Row(name)
        for seed in range(seeds):
            seed_everything(seed)
            model = make_model()
            if seed == 0:
                row.model_bytes = model_bytes(model, config)
                row.feature_bytes = feature_bytes(features, config)
            if config is not None:
                model = qlr.quantize(model, **config)
            row.scores.append(run(f"{name} seed {seed}", model))
        rows.append(row)
        tqdm.write(f"{name:<10} {plus_minus(*row.accuracy(), seeds):>5}")
    return rows


def plus_minus(mean: float, std: float, count: int, digits: int = 1) -> str:
    """A mean and its deviation, of which one run has none."""
    return f"{mean:.{digits}f}" + f" ± {std:.{digits}f}" * (count > 1)


def print_table(graph: str, model: str, args: argparse.Namespace, rows: Iterable[Row]) -> None:
    """The table: accuracy over the seeds, and what weights and features take at their bits."""
    rows = list(rows)
    width = max(10, 2 + max(len(row.name) for row in rows))
    print(f"\n{graph}")
    print(f"{model}; {args.seeds} seeds, {args.epochs} epochs; ", end="")
    print("test accuracy at the best-validation epoch, sizes at the given bits")
    print(f"{'':<{width}}{'accuracy':<16}{'weights':<12}features")
    for row in rows:
        accuracy = plus_minus(*row.accuracy(), args.seeds)
        features = "-" if row.feature_bytes is None else human(row.feature_bytes)
        print(f"{row.name:<{width}}{accuracy:<16}{human(row.model_bytes):<12}{features}")


def model_bytes(model: nn.Module, config: Mapping[str, Any] | None) -> int:
    """What the parameters of a float model take once quantized like this, without padding.

    Quantized weights count at the width they are stored with, everything else as float32, and each
    range, of weights and of activations, as a scale and a zero point.
    """
    if config is None:
        return sum(4 * p.numel() for p in model.parameters())
    total = 0
    for entry in qlr.plan(model, **config).entries:
        own = model.get_submodule(entry.name).named_parameters(recurse=False)
        for name, parameter in own:
            total += stored_bytes(parameter.numel(), entry.points.get(f"weight:{name}", 32))
    ranges = qlr.quant_parameters(qlr.quantize(model, **config))
    return total + sum(8 * multiplier.numel() for multiplier in ranges)


def feature_bytes(x: Tensor | None, config: Mapping[str, Any] | None) -> int | None:
    """What node features take at the width of the input, scales and zero points included."""
    if x is None:
        return None
    if config is None:
        return 4 * x.numel()
    full = qlr.QLRConfig(**config)
    ranges = {"node": x.size(0), "feature": x.size(1)}.get(full.quantizer("input").granularity, 1)
    return stored_bytes(x.numel(), full.input_bits or 32) + 8 * ranges


def stored_bytes(count: int, bits: int) -> int:
    """Bytes of so many codes: 3 bits are stored in 4, 5 to 7 in 8, and 16 or more as float32."""
    stored = next((width for width in (1, 2, 4, 8) if bits <= width), 32)
    return math.ceil(count * stored / 8)


def human(count: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
