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
from torch_geometric import seed_everything
from torch_geometric.nn import GCN

import torch_geometric_qlr as qlr
from _common import fit_full_batch, human, parse_args
from _data import load_citation

ROUNDS = 100


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("exported"), help="folder of the files")
    parser.add_argument("--bits", type=int, default=4, help="of weights, features and messages")
    parser.add_argument("--onnx", action="store_true", help='needs the extra "onnx"')
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


def main() -> None:
    args = parse_args(__doc__, epochs=50, seeds=1, extend=extend)
    graph = load_citation(args.root, "Cora", args.generated)
    data = graph.data
    seed_everything(0)
    model = GCN(data.num_features, 64, num_layers=2, out_channels=graph.num_classes, dropout=0.5)
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

    kernels = Path(shutil.copy(qlr.ops.backend_info()["library"], args.out))
    run = torch._inductor.aoti_load_package(str(written))
    with torch.no_grad():
        eager, compiled = milliseconds(lambda: packed(*inputs), lambda: run(*inputs))
    print(f"{eager:.2f} ms eager, {compiled:.2f} ms compiled, {args.threads} threads")
    other = [sys.executable, str(Path(__file__).with_name("run_exported.py"))]
    files = [str(path) for path in (kernels, written, args.out / "inputs.pt")]
    subprocess.run([*other, *files], check=True)


if __name__ == "__main__":
    main()
