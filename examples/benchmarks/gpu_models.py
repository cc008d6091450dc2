"""Whole models on a GPU: converted ones next to PyG's, measured in turn within one process.

    python examples/benchmarks/gpu_models.py --graph arxiv --models gcn sage
    python examples/benchmarks/gpu_models.py --graph reddit --models appnp
    python examples/benchmarks/gpu_models.py --stage training
    python examples/benchmarks/gpu_models.py --device cpu --tiny         # shows that it works

Float peers: the model on a plain edge_index, eager and compiled, on a `torch.sparse` CSR matrix
with the normalisation taken out of the time ("adj_t"), the same in half precision, and on a
`torch_sparse.SparseTensor`. Rows named "graph" replay the calls of a converted model from a CUDA
graph: on small graphs launches are what takes the time. Before it is timed, a converted model is
held against the quantized one that it was made of. Training compares a step of quantization-aware
training with one of the float model.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GCN, GraphSAGE
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import torch_geometric_qlr as qlr
from _gpu import Candidates, add_arguments, finish, fitting, graph_on, in_turn, name_of_backend
from _graphs import CSR, SHAPES
from _timing import markdown, paired_ratio
from torch_geometric_qlr.sparse import csr_graph

try:
    import torch_sparse
except ImportError:  # an extra, and one peer less
    torch_sparse = None

SIZES = {"cora": 1433, "pubmed": 500, "arxiv": 128, "reddit": 602}
HIDDEN, CLASSES = 128, 40
PLAIN, MATRIX = "edge_index", "adj_t"


class Model(NamedTuple):
    """A float model, the same without the normalisation of its edges, and its features."""

    title: str
    on_edges: nn.Module
    on_matrix: nn.Module
    normalizes: bool
    features: int


def make(kind: str, features: int, steps: int, device: str) -> Model:
    sizes: dict[str, Any] = {"num_layers": 2, "out_channels": CLASSES}
    torch.manual_seed(0)
    if kind == "appnp":
        models = [APPNP(steps, 0.1), APPNP(steps, 0.1, normalize=False)]
        title, features = f"APPNP K={steps}, {CLASSES} classes", CLASSES
    elif kind == "gcn":
        models = [GCN(features, HIDDEN, **sizes), GCN(features, HIDDEN, normalize=False, **sizes)]
        title = f"GCN {features}-{HIDDEN}-{CLASSES}"
    else:
        models = [GraphSAGE(features, HIDDEN, **sizes) for _ in range(2)]
        title = f"GraphSAGE {features}-{HIDDEN}-{CLASSES}"
    on_edges, on_matrix = (model.to(device).eval() for model in models)
    on_matrix.load_state_dict(on_edges.state_dict())
    return Model(title, on_edges, on_matrix, kind != "sage", features)


def matrix_of(graph: CSR, normalizes: bool) -> Tensor:
    """What a layer multiplies with."""
    edge_index, n = graph.edge_index(), graph.num_nodes
    edges = gcn_norm(edge_index, None, n) if normalizes else (edge_index, None)
    return csr_graph(*edges, num_src=n, num_dst=n).to_torch_csr()


def peers(
    model: Model, x: Tensor, graph: CSR, compiles: bool
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The float model on every form of the graph."""
    edge_index, matrix = graph.edge_index(), matrix_of(graph, model.normalizes)
    yield PLAIN, lambda: model.on_edges(x, edge_index)
    if compiles:
        compiled = torch.compile(model.on_edges)
        yield f"{PLAIN} compiled", lambda: compiled(x, edge_index)
    yield MATRIX, lambda: model.on_matrix(x, matrix)
    half, half_x = copy.deepcopy(model.on_matrix).half(), x.half()
    half_matrix = matrix.half()
    yield f"{MATRIX} fp16", lambda: half(half_x, half_matrix)
    if torch_sparse is not None:
        other = torch_sparse.SparseTensor(
            rowptr=matrix.crow_indices().long(),
            col=matrix.col_indices().long(),
            value=matrix.values(),
            sparse_sizes=tuple(matrix.shape),
        )
        yield "SparseTensor", lambda: model.on_matrix(x, other)


