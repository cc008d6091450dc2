"""Packed sums along a graph on a GPU, against every float way to take them.

All candidates of a table take turns in every round, in random order, timed by events of the GPU on
features that its cache does not hold; ratios are medians over rounds of peer time over our time.
Every candidate is compared with the float sum of the same numbers before it is timed. Beside the
time stand the bytes that a sum has to move (its rows once per edge, its indices and weights once,
its result once) per second, as a share of the bandwidth of a copy: rows that the cache holds may
take it above one. "own fp32" is this package's float kernel, if it has one there: what it gains
over the peers is a better schedule, the rest is fewer bits.

    python examples/benchmarks/gpu_kernels.py --stage bandwidth
    python examples/benchmarks/gpu_kernels.py --stage sums --graphs arxiv --features 128 --bits 2
    python examples/benchmarks/gpu_kernels.py --device cpu --tiny        # shows that it works
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.utils import scatter

from _bags import BAG, bag_of
from _gpu import (
    Candidates,
    Rotated,
    add_arguments,
    copy_bandwidth,
    finish,
    fitting,
    graph_on,
    in_turn,
    name_of_backend,
)
from _graphs import CSR, SHAPES
from _timing import markdown, paired_ratio
from torch_geometric_qlr.ops import kernels_on, reference, use_backend
from torch_geometric_qlr.ops.groups import CodeMatrix, Epilogue, Graph, Weights
from torch_geometric_qlr.sparse import sparse_csr
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor, edge_codes, spmm

try:
    import torch_sparse
except ImportError:  # an extra, and one peer less
    torch_sparse = None

NATIVE, OWN = "torch.sparse.mm", "own fp32"
#: Bytes of messages beyond which a gather is left out.
MAX_GATHER = 16e9
#: Messages that are compared, times features.
MAX_CHECKED = 100_000_000
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Case(NamedTuple):
    """What is summed up."""

    graph: CSR
    x: Tensor
    weight: Tensor | None

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        return self.graph.rowptr, self.graph.col


def make_case(graph: CSR, features: int, weighted: bool) -> Case:
    rowptr, col = graph
    degree = rowptr.diff()
    x = torch.randn(graph.num_nodes, features, generator=torch.Generator().manual_seed(0))
    norm = (degree + 1.0).rsqrt()
    weight = norm.repeat_interleave(degree) * norm[col.long()] if weighted else None
    return Case(graph, x.to(col.device), weight)


# Peers ############################################################################################


def peers(case: Case, compiles: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Sums of floats, by what a user of torch and PyG has."""
    (rowptr, col), n, weight = case.edges, case.graph.num_nodes, case.weight
    values = torch.ones(col.numel(), device=col.device) if weight is None else weight
    bag = bag_of(rowptr, col, weight)
    for kind, dtype in {"fp32": torch.float32, **HALVES}.items():
        x = Rotated(case.x.to(dtype))
        matrix = sparse_csr(rowptr, col, values.to(dtype), (n, n))
        suffix = "" if kind == "fp32" else f" {kind}"
        yield f"{NATIVE}{suffix}", lambda m=matrix, x=x: m @ x.next()
        if kind != "bf16":
            yield f"{BAG}{suffix}", lambda x=x: bag(x.next())
    x = Rotated(case.x)
    if "spmm" in kernels_on(col.device.type)[0]:
        yield OWN, lambda: torch.ops.qlr.spmm(rowptr, col, x.next(), weight)
    if torch_sparse is not None:
        known = {"sparse_sizes": (n, n), "is_sorted": True, "trust_data": True}
        other = torch_sparse.SparseTensor(rowptr=rowptr, col=col.long(), value=weight, **known)
        yield "torch-sparse", lambda: torch_sparse.matmul(other, x.next())
    if col.numel() * case.x.size(1) * 4 > MAX_GATHER:
        return
    target = torch.arange(n, device=col.device).repeat_interleave(rowptr.diff())
    source = col.long()

    def gather_scatter(x: Tensor) -> Tensor:
        messages = x[source] if weight is None else x[source] * weight.unsqueeze(1)
        return scatter(messages, target, 0, n, "sum")

    yield "gather-scatter", lambda: gather_scatter(x.next())
    if compiles:
        compiled = torch.compile(gather_scatter)
        yield "gather-scatter compiled", lambda: compiled(x.next())


