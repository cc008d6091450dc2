"""A GCN on Cora at a few bits, written to files that run without this package.

    python examples/export.py [--out FOLDER] [--bits BITS] [--onnx]

The folder has the model (.pt2), the library of kernels that it calls, and inputs with the answer to
expect. Another process of Python then runs it, which imports torch only; examples/cpp has the same
in C++. With --onnx the quantized model is written as ONNX as well.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.nn import GCN

import torch_geometric_qlr as qlr
from _common import fit_full_batch, human, parse_args
from _data import load_citation

ROUNDS = 30


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("exported"), help="folder of the files")
    parser.add_argument("--bits", type=int, default=4, help="of weights, features and messages")
    parser.add_argument("--hidden", type=int, default=64, help="channels")
    parser.add_argument("--nodes", type=int, help="of a random graph in place of Cora")
    parser.add_argument("--edges", type=int, default=10_000, help="of it")
    parser.add_argument("--features", type=int, default=128, help="of each of its nodes")
    parser.add_argument("--onnx", action="store_true", help='needs the extra "onnx"')
    parser.add_argument("--keep-graph", action="store_true", help="for the same edges again")
    parser.add_argument("--traced", action="store_true", help="do not compile to machine code")


def milliseconds(*calls: Callable[[], object]) -> list[float]:
    """The median of each, one after the other in every round."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            own.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]


def random_graph(nodes: int, edges: int, features: int) -> Data:
    """For times only: its labels mean nothing."""
    mask = torch.ones(nodes, dtype=torch.bool)
    masks = {f"{split}_mask": mask for split in ("train", "val", "test")}
    x, edge_index = torch.randn(nodes, features), torch.randint(nodes, (2, edges))
    return Data(x, edge_index, y=torch.randint(7, (nodes,)), **masks)


def compiled_call(path: Path, inputs: tuple[Tensor, Tensor]) -> Callable[[], object]:
    """A call of a program that is handed all inputs."""
    run = torch._inductor.aoti_load_package(str(path))
    return lambda: run(*inputs)


def kept_call(
    packed: torch.nn.Module, folder: Path, inputs: tuple[Tensor, Tensor]
) -> Callable[[], object]:
    """A call of a program that is handed what another one has computed of the edges before."""
    from torch._inductor.package import load_package  # with the compiler, which takes long

    path = folder / "model_for_a_graph.pt2"
    print(qlr.export(packed, path, inputs, fixed_inputs=[1]))
    terms, run = (load_package(str(path), name) for name in ("terms", "model"))
    kept = terms(*inputs)
    return lambda: run(*inputs, *kept)


def main() -> None:
    args = parse_args(__doc__, epochs=50, seeds=1, extend=extend)
    seed_everything(0)
    if args.nodes:
        data = random_graph(args.nodes, args.edges, args.features)
    else:
        data = load_citation(args.root, "Cora", args.generated).data
    model = GCN(data.num_features, args.hidden, 2, int(data.y.max()) + 1, dropout=0.5)
    qmodel = qlr.quantize(model, bits=args.bits)
    fit_full_batch(f"INT{args.bits}", qmodel, data, args.epochs)
    packed = qlr.convert(qmodel.eval())

    args.out.mkdir(parents=True, exist_ok=True)
    inputs = (data.x, data.edge_index)
    written = args.out / "model.pt2"
    print(qlr.export(packed, written, inputs, compiled=not args.traced))
    if args.onnx:
        print(qlr.export(qmodel, args.out / "model.onnx", inputs))
    with torch.no_grad():
        torch.save([*inputs, packed(*inputs)], args.out / "inputs.pt")
    for file in sorted(args.out.iterdir()):
        print(f"{file.name:16} {human(file.stat().st_size)}")
    if args.traced:
        return

    calls = {
        "eager": lambda: packed(*inputs),
        "eager with a graph that is new in every call": lambda: packed(
            inputs[0], inputs[1].clone()
        ),
        "compiled": compiled_call(written, inputs),
    }
    if args.keep_graph:
        calls["compiled, with the terms of the graph kept"] = kept_call(packed, args.out, inputs)
    with torch.no_grad():
        times = milliseconds(*calls.values())
    for name, time_ in zip(calls, times, strict=True):
        print(f"{time_:8.2f} ms {name}")

    kernels = Path(shutil.copy(qlr.ops.backend_info()["library"], args.out))
    other = [sys.executable, str(Path(__file__).with_name("run_exported.py"))]
    files = [str(path) for path in (kernels, written, args.out / "inputs.pt")]
    subprocess.run([*other, *files], check=True)


if __name__ == "__main__":
    main()
