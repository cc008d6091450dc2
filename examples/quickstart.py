"""A GCN on Cora in full precision and with 8, 4 and 2 bits: accuracy and size, side by side.

    python examples/quickstart.py [--root FOLDER]

The quantized models are trained from the same start, with the same loop, as the float one.
"""

from __future__ import annotations

from torch import nn
from torch_geometric.nn import GCN

from _common import Score, compare, fit_full_batch, parse_args, print_table
from _data import load_citation

VARIANTS = {
    "FP32": None,
    "INT8": {"bits": 8},
    "INT4": {"bits": 4},
    "INT2": {"bits": 2},
}


def main() -> None:
    args = parse_args(__doc__, epochs=200, seeds=3)
    graph = load_citation(args.root, "Cora", args.generated, sparse=True)
    data = graph.data.to(args.device)

    def make_model() -> nn.Module:
        model = GCN(
            data.num_features, 64, num_layers=2, out_channels=graph.num_classes, dropout=0.5
        )
        return model.to(args.device)

    def run(label: str, model: nn.Module) -> Score:
        return fit_full_batch(label, model, data, args.epochs)

    rows = compare(VARIANTS, args.seeds, make_model, run, features=data.x)
    print_table(graph.description, f"GCN {data.num_features}-64-{graph.num_classes}", args, rows)


if __name__ == "__main__":
    main()
