"""What the correction of SMP costs: time and peak memory next to APPNP, on a generated graph.

    python examples/benchmarks/smp_cost.py                       # a tenth of the scale
    python examples/benchmarks/smp_cost.py --nodes 1000000 --edges 10000000

Both layers get the same normalised CSR matrix, prepared beforehand, so that a step is compared with
a step; what preparing costs is printed too. The calls alternate (APPNP, SMP, APPNP, ...), and the
ratio is that of the medians. Peak memory is measured for each layer in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import APPNP

from torch_geometric_qlr.nn.propagation import SMP
from torch_geometric_qlr.sparse import csr_graph, propagation_adjacency


def generate(nodes: int, edges: int, features: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features, and a matrix with both directions of random edges, ``edges`` entries in all."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(nodes, (2, edges // 2), generator=generator)
    both = torch.cat([half, half.flip(0)], dim=1)
    adj_t = csr_graph(both, num_src=nodes, num_dst=nodes).to_torch_csr()
    return torch.randn(nodes, features, generator=generator), adj_t


def layers(K: int) -> dict[str, Any]:
    # The matrix is normalised once, outside, so neither layer normalises again.
    return {"APPNP": APPNP(K, 0.1, normalize=False), "SMP": SMP(K, normalize=False)}


def prepare(args: argparse.Namespace) -> tuple[Tensor, Tensor, float]:
    x, adj_t = generate(args.nodes, args.edges, args.features, args.seed)
    start = time.perf_counter()
    normalized, _ = propagation_adjacency(adj_t, None, args.nodes)
    return x, normalized, time.perf_counter() - start


def run(layer: Any, x: Tensor, adj_t: Tensor, backward: bool) -> float:
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        out = layer(x.requires_grad_(backward), adj_t)
        if backward:
            out.sum().backward()
    return time.perf_counter() - start


def measure_times(args: argparse.Namespace) -> None:
    x, adj_t, seconds = prepare(args)
    print(f"preparing the matrix: {seconds:.2f} s, once per graph")
    both = layers(args.K)
    times: dict[str, list[float]] = {name: [] for name in both}
    for repeat in range(args.repeats + 1):
        for name, layer in both.items():
            elapsed = run(layer, x, adj_t, args.backward)
            if repeat > 0:  # the first round warms up
                times[name].append(elapsed)
    for name, values in times.items():
        print(
            f"{name:6s} median {statistics.median(values):.3f} s, "
            f"from {min(values):.3f} to {max(values):.3f}"
        )
    ratios = [smp / appnp for smp, appnp in zip(times["SMP"], times["APPNP"], strict=True)]
    print(
        f"SMP / APPNP: {statistics.median(times['SMP']) / statistics.median(times['APPNP']):.2f} "
        f"(single rounds {min(ratios):.2f} to {max(ratios):.2f})"
    )


def measure_memory(args: argparse.Namespace, name: str) -> tuple[float, float]:
    torch.set_num_threads(args.threads)
    x, adj_t, _ = prepare(args)
    before = peak_gib()
    run(layers(args.K)[name], x, adj_t, args.backward)
    return before, peak_gib()


def peak_gib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--edges", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--K", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backward", action="store_true", help="forward and backward")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"{args.nodes} nodes, {args.edges} edges, {args.features} features, K = {args.K}, float32, "
        f"{args.threads} threads, torch {torch.__version__}"
    )
    context = multiprocessing.get_context("spawn")
    for name in layers(args.K):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            before, after = pool.submit(measure_memory, args, name).result()
        print(f"{name:6s} peak {after:.2f} GiB of the process ({before:.2f} before the first call)")
    measure_times(args)


if __name__ == "__main__":
    main()
