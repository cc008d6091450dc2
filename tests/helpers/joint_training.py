"""What processes do together, and what one process does with all of their data."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GCN, GCNConv, HeteroConv, SAGEConv

import torch_geometric_qlr as qlr
from torch_geometric_qlr.quantizers import Quantizer

NODES, FEATURES = 12, 8
State = dict[str, Tensor]


def graph(rank: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The data of a process, of its own range."""
    made = torch.Generator().manual_seed(10 + rank)
    x = scale * (1 + rank) * torch.randn(NODES, FEATURES, generator=made)
    return x, torch.randint(0, NODES, (2, 30), generator=made)


def joint_graph(world: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """That of all of them, side by side."""
    xs, edges = zip(*(graph(rank, scale) for rank in range(world)), strict=True)
    return torch.cat(xs), torch.cat([e + NODES * r for r, e in enumerate(edges)], dim=1)


CONFIGS: dict[str, dict[str, Any]] = {
    "2 bits, BT*": {"bits": 2, "truncation": "bt*"},
    "4 bits": {"bits": 4},
    "per feature": {"bits": 4, "granularity": "feature"},
    "per tensor": {"bits": 4, "granularity": {"input": "tensor"}},
    "without search": {"bits": 8, "search": False},
    "lsq": {"config": "lsq", "bits": 4},
}


def two_layers(config: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return qlr.quantize(GCN(FEATURES, 6, 2, 3), **config)


def train(model: nn.Module, inputs: tuple[Any, ...]) -> list[State]:
    """Trains a model, alone or in parallel: its state after each forward."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    states = []
    for _ in range(3):
        optimizer.zero_grad()
        out = model(*inputs)
        states.append(state_of(model))
        out.square().mean().backward()
        optimizer.step()
    return states


def state_of(model: nn.Module) -> State:
    model = model.module if isinstance(model, DistributedDataParallel) else model
    return copy.deepcopy(model.state_dict())


def configs(rank: int, world: int) -> dict[str, list[State]]:
    return {
        name: train(DistributedDataParallel(two_layers(config)), graph(rank))
        for name, config in CONFIGS.items()
    }


def weak_features(rank: int, world: int) -> list[State]:
    return train(DistributedDataParallel(two_layers({"bits": 4})), graph(rank, 0.02))


def evaluated_before(rank: int, world: int) -> list[State]:
    """Evaluation has left each process another range and another multiplier."""
    parallel = DistributedDataParallel(two_layers({"bits": 2}))
    with torch.no_grad():
        parallel.module.eval()(*graph(rank))
    parallel.train()
    return train(parallel, graph(rank))


class Branches(nn.Module):
    """Goes through some of its layers, in some order."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GCNConv(FEATURES, FEATURES) for _ in range(number))

    def forward(self, x: Tensor, edge_index: Tensor, way: list[int]) -> Tensor:
        for layer in way:
            x = self.layers[layer](x, edge_index).relu()
        return x


def branches(number: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return qlr.quantize(Branches(number), bits=4, truncation="bt*")


def other_ways(rank: int, world: int) -> list[State]:
    """In each forward each process takes a way of its own."""
    parallel = DistributedDataParallel(branches(), find_unused_parameters=True)
    x, edge_index = graph(rank)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.02)
    states, made = [], torch.Generator().manual_seed(rank)
    for length in (1, 2, 5, 3, 6, 4, 2, 1):
        way = torch.randint(0, 5, (length,), generator=made).tolist()
        parallel(x, edge_index, way).square().mean().backward()
        optimizer.step()
        states.append(state_of(parallel))
    return states


def one_goes_elsewhere(rank: int, world: int) -> State:
    """The first process takes the first layer, the others go round it."""
    parallel = DistributedDataParallel(branches(2), find_unused_parameters=True)
    for _ in range(3):
        parallel(*graph(rank), [0, 1] if rank == 0 else [1]).sum().backward()
    return state_of(parallel)


TYPES = ("a", "to", "b"), ("b", "back", "a")


def hetero() -> nn.Module:
    torch.manual_seed(0)
    conv = HeteroConv({kind: SAGEConv((-1, -1), 4) for kind in TYPES})
    conv(*hetero_graph([0]))
    return qlr.quantize(conv, bits=4, truncation="bt*")


def hetero_graph(ranks: list[int]) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
    """Only the first process has edges back."""
    graphs = [graph(rank) for rank in ranks]
    x = torch.cat([x for x, _ in graphs])
    edges = [NODES * i + e for i, (_, e) in enumerate(graphs)]
    found = {TYPES[0]: torch.cat(edges, dim=1)}
    if 0 in ranks:
        found[TYPES[1]] = edges[ranks.index(0)]
    return {"a": x, "b": 2 * x}, found


def missing_edge_type(rank: int, world: int) -> State:
    parallel = DistributedDataParallel(hetero(), find_unused_parameters=True)
    for _ in range(3):
        out = parallel(*hetero_graph([rank]))
        sum(value.sum() for value in out.values()).backward()
    return state_of(parallel)


def batch_norm_model() -> nn.Module:
    torch.manual_seed(0)
    return qlr.quantize(GCN(FEATURES, 6, 2, 3, norm="batch"), bits=4)


def sync_batch_norm(rank: int, world: int) -> list[State]:
    """Torch has it on GPUs alone. One is enough, for gloo has nothing against sharing it."""
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(batch_norm_model()).cuda()
    x, edge_index = graph(rank)
    parallel = DistributedDataParallel(synchronized, device_ids=[0])
    return [
        {key: value.cpu() for key, value in state.items()}
        for state in train(parallel, (x.cuda(), edge_index.cuda()))
    ]


def exchanges(rank: int, world: int) -> tuple[int, int, int]:
    """How many running ranges there are, and how often a step and an evaluation exchange."""
    parallel, data = DistributedDataParallel(two_layers({"bits": 4})), graph(rank)
    parallel(*data).sum().backward()
    quantizers = (m for m in parallel.modules() if isinstance(m, Quantizer))
    running = sum(quantizer.is_static for quantizer in quantizers)
    counts = []
    with mock.patch.object(dist, "all_gather", side_effect=dist.all_gather) as gathered:
        for training in (True, False):
            gathered.reset_mock()
            parallel.train(training)(*data)
            counts.append(gathered.call_count)
    return running, *counts


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([GCNConv(FEATURES, 6), GCNConv(6, 3)])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs:
            x = checkpoint(conv, x, edge_index, use_reentrant=False)
        return x


def checkpointed_model() -> nn.Module:
    torch.manual_seed(0)
    return qlr.quantize(Checkpointed(), bits=4, truncation="bt*")


def checkpointed(rank: int, world: int) -> list[State]:
    return train(DistributedDataParallel(checkpointed_model()), graph(rank))


def joined(rank: int, world: int) -> str:
    parallel = DistributedDataParallel(two_layers({"bits": 4}))
    try:
        with parallel.join(throw_on_early_termination=False):
            parallel(*graph(rank))
    except qlr.errors.InputError as error:
        return str(error)
    return ""


def sharded(rank: int, world: int) -> tuple[str, str]:
    """What is said of parameters in pieces: by torch, and by the model if torch is told to ignore
    those that it does not cut."""
    mesh, words = init_device_mesh("cpu", (world,)), []
    for ignores in (False, True):
        model = two_layers({"bits": 4})
        ignored = set(qlr.quant_parameters(model)) if ignores else set()
        try:
            fully_shard(model, mesh=mesh, ignored_params=ignored)
            model(*graph(rank))
        except (ValueError, qlr.errors.UnsupportedLayerError) as error:
            words.append(str(error))
    return tuple(words)


def calibrated(data: tuple[Tensor, Tensor]) -> dict[str, State]:
    """Ranges without training, by each method, and by the first of them from more data."""
    found = {}
    for method in ("mse", "percentile", "minmax"):
        model = two_layers({"bits": 2, "truncation": "bt*"})
        seen = qlr.calibrate(model, data, progress=False, method=method)
        found[method] = state_of(model)
        if method == "mse":
            more = -data[0], data[1]
            assert not qlr.calibrate(model, more, progress=False, resume=seen).unobserved
            found["more"] = state_of(model)
    model = two_layers(CONFIGS["lsq"])
    qlr.calibrate(model, data, progress=False)
    found["lsq"] = state_of(model)
    return found


def counted(rank: int, world: int) -> dict[str, State]:
    return calibrated(graph(rank))


def counted_alone(rank: int, world: int) -> State:
    """Other processes may have nothing to do with it."""
    model = two_layers({"bits": 4})
    if rank == 0:
        qlr.calibrate(model, graph(0), progress=False, alone=True)
    return state_of(model)


def counted_by_one(rank: int, world: int) -> tuple[State, list[str]]:
    """Only the first process goes through the first layer."""
    model = branches(2)
    batch = (*graph(rank), [0, 1] if rank == 0 else [1])
    observed = qlr.calibrate(model, batch, progress=False).observed
    return state_of(model), observed
