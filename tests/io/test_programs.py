"""What is made of a traced program before it is written: fused steps, and terms that are kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch_geometric.nn import APPNP, GAT, GCN, GIN, GCNConv, GraphSAGE

import torch_geometric_qlr as qlr
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.io.compiled_program import MODEL, TERMS, traced
from torch_geometric_qlr.io.example_inputs import GraphInputs
from torch_geometric_qlr.io.fused_steps import fuse_steps
from torch_geometric_qlr.io.kept_terms import parts_of
from torch_geometric_qlr.io.shared_terms import functional_module

F, C = 8, 4


def graph(nodes: int, edges: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(nodes)
    return torch.randn(nodes, F, generator=rng), torch.randint(0, nodes, (2, edges), generator=rng)


EXAMPLE = graph(20, 60)
OTHERS = [EXAMPLE, graph(35, 90), graph(2, 7), graph(9, 0)]


class Hops(nn.Module):
    """APPNP behind a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.hops = nn.Linear(F, C), APPNP(K=3, alpha=0.1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.hops(self.lin(x).relu(), edge_index)
        return out


MODELS: dict[str, Any] = {
    "gcn": lambda: GCN(F, 16, 3, C),
    "gcn_norm": lambda: GCN(F, 16, 2, C, norm="batch_norm", jk="cat"),
    "gin": lambda: GIN(F, 16, 2, C),
    "sage": lambda: GraphSAGE(F, 16, 2, C),
    "gat": lambda: GAT(F, 16, 2, C, heads=2),
    "appnp": Hops,
}


def packed(name: str, **config: Any) -> Any:
    torch.manual_seed(0)
    qmodel = qlr.quantize(MODELS[name](), **(config or {"bits": 4})).eval()
    with torch.no_grad():
        qmodel(*EXAMPLE)
    return qlr.convert(qmodel)


def program_of(model: nn.Module) -> torch.export.ExportedProgram:
    example = GraphInputs(EXAMPLE)
    return traced(model, example.larger(), example.dynamic_shapes)


def operations(graph: fx.Graph) -> Counter[str]:
    return Counter(str(node.target).removesuffix(".default") for node in graph.nodes)


# Steps that kernels take over #####################################################################


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("preset", ["int4", "int2-bt*"])
def test_fused_programs_give_the_same_bits(name: str, preset: str) -> None:
    model = packed(name, preset=preset)
    run = program_of(model).module()
    with torch.no_grad():
        for inputs in OTHERS:
            assert torch.equal(run(*inputs), model(*inputs))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("gcn", {"aten.relu": 0, "aten.add.Tensor": 0, "qlr.quantize_pack": 0}),
        (
            "gin",
            {"aten.relu": 0, "aten.add.Tensor": 2, "qlr.quantize_pack": 1},
        ),  # of eps; read twice
        ("sage", {"qlr.quantize_pack": 2}),  # both read the same sum
        ("gat", {"aten.relu": 0, "qlr.quantize_pack": 2}),  # logits read what is packed
    ],
)
def test_kernels_do_what_follows(name: str, left: dict[str, int]) -> None:
    found = operations(program_of(packed(name)).graph)
    assert {op: found[op] for op in left} == left


def _linear(x: Tensor, w: Tensor, one: Tensor) -> Tensor:
    return torch.ops.qlr.packed_linear(x, 4, 8, one, one, w, 8, one, one)


