"""Whole models on a CPU: converted ones next to PyG's, measured in turn within one process.

    python examples/benchmarks/cpu_models.py                          # arxiv shape
    python examples/benchmarks/cpu_models.py --graph reddit --rounds 3
    python examples/benchmarks/cpu_models.py --graph cora --threads 1 --json out.json

The graph is generated, see `_graphs.py`; features are random, which changes no time. Models:

- `gcn`: a two-layer GCN as `torch_geometric.nn.GCN` builds it.
- `appnp`: K steps of personalised PageRank on class scores.
- `smp`: K steps of smoothness-aware propagation, whose float peers are this package's layer.

Float peers, with the normalisation cached or taken out of the time: the model on a `torch.sparse`
CSR matrix ("adj_t"), on a `torch_sparse.SparseTensor`, on a plain edge_index with `--plain`, and
that compiled with `--compile`. Two more are no PyG models: the lines that call the faster
`torch.sparse.mm(A, X, "sum")` by hand, and the same with this package's own float kernel, which
tells what a better kernel gains without fewer bits.

Converted models take the plain edge_index and have the default configuration, in which every node's
features have a range of their own; rows named "per tensor" have one range for all of them. Rows
named "float x" quantize and pack the features in every call, rows named "packed x" get them packed
by `qlr.pack_features`. Ratios are medians over rounds of peer time over
our time within the round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import warnings
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
from torch_geometric_qlr.nn import SMP
from torch_geometric_qlr.ops import backend_info
from torch_geometric_qlr.sparse import csr_graph

SIZES = {"cora": 1433, "pubmed": 500, "arxiv": 128, "reddit": 602}
HIDDEN, CLASSES = 128, 40
PYG = ["adj_t", "SparseTensor", "edge_index", "edge_index compiled"]
BY_HAND = ["sparse.mm by hand", "own float kernel"]

try:
    import torch_sparse
except ImportError:  # an extra, and one peer less
    torch_sparse = None

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
        self.sparse_tensor = None
        if torch_sparse is not None:
            self.sparse_tensor = torch_sparse.SparseTensor(
                rowptr=self.normalized.crow_indices().long(),
                col=self.normalized.col_indices().long(),
                value=self.normalized.values(),
                sparse_sizes=(n, n),
            )


#: The configurations of a converted model, and what their rows are called.
CONFIGS: dict[str, dict[str, Any]] = {
    "": {},
    ", per tensor": {"granularity": {"input": "tensor"}},
}


def converted(
    model: nn.Module, x: Tensor, graph: Graph, widths: list[int], *, packs: bool = True
) -> Candidates:
    """The converted model at every width and in every configuration, after one look at the data."""
    out: Candidates = {}
    for width, (suffix, config) in itertools.product(widths, CONFIGS.items()):
        quantized = qlr.quantize(model, bits=width, **config).eval()
        quantized(x, graph.adj_t)
        packed = qlr.convert(quantized)
        if packs:
            codes = qlr.pack_features(packed, x)
            out[f"INT{width}{suffix}, packed x"] = lambda m=packed, c=codes: m(c, graph.edge_index)
        out[f"INT{width}{suffix}, float x"] = lambda m=packed: m(x, graph.edge_index)
    return out


def product(graph: Graph, own: bool) -> Callable[[Tensor], Tensor]:
    """The normalised adjacency times features, outside of any layer."""
    if not own:
        return lambda h: torch.sparse.mm(graph.normalized, h, "sum")
    rowptr = graph.normalized.crow_indices().long()
    col, weight = graph.normalized.col_indices().int(), graph.normalized.values()
    return lambda h: torch.ops.qlr.spmm(rowptr, col, h, weight)


def pyg_peers(
    graph: Graph, on_edges: nn.Module, on_matrix: nn.Module, x: Tensor, args: argparse.Namespace
) -> Candidates:
    """The float model on every form of the graph; `on_matrix` gets it normalised."""
    out: Candidates = {"adj_t": lambda: on_matrix(x, graph.normalized)}
    if graph.sparse_tensor is not None:
        out["SparseTensor"] = lambda: on_matrix(x, graph.sparse_tensor)
    if args.plain:
        out["edge_index"] = lambda: on_edges(x, graph.edge_index)
    if args.compile:
        compiled = torch.compile(on_edges)
        out["edge_index compiled"] = lambda: compiled(x, graph.edge_index)
    return out


def gcn(graph: Graph, features: int, args: argparse.Namespace) -> Candidates:
    x = torch.randn(graph.num_nodes, features)
    settings: dict[str, Any] = {"num_layers": 2, "out_channels": CLASSES}
    model = GCN(features, HIDDEN, cached=True, **settings).eval()
    on_matrix = GCN(features, HIDDEN, normalize=False, **settings).eval()
    on_matrix.load_state_dict(model.state_dict())
    first, second = on_matrix.convs

    def by_hand(times: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            h = times(first.lin(x)).add_(first.bias).relu_()
            return times(second.lin(h)).add_(second.bias)

        return run

    out = pyg_peers(graph, model, on_matrix, x, args)
    out |= {name: by_hand(product(graph, own)) for own, name in enumerate(BY_HAND)}
    uncached = GCN(features, HIDDEN, **settings)
    uncached.load_state_dict(model.state_dict())
    return out | converted(uncached, x, graph, args.bits)


def appnp(graph: Graph, args: argparse.Namespace) -> Candidates:
    x, alpha, steps = torch.randn(graph.num_nodes, CLASSES), 0.1, args.steps
    cached = APPNP(steps, alpha, cached=True).eval()
    on_matrix = APPNP(steps, alpha, normalize=False).eval()

    def by_hand(times: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            h = x
            for _ in range(steps):
                h = times(h).mul_(1 - alpha).add_(x, alpha=alpha)
            return h

        return run

    out = pyg_peers(graph, cached, on_matrix, x, args)
    out |= {name: by_hand(product(graph, own)) for own, name in enumerate(BY_HAND)}
    return out | converted(APPNP(steps, alpha), x, graph, args.bits, packs=False)


def smp(graph: Graph, args: argparse.Namespace) -> Candidates:
    x, steps = torch.randn(graph.num_nodes, CLASSES), args.steps
    out = pyg_peers(graph, SMP(steps).eval(), SMP(steps, normalize=False).eval(), x, args)
    return out | converted(SMP(steps), x, graph, args.bits, packs=False)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graph", choices=sorted(SHAPES), default="arxiv")
    kinds = ["gcn", "appnp", "smp"]
    parser.add_argument("--models", nargs="+", choices=kinds, default=kinds[:2])
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 2])
    parser.add_argument("--steps", type=int, default=10, help="of appnp and smp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--plain", action="store_true", help="also the plain edge_index: gigabytes of messages"
    )
    parser.add_argument("--compile", action="store_true", help="also torch.compile of that")
    parser.add_argument("--json", type=Path, help="write all times here")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

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
            candidates = gcn(graph, features, args)
            title = f"GCN {features}-{HIDDEN}-{CLASSES}"
        else:
            candidates = (appnp if name == "appnp" else smp)(graph, args)
            title = f"{name.upper()} K={args.steps}, {CLASSES} classes"
        times = interleave(candidates, args.rounds)
        fastest = min((n for n in times if n in PYG), key=lambda n: statistics.median(times[n]))
        peers = list(dict.fromkeys([fastest, *(n for n in times if n in (*PYG, *BY_HAND))]))
        print(
            f"\n### {title}, {args.graph} shape\n\nfastest float path of PyG: {fastest}\n\n"
            f"{markdown(times, peers)}",
            flush=True,
        )
        ratios = {n: {peer: paired_ratio(times, peer, n) for peer in peers} for n in times}
        result[name] = {"title": title, "fastest_peer": fastest, "seconds": times, "ratios": ratios}
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
