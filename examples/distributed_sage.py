"""GraphSAGE trained at few bits by several processes, each on sampled batches of its own.

    torchrun --nproc-per-node 2 examples/distributed_sage.py [--bits BITS] [--root FOLDER]

The seeds are divided among the processes. Their gradients are averaged by DistributedDataParallel,
and the ranges of the quantizers follow the batches of all: nothing in the loop is there for the
quantization. With a GPU for each process they talk through NCCL, otherwise through gloo. Without
torchrun it is one process.

The loader needs pyg-lib or torch-sparse, see graphsage_sampled.py.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import GraphSAGE
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE

import torch_geometric_qlr as qlr
from _common import make_optimizer, parse_args, require, score_of, train_on_batches
from _data import load_citation
from graphsage_sampled import BUILD


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bits", type=int, default=4, help="of weights, activations and messages")
    parser.add_argument("--batch", type=int, default=32, help="seeds of a process per step")


def start() -> tuple[int, int, torch.device]:
    """Joins the other processes: rank, how many there are, and the device of this one."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    has_gpu = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = torch.device("cuda", local) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if has_gpu else "gloo")
    return rank, world, device


def own_seeds(mask: Tensor, rank: int, world: int) -> Tensor:
    """Every process has as many, so that none waits for the last batch of another."""
    nodes = mask.nonzero().view(-1)
    return nodes[rank : len(nodes) // world * world : world]


def report(model: nn.Module, data: Data) -> None:
    """What the first process prints: all of them have the same model."""
    with torch.no_grad():
        quantized = score_of(model.eval()(data.x, data.edge_index), data)
        packed = score_of(qlr.convert(model)(data.x, data.edge_index), data)
    print(f"test accuracy  {100 * quantized.test:.1f} quantized, {100 * packed.test:.1f} converted")


def main() -> None:
    args = parse_args(__doc__, epochs=20, seeds=1, extend=extend)
    found = WITH_PYG_LIB or WITH_TORCH_SPARSE
    require(found, "NeighborLoader samples with pyg-lib or torch-sparse", BUILD)
    rank, world, device = start()
    graph = load_citation(args.root, "Cora", args.generated)
    data = graph.data
    seed_everything(0)  # all start from the same weights
    model = GraphSAGE(data.num_features, 64, 2, graph.num_classes, dropout=0.5)
    model = qlr.quantize(model.to(device), bits=args.bits)
    parallel = DistributedDataParallel(model) if world > 1 else model
    seed_everything(rank)  # and draw samples and dropout of their own
    loader = NeighborLoader(
        data,
        num_neighbors=[10, 10],
        batch_size=args.batch,
        input_nodes=own_seeds(data.train_mask, rank, world),
        shuffle=True,
    )
    optimizer = make_optimizer(model)
    for _ in range(args.epochs):
        train_on_batches(parallel, optimizer, loader, device)
    if rank == 0:
        print(f"{graph.description}, {world} processes on {device.type}")
        report(model, data.to(device))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
