"""Whether a converted model gives the codes of the quantized one, and who is nearer to the truth.

    python examples/benchmarks/exactness.py                           # Cora, 30 epochs
    python examples/benchmarks/exactness.py --epochs 0 --models SAGE  # ranges of one batch
    python examples/benchmarks/exactness.py --generated

Three models with equal weights and ranges are compared: the quantized one (float32 sums of rounded
values), the converted one (integer sums), and the quantized one in float64, which rounds the same
values with sums that are exact for this purpose. For all activations that are quantized in a
forward pass the table counts codes that differ (those of hops which run in one call are not seen),
and says how far the outputs are apart, in shares of the largest one. A second table does so for one
hub with many neighbours.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GCN, GIN, MLP, GraphSAGE

import torch_geometric_qlr as qlr
from _recipe import load_citation
from torch_geometric_qlr.nn import SMPGNN
from torch_geometric_qlr.nn.codes import chains, gather, hops, product
from torch_geometric_qlr.ops import reference
from torch_geometric_qlr.quantizers import LearnedRangeQuant
from torch_geometric_qlr.tensor import PackedTensor, spmm

Codes = dict[str, list[Tensor]]


class Predict(nn.Module):
    """An MLP whose answers are propagated."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.mlp = MLP([features, 64, classes], norm=None, dropout=0.5)
        self.propagation = APPNP(10, 0.1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.propagation(self.mlp(x), edge_index)
        return out


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "GCN": lambda f, c: GCN(f, 64, 2, c, dropout=0.5),
    "SAGE": lambda f, c: GraphSAGE(f, 64, 2, c, dropout=0.5),
    "GIN": lambda f, c: GIN(f, 64, 2, c, dropout=0.5),
    "APPNP": Predict,
    "SMP": lambda f, c: SMPGNN(f, 64, c),
}
WIDTHS: dict[str, dict[str, Any]] = {
    "INT8": {"bits": 8},
    "INT4": {"bits": 4},
    "INT2": {"bits": 2},
    "INT2-BT*": {"bits": 2, "truncation": "bt*"},
}


def trained(model: nn.Module, data: Any, epochs: int) -> nn.Module:
    groups = [
        {"params": qlr.weight_parameters(model), "weight_decay": 5e-4},
        {"params": qlr.quant_parameters(model)},
    ]
    optimizer = torch.optim.Adam(groups, lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        out = model.train()(data.x, data.edge_index)
        F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()
    return model.eval()


# The codes of a forward pass #####################################################################


@contextmanager
def fake_codes(model: nn.Module) -> Iterator[Codes]:
    """Those that the quantizers of a quantized model round to."""
    codes: Codes = defaultdict(list)

    def look(q: LearnedRangeQuant, args: tuple[Tensor], out: Any) -> None:
        if not isinstance(args[0], nn.Parameter):
            x = q.groups.matrix(args[0])
            scale, zero_point, skew = q.code_params(x)
            options: Any = {"truncate": q.config.truncates, "skew": skew}
            codes[q.path].append(reference.quantize(x, scale, zero_point, q.bits, **options))

    ranges = [m for m in model.modules() if isinstance(m, LearnedRangeQuant)]
    hooks = [q.register_forward_hook(look) for q in ranges]
    try:
        yield codes
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def packed_codes() -> Iterator[Codes]:
    """Those that the kernels of a converted model read."""
    codes: Codes = defaultdict(list)
    readers = (gather, hops, product)
    original = chains.codes_of

    def look(x: Any, quantizer: Any) -> PackedTensor:
        out = original(x, quantizer)
        codes[quantizer.path].append(out.unpack())
        return out

    for module in readers:
        module.codes_of = look
    try:
        yield codes
    finally:
        for module in readers:
            module.codes_of = original


def differing(left: Codes, right: Codes) -> tuple[int, int]:
    """How many codes differ, of how many."""
    count = total = 0
    for path, values in left.items():
        for a, b in zip(values, right[path], strict=True):
            count += int((a != b).sum())
            total += a.numel()
    return count, total


def apart(left: Tensor, right: Tensor) -> float:
    return float((left.double() - right.double()).abs().max() / right.abs().max())


@torch.no_grad()
def compare(model: nn.Module, x: Tensor, edge_index: Tensor) -> list[str]:
    model(x, edge_index)  # starts the ranges of a model that was not trained
    exact, packed = copy.deepcopy(model).double(), qlr.convert(model)
    with fake_codes(model) as ours:
        out = model(x, edge_index)
    with fake_codes(exact) as truth:
        true_out = exact(x.double(), edge_index)
    with packed_codes() as theirs:
        packed_out = packed(x, edge_index)
    changed = int((packed_out.argmax(dim=-1) != out.argmax(dim=-1)).sum())
    pairs = (differing(theirs, ours), differing(theirs, truth), differing(ours, truth))
    counts = [f"{count:,}" for count, _ in pairs]
    distances = (apart(packed_out, out), apart(packed_out, true_out), apart(out, true_out))
    return [f"{pairs[0][1]:,}", *counts, *(f"{d:.0e}" for d in distances), str(changed)]


def hub(degree: int, weighted: bool) -> list[str]:
    """Errors of one sum of codes, against float64."""
    codes = torch.randint(0, 16, (5000, 16), dtype=torch.uint8)
    scale, zero_point = torch.tensor(0.1), torch.tensor(3.0)
    col = torch.randint(0, 5000, (degree,), dtype=torch.int32)
    weight = torch.rand(degree) if weighted else torch.ones(degree)
    x = PackedTensor.from_codes(codes, scale, zero_point, bits=4)
    packed = spmm(torch.tensor([0, degree]), col, x, edge_weight=weight if weighted else None)
    messages = weight.view(-1, 1) * x.dequantize()[col]
    fake = torch.zeros(1, 16).index_add_(0, torch.zeros(degree, dtype=torch.long), messages)
    exact = (weight.double().view(-1, 1) * 0.1 * (codes[col].double() - 3)).sum(dim=0)
    kind = "weighted" if weighted else "sum"
    return [f"{degree:,}", kind, f"{apart(packed, exact):.0e}", f"{apart(fake, exact):.0e}"]


def table(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--generated", action="store_true")
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=list(MODELS))
    parser.add_argument("--widths", nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    graph = load_citation(args.root, generated=args.generated)
    data = graph.data
    print(f"{graph.description}, {args.epochs} epochs\n")
    head = ["model", "width", "codes", "packed - quantized", "packed - float64"]
    head += ["quantized - float64", "outputs apart", "packed", "quantized", "predictions changed"]
    rows = [head]
    for name in args.models:
        for width in args.widths:
            torch.manual_seed(0)
            model = qlr.quantize(MODELS[name](data.x.size(1), graph.num_classes), **WIDTHS[width])
            model = trained(model, data, args.epochs)
            rows.append([name, width, *compare(model, data.x, data.edge_index)])
    print(table(rows))
    sums = [["neighbours", "sum", "packed", "float32"]]
    sums += [
        hub(degree, weighted) for weighted in (False, True) for degree in (10**3, 10**4, 10**5)
    ]
    print(f"\n{table(sums)}")


if __name__ == "__main__":
    main()
