"""Packed sums along a graph, and packed products, on the CPU: against every float way to take them.

All candidates of a table take turns in every round, in random order; ratios are medians over rounds
of peer time over our time. Packed candidates read packed features; the time to quantize and pack
those is a candidate of its own. "own fp32" is this package's float kernel, with the same schedule,
prefetch and memory: what it gains over the peers is a better kernel, the rest is fewer bits.

Each graph has a table of plain sums and one with a weight on every edge, which is an integer of 8
bits as in the default configuration; rows named "float edges" keep floats. Besides what graph
libraries call there are torch's embedding bags, in float32, in bfloat16, and of packed rows
("torch INT8" and so on), which are the strongest peers of their width.

    python examples/benchmarks/cpu_kernels.py --graphs arxiv reddit --features 128 --rounds 5
    python examples/benchmarks/cpu_kernels.py --graphs --dense 169343x128x128 169343x128x40
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import scatter

from _bags import BAG, bag_of, packed_bag_of
from _graphs import CSR, SHAPES, generate
from _timing import environment, interleave, markdown, paired_ratio
from torch_geometric_qlr.ops import backend_info
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor, edge_codes, linear, spmm

try:
    import torch_sparse
except ImportError:  # an extra, and one peer less
    torch_sparse = None

Candidates = dict[str, Callable[[], Any]]

NATIVE, OWN = "torch.sparse.mm", "own fp32"
# A gather of E x F floats beyond this many bytes is left out: it would swap.
MAX_GATHER = 3e9


def peers(graph: CSR, x: Tensor, weight: Tensor | None) -> Candidates:
    """Sums in float32 and, where it is accepted, in bfloat16."""
    n = graph.num_nodes
    values = torch.ones(graph.num_edges) if weight is None else weight
    long = torch.sparse_csr_tensor(graph.rowptr, graph.col.long(), values, (n, n))
    short = torch.sparse_csr_tensor(graph.rowptr.int(), graph.col, values, (n, n))
    half = torch.sparse_csr_tensor(graph.rowptr, graph.col.long(), values.bfloat16(), (n, n))
    x_half = x.bfloat16()
    edge_index = graph.edge_index()
    by_target = EdgeIndex(edge_index.flip(0), sparse_size=(n, n), sort_order="row")
    by_target.fill_cache_()
    bag = bag_of(graph.rowptr, graph.col, weight)
    found: Candidates = {
        NATIVE: lambda: torch.sparse.mm(long, x, "sum"),
        "torch.sparse.mm bf16": lambda: torch.sparse.mm(half, x_half, "sum"),
        "torch CSR int32": lambda: short @ x,
        "torch CSR int64": lambda: long @ x,
        "EdgeIndex.matmul": lambda: by_target.matmul(x, weight),
        BAG: lambda: bag(x),
        f"{BAG} bf16": lambda: bag(x_half),
        OWN: lambda: torch.ops.qlr.spmm(graph.rowptr, graph.col, x, weight),
    }
    if torch_sparse is not None:
        matrix = torch_sparse.SparseTensor(
            rowptr=graph.rowptr, col=graph.col.long(), value=weight, sparse_sizes=(n, n)
        )
        found["torch-sparse"] = lambda: torch_sparse.matmul(matrix, x)
    if graph.num_edges * x.size(1) * 4 <= MAX_GATHER:
        found["gather-scatter"] = lambda: gather_scatter(edge_index, x, weight, n)
    return found


def gather_scatter(edge_index: Tensor, x: Tensor, weight: Tensor | None, nodes: int) -> Tensor:
    """What a layer does with a plain edge_index."""
    source, target = edge_index
    messages = x[source] if weight is None else x[source] * weight.unsqueeze(1)
    return scatter(messages, target, 0, nodes, "sum")


def packed(graph: CSR, x: Tensor, bits: int, weight: Tensor | None) -> Candidates:
    """Sums over packed features, to floats and packed again, and those of torch."""
    scale = torch.tensor(6.0 / (2**bits - 1))
    zero = torch.tensor(float(2 ** (bits - 1)))
    x_packed = PackedTensor.from_float(x, scale, zero, bits)
    out = OutputQuantizer(scale * 4.1, zero, bits)  # not a multiple: few sums lie on ties
    name, edges = f"INT{bits}", (graph.rowptr, graph.col)
    terms: dict[str, Any] = {}
    if weight is not None:
        codes, row_scale = edge_codes(*edges, weight)
        terms = {"edge_weight": codes, "row_scale": row_scale}
    found: Candidates = {
        name: lambda: spmm(*edges, x_packed, **terms),
        f"{name} -> packed": lambda: spmm(*edges, x_packed, out=out, **terms),
    }
    if weight is not None:
        found[f"{name}, float edges"] = lambda: spmm(*edges, x_packed, edge_weight=weight)
    if bits in (2, 4, 8):
        found[f"torch {name}"] = packed_bag_of(graph.rowptr, graph.col, weight, x, bits)
    found[f"{name} quantize and pack"] = lambda: PackedTensor.from_float(
        x, scale, zero, bits, check=False
    )
    return found


def dense(shape: str, bits: list[int], rounds: int) -> dict[str, Any]:
    """A product of activations and weights, `rows x inputs x outputs`."""
    rows, inputs, outputs = (int(size) for size in shape.split("x"))
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    x_half, weight_half, bias_half = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    x_byte = (x * 30).clamp(-128, 127).to(torch.int8)
    weight_byte = (weight.t() * 30).clamp(-128, 127).to(torch.int8).contiguous()
    candidates: Candidates = {
        "F.linear": lambda: torch.nn.functional.linear(x, weight, bias),
        "F.linear bf16": lambda: torch.nn.functional.linear(x_half, weight_half, bias_half),
        # Products alone: no scales, no bias.
        "torch._int_mm int8": lambda: torch._int_mm(x_byte, weight_byte),
        **_quantized_linear(x, weight, bias),
    }
    for width in bits:
        scale, zero = torch.tensor(6.0 / (2**width - 1)), torch.tensor(float(2 ** (width - 1)))
        x_packed = PackedTensor.from_float(x, scale, zero, width)
        w_packed = PackedTensor.from_float(weight, scale, zero, width)
        out = OutputQuantizer(scale * inputs**0.5, zero, width)
        candidates[f"INT{width}"] = lambda a=x_packed, b=w_packed: linear(a, b, bias=bias)
        candidates[f"INT{width} -> packed"] = lambda a=x_packed, b=w_packed, o=out: linear(
            a, b, bias=bias, out=o
        )
    times = interleave(candidates, rounds)
    shown = [name for name in times if not name.startswith("INT")]
    title = f"dense {rows} x {inputs} x {outputs}"
    print(f"\n### {title}\n\n{markdown(times, shown)}", flush=True)
    ratios = {key: {peer: paired_ratio(times, peer, key) for peer in shown} for key in times}
    return {"dense": title, "seconds": times, "ratios": ratios}


def _quantized_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Candidates:
    """torch's own quantized linear, codes to codes, where this build has it."""
    try:
        codes = torch.quantize_per_tensor(x, 0.05, 128, torch.quint8)
        params = torch.ops.quantized.linear_prepack(
            torch.quantize_per_tensor(weight, 0.05, 0, torch.qint8), bias
        )
        torch.ops.quantized.linear(codes[:1], params, 0.5, 128)
    except RuntimeError:
        return {}
    engine = torch.backends.quantized.engine
    return {
        f"quantized.linear int8 ({engine})": lambda: torch.ops.quantized.linear(
            codes, params, 0.5, 128
        )
    }