def fbgemm_bags(case: Case, bits: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """FBGEMM's tables of packed rows, each with a scale of its own, if they are installed."""
    try:
        from fbgemm_gpu.split_embedding_configs import SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
            EmbeddingLocation,
            IntNBitTableBatchedEmbeddingBagsCodegen,
        )
    except ImportError:
        return
    if case.x.device.type != "cuda" or bits not in (2, 4, 8):
        return
    spec = ("", *case.x.shape, getattr(SparseType, f"INT{bits}"), EmbeddingLocation.DEVICE)
    table = IntNBitTableBatchedEmbeddingBagsCodegen([spec], output_dtype=SparseType.FP32)
    table.fill_random_weights()  # its time does not depend on them
    offsets, weight = case.graph.rowptr.int(), case.weight
    yield f"FBGEMM INT{bits}", lambda: table(case.graph.col, offsets, weight)


# Packed sums ######################################################################################


class Packed(NamedTuple):
    """Features in codes, and what they are summed up with."""

    x: PackedTensor
    copies: Rotated
    terms: dict[str, Any]
    out: OutputQuantizer

    def next(self) -> PackedTensor:
        return PackedTensor.unchecked(
            self.copies.next(), self.x.num_cols, self.x.bits, self.x.scale, self.x.zero_point
        )


def pack(case: Case, bits: int) -> Packed:
    device = case.x.device
    scale = torch.tensor(6.0 / (2**bits - 1), device=device)
    zero = torch.tensor(float(2 ** (bits - 1)), device=device)
    x = PackedTensor.from_float(case.x, scale, zero, bits)
    terms: dict[str, Any] = {}
    if case.weight is not None:
        codes, row_scale = edge_codes(*case.edges, case.weight)
        terms = {"edge_weight": codes, "row_scale": row_scale}
    # Not a multiple of the scale: few sums lie on ties.
    return Packed(x, Rotated(x.data), terms, OutputQuantizer(scale * 4.1, zero, bits))


def packed_sums(case: Case, bits: int, ours: Packed) -> Candidates:
    name, edges = f"INT{bits}", case.edges
    found: Candidates = {
        name: lambda: spmm(*edges, ours.next(), **ours.terms),
        f"{name} -> packed": lambda: spmm(*edges, ours.next(), out=ours.out, **ours.terms),
    }
    if case.weight is not None:
        found[f"{name}, float edges"] = lambda: spmm(*edges, ours.next(), edge_weight=case.weight)
    x = Rotated(case.x)
    found[f"{name} quantize and pack"] = lambda: PackedTensor.from_float(
        x.next(), ours.x.scale, ours.x.zero_point, bits, check=False
    )
    return found


def bytes_of(name: str, case: Case, widths: dict[str, Packed]) -> int:
    """What a sum has to move."""
    nodes, edges, features = case.graph.num_nodes, case.graph.num_edges, case.x.size(1)
    kind = name.split(",")[0].split(" ->")[0].split(" quantize")[0]
    ours = widths.get(kind)
    row = ours.x.data.size(1) if ours else features * (2 if name[-4:] in HALVES else 4)
    if "quantize" in name:
        return nodes * (row + 4 * features)
    weight = 0 if case.weight is None else 1 if ours and "float" not in name else 4
    result = row if "->" in name or not ours else 4 * features
    return edges * (row + 4 + weight) + nodes * (result + 8)


# Stages ###########################################################################################


