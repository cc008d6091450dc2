"""Graph classification with GIN, batch norm and a pooled head, at several widths.

    python examples/gin_graph_classification.py [--root FOLDER] [--dataset MUTAG]

The whole model is handed to ``quantize``: the MLPs inside GIN, its messages, and the head.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, MLP, global_add_pool

from _common import Score, compare, fit, make_optimizer, parse_args, print_table, share
from _data import load_graphs

VARIANTS = {
    "FP32": None,
    "INT8": {"bits": 8},
    "INT4": {"bits": 4},
    "INT2": {"bits": 2},
}


class GraphClassifier(nn.Module):
    """GIN, the sum over the nodes, and a small MLP on top."""

    def __init__(self, in_channels: int, hidden_channels: int, num_classes: int) -> None:
        super().__init__()
        self.gnn = GIN(in_channels, hidden_channels, num_layers=3, norm="batch_norm")
        self.head = MLP([hidden_channels, hidden_channels, num_classes], norm=None, dropout=0.5)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        h = self.gnn(x, edge_index)
        return self.head(global_add_pool(h, batch))


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader, device: str
) -> None:
    """One pass over the training graphs."""
    model.train()
    for batch in loader:
        batch = batch.to(device)
        optimizer.zero_grad()
        F.cross_entropy(model(batch.x, batch.edge_index, batch.batch), batch.y).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader, device: str) -> float:
    """The share of graphs that are told rightly."""
    model.eval()
    hits = []
    for batch in loader:
        batch = batch.to(device)
        hits.append(model(batch.x, batch.edge_index, batch.batch).argmax(dim=-1) == batch.y)
    return share(torch.cat(hits))


def split_loaders(graphs: Sequence[Data]) -> list[DataLoader]:
    """Training, validation and test graphs at 80, 10 and 10 percent, drawn by the seed of the run.

    A generator of its own: all widths of one seed see the same split, however much randomness their
    models have used up before.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed())
    order = torch.randperm(len(graphs), generator=generator)
    parts = order.tensor_split([len(graphs) * 8 // 10, len(graphs) * 9 // 10])
    return [
        DataLoader([graphs[i] for i in part.tolist()], batch_size=64, shuffle=name == "train")
        for name, part in zip(("train", "val", "test"), parts, strict=True)
    ]


def main() -> None:
    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--dataset", default="MUTAG", help="a data set of the TU collection")

    args = parse_args(__doc__, epochs=60, seeds=3, extend=extend)
    graphs, num_features, num_classes, about = load_graphs(args.root, args.dataset, args.generated)

    def make_model() -> nn.Module:
        return GraphClassifier(num_features, 32, num_classes).to(args.device)

    def run(label: str, model: nn.Module) -> Score:
        train, val, test = split_loaders(graphs)
        optimizer = make_optimizer(model, weight_decay=0.0)
        return fit(
            label,
            args.epochs,
            train=lambda: train_epoch(model, optimizer, train, args.device),
            score=lambda: Score(
                accuracy(model, val, args.device), accuracy(model, test, args.device)
            ),
        )

    rows = compare(VARIANTS, args.seeds, make_model, run)
    layers = f"GIN {num_features}-32-{num_classes}, random 80/10/10 split per seed"
    print_table(about, layers, args, rows)


if __name__ == "__main__":
    main()