def check(candidates: Candidates, x: Tensor) -> None:
    """The peers agree with each other, so that a ratio compares like with like."""
    truth = candidates[NATIVE]()
    for name, run in candidates.items():
        y = run()
        if y.dtype == torch.float32:
            torch.testing.assert_close(y, truth, rtol=1e-3, atol=1e-3 * float(truth.abs().max()))
        else:
            assert y.shape == truth.shape, name


def measure(
    name: str, features: int, bits: list[int], rounds: int, *, weighted: bool
) -> dict[str, Any]:
    """One table."""
    graph = generate(name)
    x = torch.randn(graph.num_nodes, features)
    norm = (graph.rowptr.diff() + 1.0).rsqrt()
    weight = norm.repeat_interleave(graph.rowptr.diff()) * norm[graph.col.long()]
    weight = weight if weighted else None
    candidates = peers(graph, x, weight)
    check(candidates, x)
    for width in bits:
        candidates.update(packed(graph, x, width, weight))
    times = interleave(candidates, rounds)
    float_peers = [key for key in peers_of(times) if "bf16" not in key and "INT" not in key]
    fastest = max(float_peers, key=lambda key: -sorted(times[key])[rounds // 2])
    shown = list(dict.fromkeys([fastest, BAG, NATIVE, OWN]))
    ratios = {key: {peer: paired_ratio(times, peer, key) for peer in shown} for key in times}
    kind = "weighted sums" if weighted else "sums"
    title = f"{kind}, {name}: {graph.num_nodes} nodes, {graph.num_edges} edges, F={features}"
    print(f"\n### {title}\n\nfastest FP32 peer: {fastest}\n\n{markdown(times, shown)}", flush=True)
    of_its_width = {
        key: paired_ratio(times, f"torch {key}", key) for key in times if f"torch {key}" in times
    }
    for key, ratio in of_its_width.items():
        print(f"{key} over torch {key}: {ratio:.2f}")
    return {
        "graph": title,
        "fastest_peer": fastest,
        "seconds": times,
        "ratios": ratios,
        "over_torch_of_its_width": of_its_width,
    }


def peers_of(times: dict[str, list[float]]) -> list[str]:
    """The candidates that are not ours."""
    return [key for key in times if not key.startswith("INT") and key != OWN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", nargs="*", choices=SHAPES, default=["cora", "arxiv"])
    parser.add_argument("--features", nargs="+", type=int, default=[128])
    parser.add_argument("--bits", nargs="+", type=int, choices=(1, 2, 4, 8), default=[8, 4, 2])
    parser.add_argument(
        "--dense", nargs="*", default=[], metavar="MxKxN", help="sizes of products to measure"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all times here")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    setting = {**environment(), "kernels": backend_info()["selected"], "rounds": args.rounds}
    print("\n".join(f"{key}: {value}" for key, value in setting.items()))
    tables = [
        measure(graph, features, args.bits, args.rounds, weighted=weighted)
        for graph in args.graphs
        for features in args.features
        for weighted in (False, True)
    ]
    tables += [dense(shape, args.bits, args.rounds) for shape in args.dense]
    if args.json is not None:
        args.json.write_text(json.dumps({"environment": setting, "tables": tables}, indent=1))


if __name__ == "__main__":
    main()
