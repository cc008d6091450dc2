"""Two processes train one model: the same weights and the same ranges in both."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch_geometric.nn import GCN

import torch_geometric_qlr as qlr


def _train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = qlr.quantize(GCN(8, 6, 2, 3), bits=2, truncation="bt*")
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    torch.manual_seed(rank)  # every process has data of its own, of its own range
    edge_index = torch.randint(0, 12, (2, 30))
    start = None
    for _ in range(3):
        optimizer.zero_grad()
        parallel((1 + rank) * torch.randn(12, 8), edge_index).square().mean().backward()
        start = start or [p.detach().clone() for p in qlr.quant_parameters(model)]
        optimizer.step()
    moved = any(
        not torch.equal(a, b) for a, b in zip(start or [], qlr.quant_parameters(model), strict=True)
    )
    torch.save((model.state_dict(), moved), f"{folder}/rank{rank}.pt")
    dist.barrier()
    # Without the destructor of the group: it holds the interpreter while it waits for a thread of
    # gloo's, and that thread may be waiting for the interpreter.
    os._exit(0)


def test_processes_agree_on_the_ranges(tmp_path: Path) -> None:
    mp.spawn(_train, args=(str(tmp_path),), nprocs=2)
    (first, moved), (second, _) = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert moved
    for key in (k for k in first if not k.endswith((".lo", ".hi", ".skew"))):
        assert torch.equal(first[key], second[key]), key
