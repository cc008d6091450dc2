"""Whole models on a CPU: converted ones next to PyG's, measured in turn within one process.

    python examples/benchmarks/cpu_models.py                          # arxiv shape
    python examples/benchmarks/cpu_models.py --graph reddit --rounds 3
    python examples/benchmarks/cpu_models.py --graph cora --threads 1 --json out.json

The graph is generated, see `_graphs.py`; features are random, and of the citation graphs as sparse
as their bags of words. Models:

- `gcn`: a two-layer GCN as `torch_geometric.nn.GCN` builds it.
- `sage`: a two-layer GraphSAGE, likewise.
- `appnp`: K steps of personalised PageRank on class scores.
- `smp`: K steps of smoothness-aware propagation, whose float peers are this package's layer.

Float peers, with the normalisation cached or taken out of the time: the model on a `torch.sparse`
CSR matrix ("adj_t"), on a `torch_sparse.SparseTensor`, on a plain edge_index with `--plain`, and
that compiled with `--compile`. Three more are no PyG models, but its lines with another sum called
by hand: torch's `embedding_bag`, the fastest there is; `torch.sparse.mm(A, X, "sum")`; and this
package's own float kernel, which tells what a better kernel gains without fewer bits.

Converted models take the plain edge_index and have the default configuration, in which every node's
features have a range of their own and edges have weights of 8 bits; rows named "float edges" keep
these weights as they are (`edge_weight_bits=32`). Rows named "float x" quantize and pack the
features in every call, rows named "packed x" get them packed by `qlr.pack_features`. Ratios are
medians over rounds of peer time over our time within the round.
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
from torch_geometric.nn import APPNP, GCN, GraphSAGE
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import torch_geometric_qlr as qlr
from _bags import BAG, bag_of
from _graphs import SHAPES, generate
from _timing import environment, interleave, markdown, paired_ratio
from torch_geometric_qlr.nn import SMP
from torch_geometric_qlr.ops import backend_info
from torch_geometric_qlr.sparse import csr_graph, sparse_csr

SIZES = {"cora": 1433, "pubmed": 500, "arxiv": 128, "reddit": 602}
#: Share of the features that are not zero, where most are.
FILLED = {"cora": 0.013, "pubmed": 0.1}
HIDDEN, CLASSES = 128, 40
PYG = ["adj_t", "SparseTensor", "edge_index", "edge_index compiled"]
BY_HAND = [f"{BAG} by hand", "sparse.mm by hand", "own float kernel"]

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
    ", float edges": {"edge_weight_bits": 32},
}


def converted(
    model: nn.Module,
    x: Tensor,
    graph: Graph,
    widths: list[int],
    *,
    packs: bool = True,
    configs: dict[str, dict[str, Any]] = CONFIGS,
) -> Candidates:
    """The converted model at every width and in every configuration, after one look at the data."""
    out: Candidates = {}
    for width, (suffix, config) in itertools.product(widths, configs.items()):
        quantized = qlr.quantize(model, bits=width, **config).eval()
        quantized(x, graph.adj_t)
        packed = qlr.convert(quantized)
        if packs:
            codes = qlr.pack_features(packed, x)
            out[f"INT{width}{suffix}, packed x"] = lambda m=packed, c=codes: m(c, graph.edge_index)
        out[f"INT{width}{suffix}, float x"] = lambda m=packed: m(x, graph.edge_index)
    return out


def products(matrix: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """A sparse matrix times features, outside of any layer, by what is called by hand."""
    rowptr, col = matrix.crow_indices().long(), matrix.col_indices().int()
    weight = matrix.values()
    sums = [
        bag_of(rowptr, col.long(), weight),
        lambda h: torch.sparse.mm(matrix, h, "sum"),
        lambda h: torch.ops.qlr.spmm(rowptr, col, h, weight),
    ]
    return dict(zip(BY_HAND, sums, strict=True))


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


def features_of(graph: Graph, name: str) -> Tensor:
    x = torch.randn(graph.num_nodes, SIZES[name])
    share = FILLED.get(name)
    return x if share is None else x.abs() * (torch.rand(x.shape) < share)


def gcn(graph: Graph, args: argparse.Namespace) -> Candidates:
    x = features_of(graph, args.graph)
    features = x.size(1)
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
    by_name = products(graph.normalized).items()
    out |= {name: by_hand(times) for name, times in by_name}
    uncached = GCN(features, HIDDEN, **settings)
    uncached.load_state_dict(model.state_dict())
    return out | converted(uncached, x, graph, args.bits)


def sage(graph: Graph, args: argparse.Namespace) -> Candidates:
    x = features_of(graph, args.graph)
    model = GraphSAGE(x.size(1), HIDDEN, num_layers=2, out_channels=CLASSES).eval()
    first, second = model.convs
    degree = graph.adj_t.crow_indices().diff()
    share = (1 / degree.clamp(min=1).float()).repeat_interleave(degree)
    size = graph.adj_t.shape
    mean = sparse_csr(graph.adj_t.crow_indices(), graph.adj_t.col_indices(), share, size)

    def by_hand(times: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def layer(conv: Any, h: Tensor) -> Tensor:
            return conv.lin_l(times(h)).add_(conv.lin_r(h))

        return lambda: layer(second, layer(first, x).relu_())

    out: Candidates = {"adj_t": lambda: model(x, graph.adj_t)}
    if args.plain:
        out["edge_index"] = lambda: model(x, graph.edge_index)
    out |= {name: by_hand(times) for name, times in products(mean).items()}
    return out | converted(model, x, graph, args.bits, configs={"": {}})


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
    by_name = products(graph.normalized).items()
    out |= {name: by_hand(times) for name, times in by_name}
    return out | converted(APPNP(steps, alpha), x, graph, args.bits, packs=False)


def smp(graph: Graph, args: argparse.Namespace) -> Candidates:
    x, steps = torch.randn(graph.num_nodes, CLASSES), args.steps
    out = pyg_peers(graph, SMP(steps).eval(), SMP(steps, normalize=False).eval(), x, args)
    return out | converted(SMP(steps), x, graph, args.bits, packs=False)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graph", choices=sorted(SHAPES), default="arxiv")
    kinds = ["gcn", "appnp", "sage", "smp"]
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
    # Both products of a GraphSAGE layer read the features, each with a range of its own.
    warnings.filterwarnings("ignore", message="pack_features")
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
        make, title = {
            "gcn": (gcn, f"GCN {SIZES[args.graph]}-{HIDDEN}-{CLASSES}"),
            "sage": (sage, f"GraphSAGE {SIZES[args.graph]}-{HIDDEN}-{CLASSES}"),
            "appnp": (appnp, f"APPNP K={args.steps}, {CLASSES} classes"),
            "smp": (smp, f"SMP K={args.steps}, {CLASSES} classes"),
        }[name]
        candidates = make(graph, args)
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
