"""How much memory inference needs: a converted GCN next to the float one, each in its own process.

    python examples/benchmarks/cpu_memory.py                          # reddit shape
    python examples/benchmarks/cpu_memory.py --graph arxiv --bits 2 --json out.json

Every candidate starts a fresh process, which reads the normalised graph (a `torch.sparse_csr`
matrix with int32 indices, the same for all) and the features (float, or packed codes) from disk,
runs the model and reports the largest resident memory since before it read anything. What the
interpreter and its libraries take is subtracted; what is read counts. Candidates:

- `float, adj_t`: `torch_geometric.nn.GCN` on the matrix, the fastest float path of PyG.
- `float, sparse.mm sum`: the same by two lines around `torch.sparse.mm(A, X, "sum")`, with every
  operation in place that can be.
- `INT8`, `INT4`, ...: the converted model, given packed features.

Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCN
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import torch_geometric_qlr as qlr
from _graphs import SHAPES, generate
from _memory import forget_peak, memory
from _timing import environment
from torch_geometric_qlr.ops import row_layout
from torch_geometric_qlr.sparse import csr_graph, sparse_csr
from torch_geometric_qlr.tensor import PackedTensor

SIZES = {"cora": 1433, "pubmed": 500, "arxiv": 128, "reddit": 602}
HIDDEN, CLASSES = 128, 40
PEERS = ("float, adj_t", "float, sparse.mm sum")


# One candidate, in a process of its own ##########################################################


def build(candidate: str, features: int) -> nn.Module:
    """The model, and everything loaded that it needs: it has run on two nodes."""
    model: nn.Module = GCN(features, HIDDEN, 2, CLASSES, normalize=False).eval()
    index = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([1, 0], dtype=torch.int32)
    pair, x = sparse_csr(*index, torch.ones(2), (2, 2)), torch.randn(2, features)
    torch.sparse.mm(pair, x, "sum")
    if candidate.startswith("INT"):
        bits = int(candidate.removeprefix("INT"))
        model = qlr.quantize(model, bits=bits, granularity={"input": "tensor"}).eval()
        model(x, pair)
        model = qlr.convert(model)
    model(x, pair)
    return model


def read_graph(folder: Path) -> Tensor:
    rowptr, col, weight = (
        torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("rowptr", "col", "weight")
    )
    nodes = rowptr.numel() - 1
    return sparse_csr(rowptr, col, weight, (nodes, nodes))


def make_features(candidate: str, nodes: int, features: int) -> Any:
    """Random ones: their values take no memory."""
    if not candidate.startswith("INT"):
        return torch.rand(nodes, features)
    bits = int(candidate.removeprefix("INT"))
    rows = torch.zeros(nodes, row_layout(features, bits).stride, dtype=torch.uint8)
    rows[:, :8].random_(0, 256)
    return PackedTensor(rows, features, bits, torch.tensor(0.1), torch.tensor(1.0))


def direct(model: Any, x: Tensor, adj: Tensor) -> Tensor:
    first, second = model.convs
    h = torch.sparse.mm(adj, first.lin(x), "sum").add_(first.bias).relu_()
    return torch.sparse.mm(adj, second.lin(h), "sum").add_(second.bias)


def measure(candidate: str, folder: Path, features: int) -> dict[str, float]:
    model = build(candidate, features)
    run = direct if candidate == PEERS[1] else lambda model, x, adj: model(x, adj)
    forget_peak()
    start = memory("VmRSS")
    adj = read_graph(folder)
    graph = memory("VmRSS") - start
    x = make_features(candidate, adj.size(0), features)
    held = memory("VmRSS") - start
    begin = time.perf_counter()
    run(model, x, adj)
    first = memory("VmHWM") - start
    run(model, x, adj)  # caches are filled now
    seconds = time.perf_counter() - begin
    peak = memory("VmHWM") - start
    return {
        "graph": graph,
        "features": held - graph,
        "inference": peak - held,
        "peak of the first call": first,
        "peak": peak,
        "seconds for both calls": seconds,
    }


# All of them #####################################################################################


def write_graph(name: str, folder: Path) -> tuple[int, int]:
    csr = generate(name)
    edges = gcn_norm(csr.edge_index(), None, csr.num_nodes)
    graph = csr_graph(*edges, num_src=csr.num_nodes, num_dst=csr.num_nodes)
    assert graph.value is not None
    parts = {"rowptr": graph.rowptr, "col": graph.col, "weight": graph.value}
    for part, tensor in parts.items():
        np.save(folder / f"{part}.npy", tensor.numpy())
    return graph.num_dst, graph.num_edges


def start(candidate: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--graph", args.graph, "--threads", str(args.threads)]
    done = subprocess.run(
        [*command, "--candidate", candidate, "--folder", str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    out: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return out


def table(result: dict[str, dict[str, float]]) -> str:
    names = ["graph", "features", "inference", "peak"]
    lines = [["candidate", *(f"{name}, MB" for name in names), *(f"of {p}" for p in PEERS)]]
    lines.append(["---"] * len(lines[0]))
    for candidate, row in result.items():
        shares = (f"{row['peak'] / result[p]['peak']:.3f}" for p in PEERS)
        lines.append([candidate, *(f"{row[name]:.0f}" for name in names), *shares])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graph", choices=sorted(SHAPES), default="reddit")
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    features = SIZES[args.graph]
    if args.candidate is not None:
        print(json.dumps(measure(args.candidate, args.folder, features)))
        return

    candidates = [*PEERS, *(f"INT{bits}" for bits in args.bits)]
    with tempfile.TemporaryDirectory() as folder:
        nodes, edges = write_graph(args.graph, Path(folder))
        print(f"- graph: {args.graph} shape, {nodes} nodes, {edges} entries with self loops")
        print(f"- model: GCN {features}-{HIDDEN}-{CLASSES}, threads: {args.threads}\n")
        result = {c: start(c, Path(folder), args) for c in candidates}
    print(table(result))
    if args.json is not None:
        about = {"name": args.graph, "nodes": nodes, "entries": edges}
        content = {"environment": environment(), "graph": about, "megabytes": result}
        args.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
