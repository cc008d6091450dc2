"""Whether a converted model gives the codes of the quantized one, and who is nearer to the truth.

    python examples/benchmarks/exactness.py                           # Cora, 30 epochs
    python examples/benchmarks/exactness.py --epochs 0 --models SAGE  # ranges of one batch
    python examples/benchmarks/exactness.py --generated --zoo         # and many layers, small

A quantized model in ``eval()`` under ``no_grad`` runs the packed operations of the converted one,
so the two must agree in every code and in every bit of the output. While gradients are needed it
computes the straight-through form instead, float32 sums of rounded values, which rounds in another
order; and in float64 these sums are exact for this purpose. So four passes with equal weights and
ranges are compared: *eval*, *converted* (its third call, in which chains of layers are fused),
*training* (the straight-through form) and *float64*. For all activations that are quantized in a
forward pass the table counts codes that differ (those of hops which run in one call are seen in
the straight-through form only, and left out), and says how far the outputs are apart, in shares of
the largest one.

A second table does so for one hub with many neighbours. With ``--zoo`` a third one has a row for
each of many convolutions, static graphs and heads, at every granularity, over all widths.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GCN, GIN, MLP, GraphSAGE, conv

import torch_geometric_qlr as qlr
from _recipe import load_citation
from torch_geometric_qlr.codes import chains
from torch_geometric_qlr.nn import SMPGNN
from torch_geometric_qlr.ops import QParams, reference
from torch_geometric_qlr.quantizers import Quantizer
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
def recorded_codes() -> Iterator[Codes]:
    """What activations are rounded to: by quantizers in floats or as codes, or by a kernel on its
    way out. Nothing is hooked, as converted models fuse nothing that somebody looks at."""
    codes: Codes = defaultdict(list)
    rounds, packs, promised = Quantizer.forward, Quantizer.pack, chains.promised_codes

    def forward(self: Quantizer, x: Tensor) -> Any:
        out = rounds(self, x)
        if not isinstance(x, nn.Parameter) and x.numel() > 0:
            matrix = self.groups.matrix(x.detach())
            scale, zero_point, skew = self.code_params(matrix)
            options: Any = {"truncate": self.config.truncates, "skew": skew}
            found = reference.quantize(matrix, QParams(scale, zero_point, self.bits, **options))
            codes[self.path].append(found.view(x.shape))
        return out

    def pack(self: Quantizer, x: Tensor) -> PackedTensor:
        out = packs(self, x)
        codes[self.path].append(out.unpack())
        return out

    def promised_codes(x: Any, quantizer: Any) -> PackedTensor | None:
        out = promised(x, quantizer)
        if out is not None:
            codes[quantizer.path].append(out.unpack())
        return out

    methods: Any = Quantizer
    methods.forward, methods.pack, chains.promised_codes = forward, pack, promised_codes
    try:
        yield codes
    finally:
        methods.forward, methods.pack, chains.promised_codes = rounds, packs, promised


def differing(ours: Codes, theirs: Codes) -> tuple[int, int]:
    """How many codes differ, of how many that both passes have made one by one."""
    count = total = 0
    for path in ours.keys() & theirs.keys():
        for a, b in zip(ours[path], theirs[path], strict=False):
            forms = itertools.product(_orders(a), _orders(b))
            count += min(int((left != right).sum()) for left, right in forms)
            total += a.numel()
    return count, total


def _orders(codes: Tensor) -> list[Tensor]:
    """A stack of graphs is packed node by node."""
    orders = [codes, codes.transpose(0, 1)] if codes.dim() == 3 else [codes]
    return [order.flatten() for order in orders]


def apart(left: Tensor, right: Tensor) -> float:
    return float((left.double() - right.double()).abs().max() / right.abs().max())


class Comparison:
    """Four passes of one model, see the top of the file.

    Args:
        model (torch.nn.Module): A quantized model.
        *args (Any): What it is called with.
    """

    def __init__(self, model: nn.Module, *args: Any) -> None:
        with torch.no_grad():
            model.eval()(*args)  # makes the ranges of a model that was not trained
        for module in model.modules():
            if isinstance(module, Quantizer):
                module.fix()
        exact, converted = copy.deepcopy(model).double(), qlr.convert(model)
        wide = [a.double() if a.is_floating_point() else a for a in args]
        self.eval = self._pass(model, *args)
        for _ in range(3):
            self.converted = self._pass(converted, *args)
        self.training = self._pass(model, *args, needs_gradients=True)
        self.exact = self._pass(exact, *wide, needs_gradients=True)

    @staticmethod
    def _pass(model: nn.Module, *args: Any, needs_gradients: bool = False) -> tuple[Codes, Tensor]:
        with torch.set_grad_enabled(needs_gradients), recorded_codes() as codes:
            out: Tensor = model(*args)
        return codes, out.detach()

    def codes(self) -> tuple[int, list[int]]:
        """How many there are, and how many differ: converted from eval, training from eval, eval
        from float64, training from float64."""
        pairs = [(self.converted, self.eval), (self.training, self.eval)]
        pairs += [(self.eval, self.exact), (self.training, self.exact)]
        counts = [differing(left[0], right[0]) for left, right in pairs]
        return counts[0][1], [count for count, _ in counts]

    def is_equal(self) -> bool:
        """Whether eval and converted agree in every bit of the output."""
        return torch.equal(self.eval[1], self.converted[1])

    def outputs(self) -> list[float]:
        """Training from eval, eval from float64, training from float64."""
        pairs = [(self.training, self.eval), (self.eval, self.exact), (self.training, self.exact)]
        return [apart(left[1], right[1]) for left, right in pairs]

    def changed(self) -> int:
        """Predictions of eval that the converted model changes."""
        ours, theirs = self.eval[1].argmax(dim=-1), self.converted[1].argmax(dim=-1)
        return int((ours != theirs).sum())


HEAD = [
    *("codes", "converted - eval", "outputs equal"),
    *("training - eval", "eval - float64", "training - float64"),
    *("outputs: training - eval", "outputs: eval - float64", "outputs: training - float64"),
]


def cells(comparisons: list[Comparison]) -> list[str]:
    """The columns of :data:`HEAD` for one model or several."""
    counted = [c.codes() for c in comparisons]
    counts = [f"{sum(column):,}" for column in zip(*(c for _, c in counted), strict=True)]
    distances = [max(column) for column in zip(*(c.outputs() for c in comparisons), strict=True)]
    equal = "yes" if all(c.is_equal() for c in comparisons) else "NO"
    total = f"{sum(total for total, _ in counted):,}"
    return [total, counts[0], equal, *counts[1:], *(f"{d:.0e}" for d in distances)]


# Many layers ######################################################################################

NODES, IN, OUT = 200, 16, 8
STACK = "static graphs"
ZOO: dict[str, Callable[[], nn.Module]] = {
    "GCNConv": lambda: conv.GCNConv(IN, OUT),
    "SAGEConv": lambda: conv.SAGEConv(IN, OUT),
    "SAGEConv max": lambda: conv.SAGEConv(IN, OUT, aggr="max"),
    "GraphConv": lambda: conv.GraphConv(IN, OUT),
    "GINConv": lambda: conv.GINConv(MLP([IN, OUT, OUT], norm=None)),
    "TAGConv": lambda: conv.TAGConv(IN, OUT),
    "ChebConv": lambda: conv.ChebConv(IN, OUT, K=3),
    "SGConv": lambda: conv.SGConv(IN, OUT, K=3),
    "SSGConv": lambda: conv.SSGConv(IN, OUT, alpha=0.1, K=3),
    "APPNP": lambda: conv.APPNP(5, 0.1),
    "ARMAConv": lambda: conv.ARMAConv(IN, OUT, num_stacks=2, num_layers=2),
    "ClusterGCNConv": lambda: conv.ClusterGCNConv(IN, OUT),
    "LEConv": lambda: conv.LEConv(IN, OUT),
    "EdgeConv": lambda: conv.EdgeConv(MLP([2 * IN, OUT, OUT], norm=None)),
    "GATConv, 4 heads": lambda: conv.GATConv(IN, OUT, heads=4),
    "GATv2Conv, 4 heads": lambda: conv.GATv2Conv(IN, OUT, heads=4),
    "TransformerConv, 4 heads": lambda: conv.TransformerConv(IN, OUT, heads=4),
    "SuperGATConv, 4 heads": lambda: conv.SuperGATConv(IN, OUT, heads=4),
    "AGNNConv": lambda: conv.AGNNConv(),
    "ResGatedGraphConv": lambda: conv.ResGatedGraphConv(IN, OUT),
    "GCN, batch norm": lambda: GCN(IN, 32, 2, OUT, norm="batch_norm"),
    f"GCN, {STACK}": lambda: GCN(IN, 32, 2, OUT),
    f"SAGE, {STACK}": lambda: GraphSAGE(IN, 32, 2, OUT),
    f"GIN, {STACK}": lambda: GIN(IN, 32, 2, OUT),
}
GRANULARITIES = ("default", "tensor", "node", "feature")


def zoo_rows() -> Iterator[list[str]]:
    """A row for each layer and granularity, over all widths."""
    for name, make in ZOO.items():
        for granularity in GRANULARITIES:
            torch.manual_seed(0)
            edge_index = torch.randint(0, NODES, (2, 5 * NODES))
            x = torch.randn(NODES, IN)
            if name.endswith(STACK):
                x = torch.stack([0.1 * x, x.flip(0), 10 * x])
            options: Any = {} if granularity == "default" else {"granularity": granularity}
            try:
                models = [qlr.quantize(make(), **width, **options) for width in WIDTHS.values()]
            except qlr.errors.ConfigError:  # it does not tell how many features it is given
                continue
            yield [name, granularity, *cells([Comparison(m, x, edge_index) for m in models])]


# One hub ##########################################################################################


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
    parser.add_argument("--zoo", action="store_true", help="also compare many small layers")
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    graph = load_citation(args.root, generated=args.generated)
    data = graph.data
    print(f"{graph.description}, {args.epochs} epochs\n")
    rows = [["model", "width", *HEAD, "predictions changed"]]
    for name in args.models:
        for width in args.widths:
            torch.manual_seed(0)
            model = qlr.quantize(MODELS[name](data.x.size(1), graph.num_classes), **WIDTHS[width])
            model = trained(model, data, args.epochs)
            compared = Comparison(model, data.x, data.edge_index)
            rows.append([name, width, *cells([compared]), str(compared.changed())])
    print(table(rows))
    sums = [["neighbours", "sum", "packed", "float32"]]
    sums += [
        hub(degree, weighted) for weighted in (False, True) for degree in (10**3, 10**4, 10**5)
    ]
    print(f"\nOne sum of codes, away from float64\n\n{table(sums)}")
    if args.zoo:
        head = ["layer", "granularity", *HEAD]
        print(f"\nMany layers, {NODES} nodes, all widths\n\n{table([head, *zoo_rows()])}")


if __name__ == "__main__":
    main()
