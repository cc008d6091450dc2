"""PyG's heterogeneous graph transformer on DBLP, where authors, papers, terms and conferences have
features of different widths, or none, at several widths of numbers.

    python examples/hetero_dblp.py [--root FOLDER]

What is of this package: `qlr.quantize` (in `compare`), the groups of the optimizer (in
`make_optimizer`), and `qlr.convert`. The model and its training are PyG's `hgt_dblp.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import HGTConv, Linear

import torch_geometric_qlr as qlr
from _common import Score, compare, fit, make_optimizer, parse_args, print_table, share
from _data import load_dblp

VARIANTS = {
    "FP32": None,
    "INT8": {"bits": 8},
    "INT4": {"bits": 4},
}


class HGT(nn.Module):
    """A Linear for each type of nodes, one HGTConv, and a class for each author."""

    def __init__(self, data: HeteroData, hidden: int, classes: int) -> None:
        super().__init__()
        widths = data.num_features
        self.lin_dict = nn.ModuleDict({kind: Linear(widths[kind], hidden) for kind in widths})
        self.conv = HGTConv(hidden, hidden, data.metadata(), heads=2)
        self.lin = Linear(hidden, classes)

    def forward(self, x_dict: dict[str, Tensor], edge_index_dict: dict) -> Tensor:
        x_dict = {kind: self.lin_dict[kind](x).relu() for kind, x in x_dict.items()}
        return self.lin(self.conv(x_dict, edge_index_dict)["author"])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: HeteroData) -> None:
    model.train()
    optimizer.zero_grad()
    out, author = model(data.x_dict, data.edge_index_dict), data["author"]
    F.cross_entropy(out[author.train_mask], author.y[author.train_mask]).backward()
    optimizer.step()


@torch.no_grad()
def score(model: nn.Module, data: HeteroData) -> Score:
    author = data["author"]
    hit = model.eval()(data.x_dict, data.edge_index_dict).argmax(dim=-1) == author.y
    return Score(share(hit[author.val_mask]), share(hit[author.test_mask]))


def main() -> None:
    args = parse_args(__doc__, epochs=100, seeds=3)
    data, description = load_dblp(args.root, args.generated)
    data = data.to(args.device)
    classes = int(data["author"].y.max()) + 1
    last: list[nn.Module] = []

    def run(label: str, model: nn.Module) -> Score:
        last[:] = [model]
        optimizer = make_optimizer(model, lr=0.005, weight_decay=0.001)
        return fit(
            label,
            args.epochs,
            train=lambda: train(model, optimizer, data),
            score=lambda: score(model, data),
        )

    def make_model() -> nn.Module:
        return HGT(data, 64, classes).to(args.device)

    rows = compare(VARIANTS, args.seeds, make_model, run)
    print_table(description, "HGT, 64 hidden features, 2 heads", args, rows)
    quantized, packed = score(last[0], data), score(qlr.convert(last[0]), data)
    print(
        f"\nafter the last epoch of the last row: test accuracy {100 * quantized.test:.1f}", end=""
    )
    print(f" quantized, {100 * packed.test:.1f} converted")


if __name__ == "__main__":
    main()
