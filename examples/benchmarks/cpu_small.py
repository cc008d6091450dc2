"""Small graphs on a CPU, where calls cost more than numbers: converted models and the float one.

    python examples/benchmarks/cpu_small.py --threads 1 --json small.json
    python examples/benchmarks/cpu_small.py --threads 1 --compile --models gin gin_norm

Every model runs as its user calls it, on a plain edge_index, and with `--compile` also under
`torch.compile`, float and converted alike:

- `gin`, `gin_norm`: a GIN of two layers, and of three with batch norm, on one batch of molecules.
- `gat`: GAT with batch norm and jumping knowledge on a graph like Cora.
- `gcn`: a GCN on the same graph; its converted rows get packed features.
- `sage`: GraphSAGE on batches of a `NeighborLoader`, another one in every call.
- `new_gcn`, `new_gin`: batches of 128 molecules whose edges were never seen before.

With `--root` the graph is Cora itself, which has to lie there. Times are those of the processor in
this thread, so that whoever shares the machine disturbs them least. Ratios are medians over rounds
of our time over the peer's within the round: below 1, conversion pays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

import torch_geometric_qlr as qlr
from _graphs import generate
from _timing import Times, environment, interleave, paired_ratio
from cpu_batches import batch
from torch_geometric_qlr.ops import backend_info

WIDTH, CLASSES = 64, 16
PEER = "float"

#: What a model is called with.
Inputs = tuple[Any, ...]


class Case(NamedTuple):
    """A float model, what one call of it gets, and whether converted models get packed features."""

    title: str
    model: nn.Module
    inputs: Callable[[], Inputs]
    packs: bool = False


def same(*inputs: Any) -> Callable[[], Inputs]:
    """The same objects in every call."""
    return lambda: inputs


def molecules(num_layers: int, norm: str | None, args: argparse.Namespace) -> Case:
    x, edge_index = batch(args.graphs, WIDTH)
    model = GIN(WIDTH, WIDTH, num_layers, CLASSES, norm=norm)
    title = f"GIN, {num_layers} layers{', batch norm' if norm else ''}, {args.graphs} small graphs"
    return Case(f"{title} ({x.size(0)} nodes)", model, same(x, edge_index))


def new_molecules(cls: Any, args: argparse.Namespace) -> Case:
    x, edge_index = batch(4 * args.graphs)
    title = f"{cls.__name__}, new batches of {4 * args.graphs} small graphs"
    model = cls(x.size(1), WIDTH, 3, CLASSES)
    return Case(title, model, lambda: (x, edge_index.clone()))


def citations(args: argparse.Namespace) -> tuple[str, Data]:
    """Cora, or a graph of its shape."""
    if args.root is None:
        csr = generate("cora")
        return "Cora shape", Data(torch.rand(csr.num_nodes, 1433), csr.edge_index())
    return "Cora", Planetoid(str(args.root), "Cora")[0]


def gat(args: argparse.Namespace) -> Case:
    where, data = citations(args)
    model = GAT(data.num_features, 8, 2, 7, heads=4, norm="batch_norm", jk="cat")
    title = f"GAT, batch norm, jumping knowledge, {where}"
    return Case(title, model, same(data.x, data.edge_index))


def gcn(args: argparse.Namespace) -> Case:
    where, data = citations(args)
    model = GCN(data.num_features, WIDTH, 2, 7)
    return Case(f"GCN, {where}, packed x", model, same(data.x, data.edge_index), packs=True)


def sage(args: argparse.Namespace) -> Case:
    csr = generate(args.sampled)
    data = Data(torch.randn(csr.num_nodes, WIDTH), csr.edge_index())
    loader = NeighborLoader(data, [10, 10], batch_size=128, shuffle=True)
    some = [b for b, _ in zip(loader, range(16), strict=False)]
    batches: Iterator[Any] = cycle([(b.x, b.edge_index) for b in some])

    def fresh() -> Inputs:
        x, edge_index = next(batches)
        return x, edge_index.clone()

    title = f"GraphSAGE, NeighborLoader on {args.sampled} shape"
    return Case(title, GraphSAGE(WIDTH, WIDTH, 2, CLASSES), fresh)


CASES: dict[str, Callable[[argparse.Namespace], Case]] = {
    "gin": lambda args: molecules(2, None, args),
    "gin_norm": lambda args: molecules(3, "batch_norm", args),
    "gat": gat,
    "gcn": gcn,
    "sage": sage,
    "new_gcn": lambda args: new_molecules(GCN, args),
    "new_gin": lambda args: new_molecules(GIN, args),
}


def candidates(case: Case, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The float model and the converted ones, as they are and compiled."""
    models: dict[str, Callable[..., Any]] = {PEER: case.model.eval()}
    x, *rest = case.inputs()
    for width in args.bits:
        quantized = qlr.quantize(case.model, bits=width).eval()
        quantized(x, *rest)
        packed = qlr.convert(quantized)
        models[f"INT{width}"] = packed
    if args.compile:
        for name, model in list(models.items()):
            models[f"{name}, compiled"] = torch.compile(model, dynamic=True)
    out: dict[str, Callable[[], Any]] = {}
    for name, model in models.items():
        if case.packs and not name.startswith(PEER):
            codes = qlr.pack_features(getattr(model, "_orig_mod", model), x)
            out[name] = lambda m=model, c=codes: m(c, *case.inputs()[1:])
        else:
            out[name] = lambda m=model: m(*case.inputs())
    return out


def peer_of(name: str) -> str:
    """The float model that runs in the same way."""
    return f"{PEER}, compiled" if name.endswith(", compiled") else PEER


HEAD = "| graph and model | candidate | median us | over float |\n| --- | --- | --- | --- |"


def rows(title: str, times: Times) -> str:
    """The lines of a table, one for each candidate."""
    return "\n".join(
        f"| {title} | {name} | {statistics.median(seconds) * 1e6:.0f} "
        f"| {1 / paired_ratio(times, peer_of(name), name):.2f} |"
        for name, seconds in times.items()
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--bits", nargs="+", type=int, default=[8])
    parser.add_argument("--graphs", type=int, default=32, help="small graphs in a batch")
    parser.add_argument("--root", type=Path, help="where Planetoid's Cora lies")
    parser.add_argument("--sampled", default="arxiv", help="shape of the graph to sample from")
    parser.add_argument("--compile", action="store_true", help="also compiled models")
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write all times here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {
        "environment": environment() | {"kernels": backend_info()["selected"]},
        "rounds": args.rounds,
    }
    for key, value in result["environment"].items():
        print(f"- {key}: {value}")
    lines = [HEAD]
    print(f"\n{HEAD}")
    for name in args.models:
        torch.manual_seed(0)
        case = CASES[name](args)
        times = interleave(candidates(case, args), args.rounds, clock=time.thread_time)
        lines.append(rows(case.title, times))
        print(lines[-1], flush=True)
        result[name] = {"title": case.title, "seconds": times}
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2))
    if args.markdown is not None:
        args.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
