"""A GAT on Cora at several widths, and in mixed precision: 8 bits in the last layer, 4 before it.

python examples/gat_cora.py [--root FOLDER]
"""

from __future__ import annotations

from torch import nn
from torch_geometric.nn import GAT

from _common import Score, compare, fit_full_batch, parse_args, print_table
from _data import load_citation

VARIANTS = {
    "FP32": None,
    "INT8": {"bits": 8},
    "INT4": {"bits": 4},
    "INT4/8": {"bits": 4, "overrides": {"convs.1": {"bits": 8}}},
    "INT2": {"bits": 2},
}


def main() -> None:
    args = parse_args(__doc__, epochs=200, seeds=3)
    graph = load_citation(args.root, "Cora", args.generated, sparse=True)
    data = graph.data.to(args.device)

    def make_model() -> nn.Module:
        model = GAT(
            data.num_features,
            64,
            num_layers=2,
            out_channels=graph.num_classes,
            heads=8,
            dropout=0.6,
        )
        return model.to(args.device)

    def run(label: str, model: nn.Module) -> Score:
        return fit_full_batch(label, model, data, args.epochs, lr=0.005)

    rows = compare(VARIANTS, args.seeds, make_model, run, features=data.x)
    print_table(graph.description, f"GAT {data.num_features}-8x8-{graph.num_classes}", args, rows)


if __name__ == "__main__":
    main()
