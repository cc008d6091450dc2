"""Quantized and converted models as one graph of torch: compiled whole, exported for any size."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GAT, GCN, GIN, GraphSAGE, Linear, MessagePassing

import torch_geometric_qlr as qlr
from torch_geometric_qlr.nn import SMPGNN

F, H, C = 8, 16, 4


class Propagated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.propagate = Linear(F, C), APPNP(3, 0.1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.propagate(self.lin(x).relu(), edge_index)
        return out


class OwnConv(MessagePassing):
    """A user's layer."""

    def __init__(self) -> None:
        super().__init__(aggr="mean")
        self.lin = nn.Linear(F, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=self.lin(x))
        return out + 1

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


MODELS: dict[str, Callable[[], nn.Module]] = {
    "GCN": lambda: GCN(F, H, 2, C),
    "GraphSAGE": lambda: GraphSAGE(F, H, 2, C),
    "GIN": lambda: GIN(F, H, 2, C),
    "GAT": lambda: GAT(F, H, 2, C, heads=2),
    "APPNP": Propagated,
    "SMPGNN": lambda: SMPGNN(F, H, C),
    "batch norm, jumping knowledge": lambda: GAT(F, H, 3, C, norm="batch_norm", jk="cat"),
    "own layer": OwnConv,
}
KINDS = ("quantized", "converted")
#: Always run; the others are marked heavy.
TWINS = {
    ("GCN", "converted"),
    ("SMPGNN", "converted"),
    ("own layer", "quantized"),
    ("own layer", "converted"),
}


def models_of_kinds(twins: Collection[tuple[str, str]]) -> pytest.MarkDecorator:
    pairs = itertools.product(MODELS, KINDS)
    return pytest.mark.parametrize(
        ("name", "kind"),
        [pytest.param(*pair, marks=() if pair in twins else pytest.mark.heavy) for pair in pairs],
    )


def graph(nodes: int, edges: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(nodes)
    return torch.randn(nodes, F, generator=rng), torch.randint(0, nodes, (2, edges), generator=rng)


GRAPHS = [graph(50, 200), graph(71, 333), graph(12, 20)]


def build(name: str, kind: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "own layer":
        qlr.register_conv(OwnConv, family="copy", replace=True)
    model = qlr.quantize(MODELS[name](), bits=8)
    with torch.no_grad():
        for one in GRAPHS:  # in training, after which evaluation moves no range
            model(*one)
    model.eval()
    return model if kind == "quantized" else qlr.convert(model)


def assert_same_answers(traced: Any, model: nn.Module, kind: str, exactly: bool = True) -> None:
    """A quantized model is traced in floating point, a converted one in its own operations."""
    for one in GRAPHS:
        out = traced(*one)
        if kind == "converted" and exactly:
            assert torch.equal(out, model(*one))
        elif kind == "converted":
            torch.testing.assert_close(out, model(*one))
        else:
            with torch.enable_grad():
                torch.testing.assert_close(out, model(*one).detach())


@models_of_kinds(TWINS)
def test_compiles_whole_for_any_size(name: str, kind: str) -> None:
    torch._dynamo.reset()
    model = build(name, kind)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
        assert_same_answers(compiled, model, kind)


def check_export(name: str, kind: str, strict: bool) -> None:
    torch._dynamo.reset()
    model = build(name, kind)
    sizes = {0: torch.export.Dim("nodes", min=2)}, {1: torch.export.Dim("edges", min=2)}
    with torch.no_grad():
        program = torch.export.export(model, GRAPHS[0], dynamic_shapes=sizes, strict=strict)
        assert_same_answers(program.module(), model, kind)


@models_of_kinds(TWINS)
def test_exports_for_any_size(name: str, kind: str) -> None:
    check_export(name, kind, strict=False)


@models_of_kinds([("own layer", kind) for kind in KINDS])
def test_exports_for_any_size_as_it_compiles(name: str, kind: str) -> None:
    check_export(name, kind, strict=True)


def found_by_draft(model: nn.Module) -> set[str]:
    sizes = {0: torch.export.Dim.AUTO}, {1: torch.export.Dim.AUTO}
    with torch.no_grad():
        program = torch.export.draft_export(model, GRAPHS[0], dynamic_shapes=sizes)
    report: Any = program._report
    return {str(failure.failure_type) for failure in report.failures}


@models_of_kinds([])
def test_a_draft_of_an_export_finds_no_more_than_in_the_float_model(name: str, kind: str) -> None:
    torch._dynamo.reset()
    model = build(name, kind)
    torch.manual_seed(0)
    try:
        found = found_by_draft(model)
    except RuntimeError as error:
        # torch compares False with None: an optional tensor that is left out, before an argument
        # that is given, counts as changed by the op.
        assert "empirically wrong" in str(error) and kind == "converted"
        pytest.xfail("torch's check of mutations")
    assert found <= found_by_draft(MODELS[name]().eval())


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("name", MODELS)
def test_a_program_compiled_ahead_gives_the_same_answers(name: str, tmp_path: Any) -> None:
    torch._dynamo.reset()
    model = build(name, "converted")
    sizes = {0: torch.export.Dim("nodes", min=2)}, {1: torch.export.Dim("edges", min=2)}
    with torch.no_grad():
        program = torch.export.export(model, GRAPHS[0], dynamic_shapes=sizes)
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
        compiled = torch._inductor.aoti_load_package(path)
        # PyG computes attention in floats: inductor takes sums over the heads in another order.
        assert_same_answers(compiled, model, "converted", exactly=name != "GAT")