def check(candidates: Candidates, case: Case, widths: dict[str, Packed]) -> None:
    """Every candidate gives the sum of the numbers that it has; of a large graph the first rows."""
    few = MAX_CHECKED // case.x.size(1)
    rows = max(1, int(torch.searchsorted(case.graph.rowptr, few, right=True)) - 1)
    graph, edges = Graph(*case.graph.first(rows)), slice(int(case.graph.rowptr[rows]))
    for name, run in candidates.items():
        if "FBGEMM" in name or "quantize" in name or "->" in name:
            continue
        ours = widths.get(name.split(",")[0])
        x = case.x if ours is None else ours.x.dequantize()
        after = Epilogue()
        weights = Weights(None if case.weight is None else case.weight[edges])
        if ours is not None and ours.terms and "float" not in name:
            weights = Weights(ours.terms["edge_weight"][edges].float())
            after = Epilogue(row_scale=ours.terms["row_scale"][:rows])
        one, zero = torch.ones((), device=x.device), torch.zeros((), device=x.device)
        truth = reference.spmm(graph, CodeMatrix(x, one, zero), weights, after)
        share = 2e-2 if name[-4:] in HALVES else 1e-5 if ours else 1e-4
        error = float(
            (run()[:rows].float() - truth).abs().max() / truth.abs().max().clamp_min(1e-30)
        )
        assert error <= share, f"{name}: off by {error:.1e} of the largest sum"


def sums(args: argparse.Namespace, name: str, features: int, weighted: bool) -> dict[str, Any]:
    """One table."""
    case = make_case(graph_on(args.device, name, args.tiny), features, weighted)
    widths = {f"INT{bits}": pack(case, bits) for bits in args.bits}
    candidates = fitting(peers(case, args.compile and not args.tiny)) if args.peers else {}
    for bits in args.bits:
        candidates |= packed_sums(case, bits, widths[f"INT{bits}"])
        candidates |= fitting(fbgemm_bags(case, bits)) if args.peers else {}
    check(candidates, case, widths)
    times = in_turn(candidates, args.rounds, args.device)
    shown = [n for n in (NATIVE, f"{NATIVE} fp16", BAG, f"{BAG} fp16", OWN) if n in times]
    bandwidth = copy_bandwidth(args.device, 1 << (12 if args.tiny else 29), args.rounds)
    rates = {
        n: bytes_of(n, case, widths) / statistics.median(times[n])
        for n in times
        if "FBGEMM" not in n
    }
    kind = "weighted sums" if weighted else "sums"
    title = f"{kind}, {name}: {case.graph.num_nodes} nodes, {case.graph.num_edges} edges"
    print(f"\n### {title}, F={features}\n\n{markdown(times, shown)}\n", flush=True)
    for key, rate in rates.items():
        print(f"{key}: {rate / 1e9:.1f} GB/s, {rate / bandwidth:.0%} of a copy")
    ratios = {key: {peer: paired_ratio(times, peer, key) for peer in shown} for key in times}
    return {
        "title": title,
        "features": features,
        "seconds": times,
        "ratios": ratios,
        "bytes_per_second": rates,
        "copy_bytes_per_second": bandwidth,
    }


def bandwidths(args: argparse.Namespace) -> dict[str, float]:
    """Of copies of several sizes: of what the cache holds, and of what it does not."""
    found = {}
    for power in (12,) if args.tiny else (22, 24, 26, 28, 30):
        rate = copy_bandwidth(args.device, 1 << power, args.rounds)
        found[str(1 << power)] = rate
        print(f"copy of {1 << power} bytes: {rate / 1e9:.1f} GB/s", flush=True)
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--stage", choices=["bandwidth", "sums"], default="sums")
    parser.add_argument("--graphs", nargs="+", choices=sorted(SHAPES), default=["arxiv"])
    parser.add_argument("--features", nargs="+", type=int, default=[128])
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 2])
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--compile", action="store_true", help="torch.compile as a peer as well")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse")
    if args.stage == "bandwidth":
        return finish(args, {"copy_bytes_per_second": bandwidths(args)})
    tables: list[dict[str, Any]] = []
    with use_backend(name_of_backend(args.device)):
        for name in args.graphs:
            for features in [16] if args.tiny else args.features:
                for weighted in (False, True):
                    tables.append(sums(args, name, features, weighted))
                    finish(args, {"tables": tables})  # of a run that is cut off, what there is
    return None


if __name__ == "__main__":
    main()
