"""A graph of millions of nodes from end to end in little memory: features packed into a file, an
epoch of quantized training on sampled batches, conversion, and inference for all nodes.

    python examples/benchmarks/large_graph.py                         # 2M nodes, 40M edges
    python examples/benchmarks/large_graph.py --nodes 100000 --edges 2000000 --seeds 20000
    python examples/benchmarks/large_graph.py --store FOLDER --json out.json

The graph is generated, with a power law of degrees. Its features are made block by block and
written as codes; as floats for all nodes they never exist. GraphSAGE trains on `--seeds` nodes with
10 and 5 sampled neighbours. Each stage reports its seconds and the largest resident memory of the
process in it, libraries, graph and mapped file included. Accuracy shows that something was learned:
features tell the class of a node, with noise.

Linux only: it reads /proc. The loader needs pyg-lib or torch-sparse:
python -m pip install --no-build-isolation -e ".[sparse]"
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import GraphSAGE
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE
from tqdm import tqdm

import torch_geometric_qlr as qlr
from _graphs import SHAPES, Shape, generate
from _memory import forget_peak, memory
from _timing import environment
from torch_geometric_qlr.ops import backend_info

CLASSES, HIDDEN, FANOUT = 40, 64, (10, 5)
BLOCK = 1 << 15


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=2_000_000)
    parser.add_argument("--edges", type=int, default=40_000_000, help="both directions count")
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=200_000, help="nodes to train on")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=1024, help="seeds in a training batch")
    parser.add_argument("--store", type=Path, help="folder for rows between layers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not 0 < args.seeds < args.nodes or args.edges < args.nodes:
        parser.error("--seeds is below --nodes, and --edges is not")
    if not (WITH_PYG_LIB or WITH_TORCH_SPARSE):
        sys.exit("NeighborLoader needs pyg-lib or torch-sparse, which is not installed here.")
    torch.set_num_threads(args.threads)
    return args


class Stages:
    """What each part of the program takes."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        forget_peak()
        start = time.perf_counter()
        yield
        seconds, peak = time.perf_counter() - start, memory("VmHWM")
        self.found[name] = {"seconds": seconds, "peak_mb": peak, "left_mb": memory("VmRSS")}
        print(f"| {name} | {seconds:.1f} | {peak:.0f} |", flush=True)

    @property
    def peak(self) -> float:
        return max(stage["peak_mb"] for stage in self.found.values())


# The parts ########################################################################################


def make_graph(nodes: int, edges: int) -> tuple[Tensor, Tensor]:
    """Edges sorted by target, and a class for each node."""
    SHAPES["asked"] = Shape(nodes, edges // 2, CLASSES, 0.65, 1.5, 0.005, 5)
    edge_index = generate("asked").edge_index()
    y = torch.randint(CLASSES, (nodes,), generator=torch.Generator().manual_seed(6))
    return edge_index, y


class Features:
    """Rows in blocks, the same ones each time."""

    def __init__(self, y: Tensor, columns: int) -> None:
        self.y = y
        self.rng = torch.Generator()
        self.centers = torch.randn(CLASSES, columns, generator=self.rng.manual_seed(7))

    def __len__(self) -> int:
        return -(-len(self.y) // BLOCK)

    def __iter__(self) -> Iterator[Tensor]:
        self.rng.manual_seed(8)
        for y in self.y.split(BLOCK):
            noise = torch.randn(len(y), self.centers.size(1), generator=self.rng)
            yield noise.mul_(4.0).add_(self.centers[y])


def train(model: nn.Module, loader: NeighborLoader, y: Tensor) -> tuple[nn.Module, list[float]]:
    """One epoch."""
    groups = qlr.parameter_groups(model, lr=0.01, weight_decay=5e-4)
    optimizer, losses = torch.optim.Adam(groups), []
    model.train()
    with tqdm(loader, desc="training", mininterval=5.0) as batches:
        for batch in batches:
            optimizer.zero_grad()
            out = model(batch.x, batch.edge_index)[: batch.batch_size]
            loss = F.cross_entropy(out, y[batch.n_id[: batch.batch_size]])
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            batches.set_postfix(loss=f"{losses[-1]:.2f}", refresh=False)
    return model.eval(), losses


def loader_of(store: Any, edge_index: Tensor, args: argparse.Namespace) -> NeighborLoader:
    graph = Data()
    size = (args.nodes, args.nodes)
    graph.put_edge_index(edge_index, layout="coo", size=size, is_sorted=True)
    return NeighborLoader(
        (store, graph),
        num_neighbors=list(FANOUT),
        batch_size=args.batch_size,
        input_nodes=torch.arange(args.seeds),  # nodes are numbered at random
        shuffle=True,
    )


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    stages = Stages()
    print("| stage | seconds | peak MB |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "features.safetensors")
        with stages.stage("graph"):
            edge_index, y = make_graph(args.nodes, args.edges)
        with stages.stage("features"):
            rows = Features(y, args.features)
            qlr.loader.PackedFeatureStore.write(path, rows, bits=args.bits)
        store = qlr.loader.PackedFeatureStore(path)
        model = GraphSAGE(args.features, HIDDEN, 2, CLASSES, dropout=0.2)
        with stages.stage("training"):
            model = qlr.quantize(model, bits=args.bits)
            model, losses = train(model, loader_of(store, edge_index, args), y)
        with stages.stage("conversion"):
            packed = qlr.convert(model)
        with stages.stage("inference"):
            data = Data(edge_index=edge_index)
            out = qlr.inference(packed, data, features=store, store=args.store)
        hits = out.argmax(dim=1) == y
        sizes = {"file": path.stat().st_size, "floats": 4 * args.nodes * args.features}
    accuracy = float(hits[args.seeds :].float().mean())
    print(f"\npeak {stages.peak:.0f} MB; file of features {sizes['file'] / 2**20:.0f} MB, ", end="")
    print(f"floats {sizes['floats'] / 2**20:.0f} MB; accuracy elsewhere {100 * accuracy:.1f} %")
    if args.json is not None:
        setting = {k: v for k, v in vars(args).items() if k not in ("json", "store")}
        found = {
            "environment": {**environment(), "kernels": backend_info()["selected"]},
            "setting": {**setting, "edges": edge_index.size(1), "fanout": FANOUT},
            "rows_in_files": args.store is not None,
            "model": f"GraphSAGE {args.features}-{HIDDEN}-{CLASSES}",
            "bytes": sizes,
            "stages": stages.found,
            "peak_mb": stages.peak,
            "loss": [losses[0], losses[-1]],
            "accuracy": accuracy,
        }
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
