"""Batches of small graphs on a CPU, each batch new: converted models next to the float one.

    python examples/benchmarks/cpu_batches.py --threads 1 --json batches.json

What a classifier of molecules does: every call gets edges that were never seen before, so nothing
about them is remembered, and a converted model sorts them first. The graphs are generated chains of
15 to 35 nodes with rings; features are random, which changes no time. Models are `GCN` and `GIN` of
`torch_geometric.nn` on a plain edge_index, all that there is for edges that are new. The rows of
converted models are named as by `cpu_models.py`, and `plot_speed.py` reads the file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCN, GIN

import torch_geometric_qlr as qlr
from _timing import environment, interleave, markdown, paired_ratio
from cpu_models import CONFIGS, Candidates
from torch_geometric_qlr.ops import backend_info

FEATURES, HIDDEN, CLASSES, LAYERS = 32, 64, 16, 3
MODELS = {"gcn": GCN, "gin": GIN}
PEER = "edge_index"


def molecule(num_nodes: int) -> Tensor:
    """A chain with a ring over every six nodes, both directions."""
    chain = torch.arange(num_nodes - 1)
    ring = torch.arange(0, num_nodes - 5, 6)
    source = torch.cat([chain, ring])
    target = torch.cat([chain + 1, ring + 5])
    return torch.stack([torch.cat([source, target]), torch.cat([target, source])])


def batch(num_graphs: int, features: int = FEATURES) -> tuple[Tensor, Tensor]:
    """Features and edges of one batch."""
    sizes = torch.randint(15, 36, (num_graphs,)).tolist()
    parts, start = [], 0
    for size in sizes:
        parts.append(molecule(size) + start)
        start += size
    return torch.randn(start, features), torch.cat(parts, dim=1)


def candidates(model: nn.Module, x: Tensor, edge_index: Tensor, widths: list[int]) -> Candidates:
    """The float model and the converted ones; a copy of the edges is a graph never seen."""
    out: Candidates = {PEER: lambda: model(x, edge_index.clone())}
    for width in widths:
        for suffix, config in CONFIGS.items():
            quantized = qlr.quantize(model, bits=width, **config).eval()
            quantized(x, edge_index)
            packed = qlr.convert(quantized)
            out[f"INT{width}{suffix}, float x"] = lambda m=packed: m(x, edge_index.clone())
    return out


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=128, help="in a batch")
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 2])
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write all times here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    x, edge_index = batch(args.graphs)
    where = f"new batches of {args.graphs} small graphs"
    result: dict[str, Any] = {
        "environment": environment() | {"kernels": backend_info()["selected"]},
        "graph": {"title": where, "nodes": x.size(0), "edges": edge_index.size(1)},
        "rounds": args.rounds,
    }
    for key, value in (result["environment"] | result["graph"]).items():
        print(f"- {key}: {value}")
    for key, cls in MODELS.items():
        model = cls(FEATURES, HIDDEN, LAYERS, CLASSES).eval()
        times = interleave(candidates(model, x, edge_index, args.bits), args.rounds)
        title = f"{cls.__name__} {FEATURES}-{HIDDEN}-{HIDDEN}-{CLASSES}"
        print(f"\n### {title}, {where}\n\n{markdown(times, [PEER])}", flush=True)
        ratios = {n: {PEER: paired_ratio(times, PEER, n)} for n in times}
        result[key] = {"title": title, "fastest_peer": PEER, "seconds": times, "ratios": ratios}
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
