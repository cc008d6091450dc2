"""Whole models on a CPU: converted ones next to PyG's, measured in turn within one process.

    python examples/benchmarks/cpu_models.py                          # arxiv shape
    python examples/benchmarks/cpu_models.py --graph reddit --rounds 3
    python examples/benchmarks/cpu_models.py --graph cora --threads 1 --json out.json

The graph is generated, see `_graphs.py`; features are random, which changes no time. Models:

- `gcn`: a two-layer GCN as `torch_geometric.nn.GCN` builds it. Its float peers are the same model
  on a plain edge_index (normalisation cached), on a normalised `torch.sparse_csr` matrix, and two
  lines that call the faster `torch.sparse.mm(A, X, "sum")` directly.
- `appnp`: K steps of personalised PageRank on class scores; same peers.

Converted models take the plain edge_index. Rows named "float x" quantize and pack the features in
every call, rows named "packed x" get them packed. Ratios are medians over rounds of peer time over
our time within the round.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GCN
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import torch_geometric_qlr as qlr
from _graphs import SHAPES, generate
from _timing import environment, interleave, markdown, paired_ratio
from torch_geometric_qlr.ops import backend_info
from torch_geometric_qlr.sparse import csr_graph
from torch_geometric_qlr.transforms.convert import convert

SIZES = {"cora": 1433, "pubmed": 500, "arxiv": 128, "reddit": 602}
HIDDEN, CLASSES = 128, 40
PEERS = ["float, sparse.mm sum", "float, adj_t", "float, edge_index"]

Candidates = dict[str, Callable[[], Any]]


class Graph:
    """One graph in the forms that the candidates take."""

    def __init__(self, name: str) -> None:
        self.csr = generate(name)
        self.edge_index = self.csr.edge_index()
        n = self.num_nodes = self.csr.num_nodes
        plain = csr_graph(self.edge_index, num_src=n, num_dst=n)
        self.adj_t = plain.to_torch_csr()
        edges = gcn_norm(self.edge_index, None, n)
        self.normalized = csr_graph(*edges, num_src=n, num_dst=n).to_torch_csr()


def calibrated(model: nn.Module, bits: int, x: Tensor, graph: Graph) -> nn.Module:
    """Converted after one look at the data. Features get one range, so that they are static."""
    quantized = qlr.quantize(model, bits=bits, granularity={"input": "tensor"}).eval()
    with torch.no_grad():
        quantized(x, graph.adj_t)
    return convert(quantized)


def gcn(graph: Graph, features: int, bits: list[int], plain: bool) -> Candidates:
    x = torch.randn(graph.num_nodes, features)
    settings: dict[str, Any] = {"num_layers": 2, "out_channels": CLASSES}
    model = GCN(features, HIDDEN, cached=True, **settings).eval()
    on_matrix = GCN(features, HIDDEN, normalize=False, **settings).eval()
    on_matrix.load_state_dict(model.state_dict())
    first, second = on_matrix.convs

    def direct() -> Tensor:
        h = torch.sparse.mm(graph.normalized, first.lin(x), "sum").add_(first.bias).relu_()
        return torch.sparse.mm(graph.normalized, second.lin(h), "sum").add_(second.bias)

    out: Candidates = {PEERS[0]: direct, PEERS[1]: lambda: on_matrix(x, graph.normalized)}
    if plain:
        out[PEERS[2]] = lambda: model(x, graph.edge_index)
    uncached = GCN(features, HIDDEN, **settings)
    uncached.load_state_dict(model.state_dict())
    for width in bits:
        packed = calibrated(uncached, width, x, graph)
        codes = packed.convs[0].lin.pack_input(x)
        out[f"INT{width}, packed x"] = lambda m=packed, c=codes: m(c, graph.edge_index)
        out[f"INT{width}, float x"] = lambda m=packed: m(x, graph.edge_index)
    return out


def appnp(graph: Graph, steps: int, bits: list[int], plain: bool) -> Candidates:
    x, alpha = torch.randn(graph.num_nodes, CLASSES), 0.1
    cached = APPNP(steps, alpha, cached=True).eval()
    on_matrix = APPNP(steps, alpha, normalize=False).eval()

    def direct() -> Tensor:
        h = x
        for _ in range(steps):
            h = torch.sparse.mm(graph.normalized, h, "sum").mul_(1 - alpha).add_(x, alpha=alpha)
        return h

    out: Candidates = {PEERS[0]: direct, PEERS[1]: lambda: on_matrix(x, graph.normalized)}
    if plain:
        out[PEERS[2]] = lambda: cached(x, graph.edge_index)
    for width in bits:
        packed = calibrated(APPNP(steps, alpha), width, x, graph)
        out[f"INT{width}, float x"] = lambda m=packed: m(x, graph.edge_index)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graph", choices=sorted(SHAPES), default="arxiv")
    parser.add_argument("--models", nargs="+", choices=["gcn", "appnp"], default=["gcn", "appnp"])
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 2])
    parser.add_argument("--steps", type=int, default=10, help="of appnp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--plain", action="store_true", help="also the plain edge_index: gigabytes of messages"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)

    graph = Graph(args.graph)
    result: dict[str, Any] = {
        "environment": environment() | {"kernels": backend_info()["selected"]},
        "graph": {"name": args.graph, "nodes": graph.num_nodes, "edges": graph.csr.num_edges},
        "rounds": args.rounds,
    }
    for key, value in (result["environment"] | result["graph"]).items():
        print(f"- {key}: {value}")
    for name in args.models:
        if name == "gcn":
            features = SIZES[args.graph]
            candidates = gcn(graph, features, args.bits, args.plain)
            title = f"GCN {features}-{HIDDEN}-{CLASSES}"
        else:
            candidates = appnp(graph, args.steps, args.bits, args.plain)
            title = f"APPNP K={args.steps}, {CLASSES} classes"
        times = interleave(candidates, args.rounds)
        peers = [peer for peer in PEERS if peer in times]
        print(f"\n{title}, {args.graph} shape\n\n{markdown(times, peers)}")
        ratios = {n: {peer: paired_ratio(times, peer, n) for peer in peers} for n in times}
        result[name] = {"title": title, "seconds": times, "ratios": ratios}
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
