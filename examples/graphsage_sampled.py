"""GraphSAGE trained on sampled neighbourhoods with PyG's NeighborLoader, at several widths.

    python examples/graphsage_sampled.py [--root FOLDER]

The loader needs pyg-lib or torch-sparse, which PyG does not install by itself. This command builds
the latter for the torch that is installed:

    python -m pip install --no-build-isolation -e ".[sparse]"
"""

from __future__ import annotations

from torch import nn
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import GraphSAGE
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE

from _common import (
    Score,
    compare,
    evaluate,
    fit,
    make_optimizer,
    parse_args,
    print_table,
    require,
    train_on_batches,
)
from _data import load_citation

# A package index holds the sources of torch-sparse alone, and nothing of pyg-lib.
BUILD = (
    'python -m pip install --no-build-isolation -e ".[sparse]", which builds torch-sparse and '
    "takes a while, or install a wheel of either as PyG's installation page says"
)
VARIANTS = {
    "FP32": None,
    "INT8": {"bits": 8},
    "INT4": {"bits": 4},
    "INT2": {"bits": 2},
}


def main() -> None:
    args = parse_args(__doc__, epochs=60, seeds=3)
    found = WITH_PYG_LIB or WITH_TORCH_SPARSE
    require(found, "NeighborLoader samples with pyg-lib or torch-sparse", BUILD)
    graph = load_citation(args.root, "Cora", args.generated)
    data = graph.data
    on_device = data.clone().to(args.device)

    def make_model() -> nn.Module:
        model = GraphSAGE(
            data.num_features, 64, num_layers=2, out_channels=graph.num_classes, dropout=0.5
        )
        return model.to(args.device)

    def run(label: str, model: nn.Module) -> Score:
        optimizer = make_optimizer(model)
        loader = NeighborLoader(
            data, num_neighbors=[10, 10], batch_size=70, input_nodes=data.train_mask, shuffle=True
        )
        return fit(
            label,
            args.epochs,
            train=lambda: train_on_batches(model, optimizer, loader, args.device),
            score=lambda: evaluate(model, on_device),
        )

    rows = compare(VARIANTS, args.seeds, make_model, run, features=data.x)
    layers = f"GraphSAGE {data.num_features}-64-{graph.num_classes}, 10 + 10 neighbours sampled"
    print_table(graph.description, layers, args, rows)


if __name__ == "__main__":
    main()