class Reads(nn.Module):
    """A product of codes, and something done with it."""

    def __init__(self, then: Any) -> None:
        super().__init__()
        self.then = then
        self.register_buffer("weight", torch.randint(0, 255, (4, 16), dtype=torch.uint8))
        self.register_buffer("one", torch.tensor(1.0))
        self.register_buffer("columns", torch.rand(1, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, codes: Tensor, addend: Tensor) -> Any:
        return self.then(_linear(codes, self.weight, self.one), self, addend)


def _pack(x: Tensor, one: Tensor) -> Tensor:
    out: Tensor = torch.ops.qlr.quantize_pack(x, one, one, 8)
    return out


PACKED_LINEAR = {
    "bias, relu, codes": (lambda y, m, a: _pack((y + m.bias).relu(), m.one), 1),
    "two readers": (lambda y, m, a: ((y + m.bias).relu(), y.sum()), 4),
    "relu before bias": (lambda y, m, a: y.relu() + m.bias, 2),
    "a bias and another": (lambda y, m, a: y + m.bias + m.bias, 2),
    "no bias but an input": (lambda y, m, a: y + a[0], 3),
    "a bias that is computed": (lambda y, m, a: y + m.bias.view(1, 4), 3),
    "an alpha": (lambda y, m, a: torch.add(y, m.bias, alpha=2), 2),
    "twice itself": (lambda y, m, a: y + y, 2),
    "a scale per column": (
        lambda y, m, a: torch.ops.qlr.quantize_pack(y, m.columns, m.columns, 8),
        2,
    ),
    "there and back": (lambda y, m, a: (y.view(-1, 2, 2).view(-1, 4) + m.bias).relu(), 1),
    "only there": (lambda y, m, a: y.view(-1, 2).relu(), 3),
    "codes read as numbers": (lambda y, m, a: _pack(y, m.one).float().relu(), 3),
}


@pytest.mark.parametrize("name", PACKED_LINEAR)
def test_only_what_a_kernel_can_do_is_fused(name: str) -> None:
    then, num_left = PACKED_LINEAR[name]
    module = Reads(then)
    inputs = torch.randint(0, 255, (3, 16), dtype=torch.uint8), torch.randn(3, 4)
    rows = {0: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=(rows, rows))
    fused = functional_module(program)
    fuse_steps(fused)
    with torch.no_grad():
        expected, out = module(*inputs), fused(*inputs)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
    calls = [n for n in fused.graph.nodes if n.op == "call_function" and "sym_size" not in n.name]
    calls = [n for n in calls if "assert" not in str(n.target) and "ge" not in n.name]
    assert len(calls) == num_left, [str(n.target) for n in calls]


# Terms that a caller keeps ########################################################################


@pytest.mark.parametrize(
    ("name", "num_terms"), [("gcn", 4), ("gcn_norm", 4), ("gin", 2), ("sage", 2), ("appnp", 4)]
)
def test_what_is_computed_of_edges_is_kept(name: str, num_terms: int) -> None:
    """Offsets, sources, and codes of weights with their scales, for all layers."""
    model = packed(name)
    parts = parts_of(program_of(model).module(check_guards=False), {1})
    assert len(parts.shapes) == num_terms
    done = operations(parts.rest.program.graph)  # type: ignore[union-attr, arg-type]
    assert not {"qlr.csr", "qlr.quantize_edges", "aten.rsqrt", "aten.nonzero"} & set(done)
    with torch.no_grad():
        for x, edge_index in OTHERS:
            kept = parts.terms(torch.full_like(x, torch.nan), edge_index)  # reads sizes of it only
            assert torch.equal(parts.rest(x, edge_index, *kept), model(x, edge_index))
            again = torch.randn_like(x)
            # What it is handed is enough: of the edges themselves it reads nothing.
            other = torch.zeros_like(edge_index)
            assert torch.equal(parts.rest(again, other, *kept), model(again, edge_index))


def test_constants_are_no_terms() -> None:
    """Of a GAT the weights of its logits are read back from codes: that depends on no graph."""
    parts = parts_of(program_of(packed("gat")).module(check_guards=False), {1})
    first = operations(parts.terms.graph)  # type: ignore[arg-type]
    assert "qlr.csr" in first and "qlr.dequantize_packed" not in first


def test_weights_of_edges_may_change_while_edges_stay() -> None:
    torch.manual_seed(0)
    model = GCNConv(F, C, normalize=False)
    x, edge_index = EXAMPLE
    weight = torch.rand(edge_index.size(1))
    qmodel = qlr.quantize(model, bits=4).eval()
    with torch.no_grad():
        qmodel(x, edge_index, weight)
    layer = qlr.convert(qmodel)
    example = GraphInputs((x, edge_index, weight))
    program = traced(layer, example.larger(), example.dynamic_shapes)
    module = program.module(check_guards=False)
    with torch.no_grad():
        for fixed in ({1}, {1, 2}):
            parts = parts_of(module, fixed)
            kept = parts.terms(x, edge_index, weight)
            given = (x, edge_index, weight if 2 in fixed else 2 * weight)
            assert torch.equal(parts.rest(*given, *kept), layer(*given))
            codes = "qlr.quantize_edges" in operations(parts.rest.program.graph)  # type: ignore
            assert codes == (2 not in fixed)


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    model = packed("gcn")
    with pytest.raises(InputError, match=r"fixed_inputs=\[7\]: expected positions .* \[0, 1\]"):
        qlr.export(model, tmp_path / "m.pt2", EXAMPLE, fixed_inputs=[7])
    with pytest.raises(InputError, match="but not all of them"):
        qlr.export(model, tmp_path / "m.pt2", EXAMPLE, fixed_inputs=[0, 1])
    with pytest.raises(InputError, match="Leave compiled=True"):
        qlr.export(model, tmp_path / "m.pt2", EXAMPLE, fixed_inputs=[1], compiled=False)
    linear = qlr.quantize(nn.Linear(F, C), bits=4).eval()
    with torch.no_grad():
        linear(EXAMPLE[0])
    example = GraphInputs(EXAMPLE)

    class Ignores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = qlr.convert(linear)

        def forward(self, x: Tensor, edge_index: Tensor) -> Any:
            return self.lin(x)

    program = traced(Ignores(), example.larger(), example.dynamic_shapes)
    with pytest.raises(InputError, match=r"nothing is computed .* edge_index is often 1"):
        parts_of(program.module(check_guards=False), {1})
    assert not list(tmp_path.iterdir())


@pytest.mark.heavy
def test_a_compiled_file_of_two_programs(tmp_path: Path) -> None:
    from torch._inductor.package import load_package

    model = packed("gcn")
    done = qlr.export(model, tmp_path / "m.pt2", EXAMPLE, fixed_inputs=[1])
    assert done.difference.largest == 0 and "in two programs" in str(done)
    terms, run = (load_package(str(tmp_path / "m.pt2"), name) for name in (TERMS, MODEL))
    x, edge_index = graph(35, 90)
    kept = terms(x, edge_index)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(run(x, edge_index, *kept), model(x, edge_index))
            x = torch.randn_like(x)
