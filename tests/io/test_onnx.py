"""Quantized models as ONNX: run by onnxruntime, with the answers of the model."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

import torch_geometric_qlr as qlr
from torch_geometric_qlr.errors import ExportError
from torch_geometric_qlr.io import onnx_program
from torch_geometric_qlr.ops.groups import QParams
from torch_geometric_qlr.ops.reference import affine_params, quantize
from torch_geometric_qlr.quantizers import fake_quantize

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

F, H, C = 8, 16, 4
MODELS: dict[str, Callable[[], nn.Module]] = {
    "GCN": lambda: GCN(F, H, 2, C),
    "GraphSAGE": lambda: GraphSAGE(F, H, 2, C),
    "GIN": lambda: GIN(F, H, 2, C),
    "GAT": lambda: GAT(F, H, 2, C, heads=2),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "8": {"bits": 8},
    "4": {"bits": 4},
    "2": {"bits": 2},
    "2, BT": {"bits": 2, "truncation": "bt"},
    "2, BT*": {"bits": 2, "truncation": "bt*"},
    "1": {"bits": 1},
    "per tensor": {"bits": 4, "granularity": {"input": "tensor"}},
}
TWINS = {("GCN", "4")}


def graph(nodes: int, edges: int) -> tuple[Tensor, Tensor]:
    """Half of the nodes have no edge, and each edge is there twice."""
    rng = torch.Generator().manual_seed(nodes)
    x = torch.randn(nodes, F, generator=rng)
    once = torch.randint(0, (nodes + 1) // 2, (2, edges), generator=rng)
    return x, torch.cat([once, once], dim=1)


GRAPHS = [graph(50, 100), graph(71, 166), graph(12, 10), graph(3, 1)]


def run(path: Path, *inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    given = {name: t.numpy() for name, t in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, given)[0])


@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param(name, config, marks=() if (name, config) in TWINS else pytest.mark.heavy)
        for name in MODELS
        for config in CONFIGS
    ],
)
def test_onnxruntime_gives_the_answers_of_the_model(name: str, config: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = qlr.quantize(MODELS[name](), **CONFIGS[config])
    with torch.no_grad():
        for one in GRAPHS:
            model(*one)
    model.eval()
    path = tmp_path / "model.onnx"
    done = qlr.export(model, path, GRAPHS[0])
    assert done.compared == 3 and done.difference.beyond == 0
    for one in GRAPHS:
        with torch.no_grad():
            expected = model(*one)
        assert (run(path, *one) - expected).abs().max() <= 1e-5 * expected.abs().max()
    check_form(path, CONFIGS[config]["bits"])


def check_form(path: Path, bits: int) -> None:
    """Each value that is rounded goes through a pair of one scale and one zero point, weights are
    codes, messages are gathered and scattered."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    made_by = {out: node for node in model.graph.node for out in node.output}
    initializers = {value.name: value for value in model.graph.initializer}
    count = Counter(node.op_type for node in model.graph.node)
    assert {node.domain for node in model.graph.node} == {""}  # nothing of anybody's own
    assert count["ScatterElements"] >= 2 and count["Gather"] >= 2
    stored, pairs = 0, set()
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        first = made_by.get(node.input[0])
        if first is None:
            # Attention vectors have 8 bits at any width of the model.
            assert initializers[node.input[0]].data_type in (2, 21)
            stored += initializers[node.input[0]].data_type == (21 if bits <= 4 else 2)
        else:
            assert first.op_type == "QuantizeLinear" and first.input[1:] == node.input[1:]
            pairs.add(first.name)
    assert stored >= 2 and len(pairs) >= 3
    assert [value.name for value in model.graph.input] == ["x", "edge_index"]
    assert [value.name for value in model.graph.output] == ["output"]
    assert not any(node.metadata_props for node in model.graph.node)


class Rounded(nn.Module):
    """Nothing but rounding."""

    def __init__(
        self, scale: Tensor, zero_point: Tensor, bits: int, skew: Tensor | None, truncate: bool
    ) -> None:
        super().__init__()
        numbers = {"scale": scale, "zero_point": zero_point, "skew": skew}
        for name, value in numbers.items():
            self.register_buffer(name, value)
        self.how = QParams(scale, zero_point, bits, truncate, skew)

    def forward(self, x: Tensor) -> Tensor:
        given = (x, self.scale, self.zero_point, self.how.bits)
        return fake_quantize(*given, truncate=self.how.truncate, skew=self.skew)


class Each(nn.ModuleList):
    """Several results of one input."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [one(x) for one in self]


def exported(every: list[Rounded], x: Tensor, path: Path) -> list[tuple[Rounded, Tensor]]:
    model, shapes = Each(every), ({0: torch.export.Dim("rows", min=2)},)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=shapes)
        run = onnx_program.onnx_program(program, str(path), (x,), shapes)
    return list(zip(every, run(x), strict=True))


def test_ties_get_the_codes_of_this_package(tmp_path: Path) -> None:
    """ONNX itself rounds before it adds the zero point: with an odd one, ties go the other way."""
    scale = torch.tensor(0.5)
    x = scale * (torch.arange(-1200, 1200).view(-1, 1) / 2)  # every tie, and beyond
    every = [
        Rounded(scale, torch.tensor(float(zero_point)), bits, None, False)
        for bits in (1, 2, 3, 4, 8)
        for zero_point in {0, 1, 2**bits - 1}
    ]
    for model, out in exported(every, x, tmp_path / "m.onnx"):
        assert torch.equal(out, model(x))


def test_fractional_zero_points_are_folded(tmp_path: Path) -> None:
    """Those of truncated codes, here by column."""
    x = torch.linspace(-12, 20, 600).view(-1, 2)
    numbers = torch.tensor([[0.1, 0.02]]), torch.tensor([[100.0, 31.0]])
    shift = torch.tensor(21.0)
    every = [Rounded(*numbers, bits, skew, True) for bits in (1, 2, 3, 4) for skew in (None, shift)]
    for model, out in exported(every, x, tmp_path / "m.onnx"):
        size, level = affine_params(*numbers, model.how.bits, True)
        assert not torch.equal(level, level.round())
        torch.testing.assert_close(out, model(x), rtol=0, atol=1e-5)
        assert torch.equal((out / size + level).round(), quantize(x, model.how).float())


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    model = qlr.quantize(nn.Linear(F, C), bits=4).eval()
    with pytest.raises(ExportError, match=r'onnxscript must be .*pip install .*\[onnx\]"'):
        qlr.export(model, tmp_path / "m.onnx", (torch.rand(3, F),))


@pytest.mark.heavy
def test_arguments_that_are_none_are_no_inputs(tmp_path: Path) -> None:
    (x, edge_index), path = GRAPHS[0], tmp_path / "m.onnx"
    inputs = (x, edge_index, None, torch.rand(edge_index.size(1), 3))
    model = qlr.quantize(GAT(F, H, 2, C, edge_dim=3), bits=4).eval()
    with torch.no_grad():
        expected = model(*inputs)
    qlr.export(model, path, inputs)
    torch.testing.assert_close(run(path, x, edge_index, inputs[3]), expected)
