"""A new convolution is one row of the table, or one call of ``register_conv``, and nothing else."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import torch_geometric_qlr as qlr
from tests.helpers.package_copy import ROOT, PackageCopy, run_python

#: Three convs that nobody has heard of. What they do cannot all be found out by trying them.
TOY = '''
import torch
from torch import nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import add_self_loops, remove_self_loops

import torch_geometric_qlr as qlr


class Copies(MessagePassing):
    """Weighs its neighbours."""

    def __init__(self, i, o):
        super().__init__(aggr="add")
        self.lin = nn.Linear(i, o)

    def forward(self, x, edge_index):
        weight = torch.linspace(0, 1, edge_index.size(1))
        return self.lin(self.propagate(edge_index, x=x, weight=weight))

    def message(self, x_j, weight):
        return weight.view(-1, 1) * x_j


class Attends(MessagePassing):
    """Computes its coefficients in the message."""

    def __init__(self, i, o):
        super().__init__(aggr="add")
        self.lin = nn.Linear(i, o)
        self.gate = nn.Parameter(torch.ones(1, o))

    def forward(self, x, edge_index):
        x = self.lin(x)
        return self.propagate(edge_index, x=x, score=(x * self.gate).sum(dim=-1, keepdim=True))

    def message(self, x_j, score_i, score_j):
        return torch.sigmoid(score_i + score_j) * x_j


class Hops(MessagePassing):
    """Prepares its edges, and is nothing but hops."""

    def __init__(self, i, o):
        super().__init__(aggr="add")
        self.lin, self.add_self_loops, self.rate, self.times = nn.Linear(i, o), True, 0.25, 0

    def forward(self, x, edge_index):
        if self.add_self_loops:
            edge_index, _ = remove_self_loops(edge_index)
            edge_index, _ = add_self_loops(edge_index, num_nodes=x.size(0))
        h = x
        for _ in range(3):
            h = (1 - self.rate) * self.propagate(edge_index, x=h) + self.rate * x
        return self.lin(h)


def loops(layer, arguments, edges, extra):
    layer.times += 1  # how often it is asked to
    edges, _ = remove_self_loops(edges)
    return add_self_loops(edges, num_nodes=arguments["x"].size(0))[0]


def check(cls, family, runs_as):
    torch.manual_seed(0)
    x, edges = torch.randn(12, 8), torch.randint(0, 12, (2, 40))
    model = Whole(cls)
    (entry,) = [e for e in qlr.plan(model, bits=4).entries if e.name == "conv"]
    assert (entry.layer, entry.family) == (cls.__name__, family), entry
    assert "unregistered" not in entry.note and "source:x" in entry.points, entry
    with torch.no_grad():
        exact = model(x, edges)
        error = qlr.quantize(model, bits=8).eval()(x, edges) - exact
    assert error.abs().max() < 0.05 * exact.abs().max(), error.abs().max()
    quantized = qlr.quantize(model, bits=4)
    optimizer = torch.optim.Adam(quantized.parameters(), lr=0.01)
    before = [p.detach().clone() for p in quantized.parameters()]
    quantized(x, edges).square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, quantized.parameters()))
    quantized.eval()
    with torch.no_grad():
        expected = quantized(x, edges)
        packed = qlr.convert(quantized)
        assert torch.equal(packed(x, edges), expected)
        assert torch.equal(packed(x, edges), expected)
    (layer,) = [e for e in qlr.report(packed).entries if e.name == "conv"]
    assert (layer.runs_as, layer.note) == (runs_as, ""), layer
    return packed.conv


class Whole(nn.Module):
    def __init__(self, cls):
        super().__init__()
        self.conv = cls(8, 8)

    def forward(self, x, edge_index):
        return self.conv(x, edge_index).relu()
'''

ROWS = {
    "Copies": ("copy", "packed sum", '"toy.Copies": copy_spec(first=True)'),
    "Attends": (
        "attention",
        "packed attention",
        '"toy.Attends": attention_spec(logit_weights=("gate",), message=_attends("x"))',
    ),
    "Hops": (
        "copy",
        "packed sum",
        '"toy.Hops": copy_spec(first=True, hops=lambda conv: 3, '
        'forward=_prepares(PLAIN_LOOPS, HopChain(teleport="rate", then="lin")))',
    ),
}


def test_one_row_of_the_table(tmp_path: Path) -> None:
    copy, toy = PackageCopy(tmp_path / "package", library=True), tmp_path / "toy"
    rows = "\n".join(f"    {row}," for _, _, row in ROWS.values())
    copy.add_line("nn/table.py", rows, after="OTHERS: ")
    toy.mkdir()
    (toy / "toy.py").write_text(TOY)
    program = ["import toy", f"assert toy.qlr.__file__.startswith({str(copy.package)!r})"]
    for name, (family, runs_as, _) in ROWS.items():
        program.append(f"toy.check(toy.{name}, {family!r}, {runs_as!r})")
    copy.run("-W", "ignore", "-c", "\n".join(program), beside=toy)
    copy.assert_nothing_else_differs()


@pytest.mark.parametrize("name", ROWS)
def test_nobody_has_heard_of_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    toy = importlib.import_module("toy")
    (entry,) = [e for e in qlr.plan(toy.Whole(getattr(toy, name))).entries if e.name == "conv"]
    assert "unregistered" in entry.note


CALLS = {
    "Copies": "qlr.register_conv(toy.Copies, propagates_input=True)",
    "Attends": """qlr.register_conv(
        toy.Attends, family="attention", logit_weights=("gate",),
        message=qlr.nn.MessageFacts(coefficients="x"),
    )""",
    "Hops": """qlr.register_conv(
        toy.Hops, hops=lambda conv: 3, propagates_input=True,
        forward=qlr.nn.ForwardFacts(
            edges=qlr.nn.EdgePreparation(prepare=toy.loops, flag="add_self_loops"),
            chain=qlr.nn.HopChain(teleport="rate", then="lin"),
        ),
    )""",
}


def test_one_call(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    program = ["import toy", "from toy import qlr"]
    for name, (family, runs_as, _) in ROWS.items():
        program += [CALLS[name], f"packed = toy.check(toy.{name}, {family!r}, {runs_as!r})"]
        if name == "Hops":
            # Edges are prepared in the first call on codes, and remembered for all others.
            program.append("assert packed.times <= 1, packed.times")
    command = ("-W", "ignore", "-c", "\n".join(program))
    run_python(*command, places=[ROOT, tmp_path], cwd=tmp_path)