def captured(model: nn.Module, x: Tensor, edge_index: Tensor) -> Callable[[], Any]:
    """The calls of a model, replayed from a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(x, edge_index)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(x, edge_index)
    return graph.replay


def converted(
    model: Model, x: Tensor, graph: CSR, bits: int, backend: str
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The converted model, and how far it is from the one that it was made of and from floats."""
    edge_index, name = graph.edge_index(), f"INT{bits}"
    quantized = qlr.quantize(model.on_edges, bits=bits).train()
    quantized(x, edge_index)
    quantized.eval()
    packed = qlr.convert(quantized, backend=backend)
    out, expected = packed(x, edge_index), quantized(x, edge_index)
    largest = expected.abs().max()
    error = float((out - expected).abs().max() / largest)
    assert error <= 1e-5 or float(((out - expected).abs() > 1e-5 * largest).float().mean()) < 1e-3
    truth = model.on_edges(x, edge_index)
    off = float((out - truth).norm() / truth.norm())
    print(f"{name}: {error:.1e} from the quantized model, {off:.3f} from the float one", flush=True)
    yield f"{name}, float x", lambda: packed(x, edge_index)
    codes = qlr.pack_features(packed, x) if any(True for _ in packed.parameters()) else None
    if codes is not None:
        yield f"{name}, packed x", lambda: packed(codes, edge_index)
    if x.is_cuda:
        yield f"{name}, graph", captured(packed, x, edge_index)


def inference(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """One table."""
    graph = graph_on(args.device, args.graph, args.tiny)
    model = make(kind, 16 if args.tiny else SIZES[args.graph], args.steps, args.device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(graph.num_nodes, model.features, generator=generator).to(args.device)
    with torch.no_grad():
        candidates = fitting(peers(model, x, graph, args.compile and not args.tiny))
        for bits in args.bits:
            candidates |= converted(model, x, graph, bits, name_of_backend(args.device))
        times = in_turn(candidates, args.rounds, args.device)
    return shown(f"{model.title}, {args.graph} shape", times, [PLAIN, MATRIX, f"{MATRIX} fp16"])


def shown(title: str, times: dict[str, list[float]], peers: list[str]) -> dict[str, Any]:
    """A table, printed and as numbers."""
    peers = [name for name in peers if name in times]
    print(f"\n### {title}\n\n{markdown(times, peers)}\n", flush=True)
    ratios = {name: {peer: paired_ratio(times, peer, name) for peer in peers} for name in times}
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"title": title, "seconds": times, "medians": medians, "ratios": ratios}


def training(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """A step of the float model, and of quantized ones."""
    graph = graph_on(args.device, args.graph, args.tiny)
    model = make(kind, 16 if args.tiny else SIZES[args.graph], args.steps, args.device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(graph.num_nodes, model.features, generator=generator).to(args.device)
    target = torch.randint(CLASSES, (graph.num_nodes,), generator=generator).to(args.device)
    matrix = matrix_of(graph, model.normalizes)

    def step_of(module: nn.Module) -> Callable[[], Any]:
        optimizer = torch.optim.Adam(module.train().parameters())

        def step() -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x, matrix), target).backward()
            optimizer.step()

        return step

    candidates: Candidates = {"FP32": step_of(copy.deepcopy(model.on_matrix))}
    for bits in args.bits:
        quantized = qlr.quantize(model.on_matrix, bits=bits)
        candidates[f"INT{bits}"] = step_of(quantized)
    times = in_turn(candidates, args.rounds, args.device)
    return shown(f"a training step, {model.title}, {args.graph} shape", times, ["FP32"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--stage", choices=["inference", "training"], default="inference")
    parser.add_argument("--graph", choices=sorted(SHAPES), default="arxiv")
    parser.add_argument("--models", nargs="+", choices=["gcn", "sage", "appnp"], default=["gcn"])
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 2])
    parser.add_argument("--steps", type=int, default=10, help="of appnp")
    parser.add_argument("--compile", action="store_true", help="torch.compile as a peer as well")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse")
    # Both products of a GraphSAGE layer read the features, each with a range of its own.
    warnings.filterwarnings("ignore", message="pack_features")
    run = {"inference": inference, "training": training}[args.stage]
    tables: list[dict[str, Any]] = []
    for kind in args.models:
        tables.append(run(args, kind))
        finish(args, {"tables": tables})  # of a run that is cut off, what there is


if __name__ == "__main__":
    main()
