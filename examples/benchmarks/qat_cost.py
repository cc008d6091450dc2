"""What a quantized training step costs against the float one: time side by side, and peak memory.

    python examples/benchmarks/qat_cost.py           a GCN on a graph of the shape of ogbn-arxiv
    python examples/benchmarks/qat_cost.py --huge    one step on 1M nodes and 10M edges

Both models train on the same generated graph with power-law degrees, once per form of its
adjacency. Steps are taken in turns, so that whatever else the machine does hits both; the ratio is
the median of the ratios within a turn. Peak memory is that of a process of its own per model.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.nn import GCN
from torch_geometric.typing import WITH_TORCH_SPARSE, SparseTensor
from torch_geometric.utils import to_torch_csr_tensor

import torch_geometric_qlr as qlr
from _graphs import SHAPES, generate
from _timing import interleave, paired_ratio

# Said by torch and PyG of every sparse matrix; a benchmark of them need not repeat it.
torch.sparse.check_sparse_tensor_invariants.disable()
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")

FORMS = ("edge_index", "csr", "sparse_tensor")


@dataclass(frozen=True)
class Size:
    """The shape of a problem."""

    nodes: int
    edges: int
    features: int
    hidden: int
    classes: int = 40


ARXIV = Size(nodes=169_343, edges=2_315_598, features=128, hidden=128)
HUGE = Size(nodes=1_000_000, edges=10_000_000, features=32, hidden=32)


def graph(size: Size) -> Tensor:
    """Power-law degrees and communities like those of ogbn-arxiv, at this size."""
    SHAPES["asked"] = SHAPES["arxiv"]._replace(nodes=size.nodes, undirected_edges=size.edges // 2)
    return generate("asked").edge_index()


def adjacency(form: str, edge_index: Tensor, nodes: int) -> Any:
    """The graph in one of the forms a PyG layer takes; matrices transposed, as PyG wants them."""
    if form == "edge_index":
        return edge_index
    if form == "csr":
        return to_torch_csr_tensor(edge_index.flip(0), size=(nodes, nodes))
    row, col = edge_index
    return SparseTensor(row=col, col=row, sparse_sizes=(nodes, nodes))


def training_step(size: Size, form: str, bits: int | None) -> Callable[[], None]:
    """A step of training on a graph that is the same for every caller."""
    seed_everything(0)
    adj = adjacency(form, graph(size), size.nodes)
    x = torch.randn(size.nodes, size.features)
    y = torch.randint(size.classes, (size.nodes,))
    model: nn.Module = GCN(size.features, size.hidden, num_layers=2, out_channels=size.classes)
    if bits is not None:
        model = qlr.quantize(model, bits=bits)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x, adj), y).backward()
        optimizer.step()

    return step


def run_once(size: Size, form: str, bits: int | None, steps: int) -> dict[str, float]:
    """Steps in this process: the seconds of the last one, and the peak memory before and after."""
    step = training_step(size, form, bits)
    before = peak_bytes()
    seconds = 0.0
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "before": before, "peak": peak_bytes()}


def peak_bytes() -> float:
    """The peak resident memory of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def in_own_process(args: argparse.Namespace, form: str, bits: int | None) -> dict[str, float]:
    """:func:`run_once` in a fresh process.

    A process inherits the peak of the one that started it, so these come first, while this one is
    still small.
    """
    options = [f"--form={form}", f"--bits={bits or 32}", f"--threads={args.threads}"]
    for name in ("nodes", "edges", "features", "hidden", "steps"):
        options.append(f"--{name}={getattr(args, name)}")
    command = [sys.executable, __file__, "--worker", *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def compare(args: argparse.Namespace, forms: list[str]) -> list[dict[str, Any]]:
    """Memory of both models for each form, then their times side by side."""
    size = size_of(args)
    memory = {
        form: [in_own_process(args, form, bits)["peak"] for bits in (None, args.bits)]
        for form in forms
    }
    results = []
    for form in forms:
        steps = {
            "FP32": training_step(size, form, None),
            f"INT{args.bits}": training_step(size, form, args.bits),
        }
        times = interleave(steps, args.repeats)
        results.append({"form": form, "memory": memory[form], "times": times})
    return results


def print_results(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """A line per form: median times, the median of the ratios, and peak memory."""
    quant = f"INT{args.bits}"
    head = f"{'adjacency':<15}{'FP32 step':>11}{quant + ' step':>11}{'ratio':>7}"
    print(f"{head}{'FP32 peak':>12}{quant + ' peak':>11}{'ratio':>7}")
    for result in results:
        times = result["times"]
        plain, quantized = (statistics.median(times[name]) for name in ("FP32", quant))
        before, after = (peak / 1e9 for peak in result["memory"])
        print(
            f"{result['form']:<15}{plain:>9.3f} s{quantized:>9.3f} s"
            f"{paired_ratio(times, quant, 'FP32'):>7.2f}"
            f"{before:>9.2f} GB{after:>8.2f} GB{after / before:>7.2f}"
        )


def size_of(args: argparse.Namespace) -> Size:
    return Size(args.nodes, args.edges, args.features, args.hidden)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--huge", action="store_true", help="one step on 1M nodes and 10M edges")
    for name in ("nodes", "edges", "features", "hidden"):
        parser.add_argument(f"--{name}", type=int, help="default: ogbn-arxiv's, or --huge's")
    parser.add_argument("--bits", type=int, default=2, help="of the quantized model (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="timed pairs of steps (default: 5)")
    parser.add_argument("--steps", type=int, default=2, help="steps for the memory (default: 2)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--form", choices=FORMS, help="one form only")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    default = HUGE if args.huge else ARXIV
    for name in ("nodes", "edges", "features", "hidden"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(default, name))
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    bits = None if args.bits >= 16 else args.bits
    if args.worker:
        print(json.dumps(run_once(size_of(args), args.form, bits, args.steps)))
        return
    forms = [args.form] if args.form else list(FORMS)
    if "sparse_tensor" in forms and not WITH_TORCH_SPARSE:
        print("torch-sparse is not installed: its SparseTensor is left out")
        forms.remove("sparse_tensor")
    print(
        f"GCN {args.features}-{args.hidden}-{ARXIV.classes}, generated power-law graph with "
        f"{args.nodes} nodes and {args.edges} edges, torch {torch.__version__}, float32, "
        f"{torch.get_num_threads()} threads"
    )
    if args.huge:
        args.steps = 1
        for form in forms:
            one = in_own_process(args, form, bits)
            print(f"{form:<14} INT{args.bits} first step {one['seconds']:6.1f} s ", end="")
            print(f"peak {one['peak'] / 1e9:5.2f} GB, {one['before'] / 1e9:.2f} GB before it")
        return
    print_results(args, compare(args, forms))


if __name__ == "__main__":
    main()
