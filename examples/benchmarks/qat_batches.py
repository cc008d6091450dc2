"""What a quantized training step costs against the float one on batches of small graphs.

    python examples/benchmarks/qat_batches.py --threads 1

What training a classifier of molecules does: a batch norm after every layer, a sum over each graph,
a loss, Adam. The tensors are so small that the number of operations counts, not the size of the
data; `qat_cost.py` measures the opposite, one large graph. Steps of both models are taken in turns,
on another batch each (out of 64 that a loader has made) and on one and the same; the ratio is the
median of the ratios within a turn.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE, global_add_pool

import torch_geometric_qlr as qlr
from _timing import environment, interleave, paired_ratio
from cpu_batches import molecule

MODELS = {cls.__name__: cls for cls in (GIN, GCN, GAT, GraphSAGE)}
CLASSES, BATCHES = 2, 64


class Classifier(nn.Module):
    """A label per graph, as PyG's examples make it."""

    def __init__(self, name: str, features: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.convs = MODELS[name](features, hidden, layers, norm="batch_norm")
        self.lin = nn.Linear(hidden, CLASSES)

    def forward(self, batch: Batch) -> Tensor:
        x = self.convs(batch.x, batch.edge_index)
        out: Tensor = self.lin(global_add_pool(x, batch.batch, batch.num_graphs))
        return out


def batches(num_graphs: int, features: int) -> list[Batch]:
    """Batches as a loader makes them."""
    data = []
    for size in torch.randint(15, 36, (BATCHES * num_graphs,)).tolist():
        label, x = torch.randint(CLASSES, (1,)), torch.randn(size, features)
        data.append(Data(x=x, edge_index=molecule(size), y=label))
    return list(DataLoader(data, num_graphs))


def training_step(model: nn.Module, data: list[Batch]) -> Callable[[], None]:
    """A step of training, on the next batch in every call."""
    optimizer, turn = torch.optim.Adam(model.parameters(), lr=1e-3), itertools.cycle(data)
    model.train()

    def step() -> None:
        batch = next(turn)
        optimizer.zero_grad()
        F.cross_entropy(model(batch), batch.y).backward()
        optimizer.step()

    return step


def compare(name: str, args: argparse.Namespace, data: list[Batch]) -> tuple[float, float, float]:
    """Milliseconds of the float step and of the quantized one, and the ratio within a turn."""
    seed_everything(0)
    plain = Classifier(name, args.features, args.hidden, args.layers)
    steps = {
        "quantized": training_step(qlr.quantize(plain, bits=args.bits), data),
        "float": training_step(plain, data),
    }
    # One thread is timed by what it computes, whoever else does on the machine.
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    times = interleave(steps, args.rounds, clock=clock)
    mine, theirs = (1e3 * statistics.median(times[key]) for key in ("quantized", "float"))
    return theirs, mine, paired_ratio(times, "quantized", "float")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--graphs", type=int, default=32, help="in a batch")
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seed_everything(0)
    data = batches(args.graphs, args.features)
    for key, value in environment().items():
        print(f"- {key}: {value}")
    print(f"- nodes in a batch: {data[0].num_nodes}, edges: {data[0].num_edges}\n")
    print(f"| model | batches | float ms | INT{args.bits} ms | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for name in args.models:
        for kind, used in (("new", data), ("the same", data[:1])):
            theirs, mine, ratio = compare(name, args, used)
            print(f"| {name} | {kind} | {theirs:.2f} | {mine:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
