"""GraphSAGE on features that lie in a packed file, trained and converted on sampled batches.

    python examples/packed_features.py [--root FOLDER] [--bits BITS]

The features are written once, at a few bits. A store opens the file, of which the worker processes
of a loader gather the rows that a batch needs. In training the quantized model reads their values;
converted, it computes with the codes as they are.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import GraphSAGE
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE
from tqdm import tqdm

import torch_geometric_qlr as qlr
from _common import human, make_optimizer, parse_args, require, share, train_on_batches
from _data import load_citation
from graphsage_sampled import BUILD


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bits", type=int, default=4, help="of features, weights and messages")
    parser.add_argument("--workers", type=int, default=2, help="processes of a loader")


@torch.no_grad()
def accuracy(model: nn.Module, loader: NeighborLoader, device: str) -> float:
    """In percent, on the seed nodes of all batches."""
    model.eval()
    hits = []
    for batch in loader:
        batch = batch.to(device)
        out = model(batch.x, batch.edge_index)[: batch.batch_size]
        hits.append(out.argmax(dim=-1) == batch.y[: batch.batch_size])
    return 100 * share(torch.cat(hits))


def loaders(path: Path, data: Data, workers: int) -> tuple[NeighborLoader, NeighborLoader]:
    """Of the training and the test nodes. The labels and the graph are in memory."""
    store = qlr.loader.PackedFeatureStore(path)
    store[None, "y", None] = data.y
    print(store)
    graph = Data()
    size = (data.num_nodes, data.num_nodes)
    graph.put_edge_index(data.edge_index, layout="coo", size=size)

    def loader(mask: Tensor, shuffle: bool) -> NeighborLoader:
        nodes = mask.nonzero().view(-1)
        return NeighborLoader(
            (store, graph),
            num_neighbors=[10, 10],
            batch_size=256,
            input_nodes=nodes,
            shuffle=shuffle,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    return loader(data.train_mask, True), loader(data.test_mask, False)


def main() -> None:
    args = parse_args(__doc__, epochs=60, seeds=1, extend=extend)
    found = WITH_PYG_LIB or WITH_TORCH_SPARSE
    require(found, "NeighborLoader samples with pyg-lib or torch-sparse", BUILD)
    graph = load_citation(args.root, "Cora", args.generated)
    data = graph.data
    print(graph.description)
    seed_everything(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "features.safetensors")
        qlr.loader.PackedFeatureStore.write(path, data.x, bits=args.bits)
        train, test = loaders(path, data, args.workers)
        model = GraphSAGE(data.num_features, 64, 2, graph.num_classes, dropout=0.5)
        model = qlr.quantize(model.to(args.device), bits=args.bits)
        optimizer = make_optimizer(model)
        for _ in tqdm(range(args.epochs), desc="training", leave=False, disable=None):
            train_on_batches(model, optimizer, train, args.device)
        packed = qlr.convert(model.eval())
        print(
            f"features  {human(data.x.nbytes)} as floats, {human(path.stat().st_size)} in the file"
        )
        print(f"accuracy  {accuracy(model, test, args.device):.1f} quantized, ", end="")
        print(f"{accuracy(packed, test, args.device):.1f} converted")


if __name__ == "__main__":
    main()
