"""Models in files that other programs run: what is written, and what is refused before that."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCN, Linear, global_mean_pool

import torch_geometric_qlr as qlr
from torch_geometric_qlr.errors import (
    ConfigError,
    ExportError,
    InputError,
    LazyModuleError,
    NothingToQuantizeError,
    UnsupportedLayerError,
)
from torch_geometric_qlr.io import exporting
from torch_geometric_qlr.io.answers import FEW, TOLERANCE, Difference, compare
from torch_geometric_qlr.io.compiled_program import traced
from torch_geometric_qlr.io.example_inputs import GraphInputs

ROOT = Path(__file__).resolve().parents[2]
F, C = 8, 4


def graph(nodes: int, edges: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(nodes)
    return torch.randn(nodes, F, generator=rng), torch.randint(0, nodes, (2, edges), generator=rng)


EXAMPLE = graph(20, 60)


def quantized(model: nn.Module, *inputs: Any, **config: Any) -> Any:
    qmodel = qlr.quantize(model, **(config or {"bits": 4})).eval()
    with torch.no_grad():
        qmodel(*(inputs or EXAMPLE))
    return qmodel


def a_gcn(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return GCN(F, 16, 2, C, **options)


# Which dimensions may change ######################################################################


def test_sizes_are_found_in_the_examples() -> None:
    x, edge_index = graph(6, 9)
    example = GraphInputs((x, edge_index, torch.rand(9), torch.arange(6) // 2, torch.rand(5), None))
    nodes = "6 nodes (dimension 0 of input 0, dimension 0 of input 3)"
    assert example.words == f"{nodes} and 9 edges (dimension 1 of input 1, dimension 0 of input 2)"
    dynamic = torch.export.Dim.DYNAMIC
    by_row = {0: dynamic}
    assert example.dynamic_shapes == (by_row, {1: dynamic}, by_row, by_row, {}, None)


def test_as_many_edges_as_nodes_are_told_apart_by_type() -> None:
    x, edge_index = graph(7, 7)
    example = GraphInputs((x, edge_index, torch.rand(7), torch.zeros(7, dtype=torch.long)))
    assert [place.name for place in example.places] == ["nodes", "edges", "edges", "nodes"]


@pytest.mark.parametrize(("nodes", "edges"), [(1, 1), (5, 5), (4, 8), (13, 2)])
def test_inputs_of_other_sizes_are_graphs(nodes: int, edges: int) -> None:
    x, edge_index = graph(nodes, edges)
    batch = torch.arange(nodes) // 3
    example = GraphInputs((x, edge_index, batch))
    larger = example.larger()
    sizes = [larger[0].size(0), larger[1].size(1)]
    assert len({*sizes, 2, F}) == 4  # no two are the same by chance
    assert sizes[0] > nodes and sizes[1] > edges
    for x2, edges2, batch2 in (larger, example.smaller()):
        assert edges2.min() >= 0 and edges2.max() < x2.size(0) == batch2.numel()
        assert torch.equal(batch2, batch2.sort()[0])
    assert torch.equal(x, graph(nodes, edges)[0])  # what was given stays


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((), "no tensor with a row"),
        ((EXAMPLE[1],), "no tensor with a row"),
        ((torch.rand(0, F), EXAMPLE[1]), "no nodes"),
        ((EXAMPLE[0], EXAMPLE[1][:, :0]), "no edges"),
        (EXAMPLE[0], "as a tuple"),
        ((EXAMPLE[0].to_sparse(), EXAMPLE[1]), r"example_inputs\[0\] is a Tensor|dense"),
        ((EXAMPLE[0], {"a": EXAMPLE[1]}), r"example_inputs\[1\] is a dict"),
    ],
)
def test_inputs_are_checked_first(inputs: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        qlr.export(quantized(a_gcn()), tmp_path / "m.pt2", inputs)
    assert not list(tmp_path.iterdir())


# What is refused ##################################################################################


def test_what_is_refused_is_said_in_words(tmp_path: Path) -> None:
    model = quantized(a_gcn())
    packed = qlr.convert(model)
    lazy: Any = nn.Sequential(Linear(-1, 3), qlr.quantize(nn.Linear(3, 2), bits=4)).eval()
    unseen = qlr.quantize(a_gcn(), bits=4).eval()
    cases: list[tuple[Any, str, type[Exception], str]] = [
        (model, "m.bin", InputError, "m.bin: its ending says what to write"),
        (model, "none/m.pt2", InputError, "there is no folder"),
        (qlr.quantize(a_gcn(), bits=4), "m.pt2", InputError, "in training mode"),
        (a_gcn().eval(), "m.pt2", NothingToQuantizeError, "no quantized layer"),
        (packed, "m.onnx", UnsupportedLayerError, "convs.0 is converted"),
        (lazy, "m.pt2", LazyModuleError, "not initialized"),
        (unseen, "m.onnx", ConfigError, "has never seen data"),
        (model.state_dict(), "m.pt2", UnsupportedLayerError, "Expected a torch.nn.Module"),
    ]
    for wrong, name, error, words in cases:
        with pytest.raises(error, match=words):
            qlr.export(wrong, tmp_path / name, EXAMPLE)
    with pytest.raises(InputError, match="is no path"):
        qlr.export(model, EXAMPLE, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pass other_inputs"):
        qlr.export(model, tmp_path / "m.pt2", EXAMPLE, dynamic_shapes=({}, {}))
    assert not list(tmp_path.iterdir())


def test_compiled_code_needs_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"library": None, "reason": "it was not built"}
    monkeypatch.setattr(exporting, "backend_info", lambda: facts)
    with pytest.raises(ExportError, match=r"it was not built\. Build them, or .* compiled=False"):
        qlr.export(qlr.convert(quantized(a_gcn())), tmp_path / "m.pt2", EXAMPLE)


class Counts(nn.Module):
    """Reads a number from a tensor, which no traced program can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(F, 2)

    def forward(self, x: Tensor, batch: Tensor, size: int | None = None) -> Tensor:
        return global_mean_pool(self.lin(x), batch, size)


def test_a_number_read_from_a_tensor_is_passed_instead(tmp_path: Path) -> None:
    x, batch = EXAMPLE[0], torch.arange(20) // 10
    model = qlr.convert(quantized(Counts(), x, batch))
    with pytest.raises(ExportError, match=r"cannot trace .*pass it as an argument"):
        qlr.export(model, tmp_path / "m.pt2", (x, batch), compiled=False)
    assert qlr.export(model, tmp_path / "m.pt2", (x, batch, 2), compiled=False).compared == 3


def test_a_layer_that_caches_its_graph_takes_one_only(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"not inputs of shape .*cached=True"):
        qlr.export(quantized(a_gcn(cached=True)), tmp_path / "m.pt2", EXAMPLE, compiled=False)


# What is compared #################################################################################


def test_a_file_that_computes_something_else_is_never_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(b"before")
    write = exporting.saved_program

    def wrong(program: Any, path: str) -> Any:
        run = write(program, path)
        # As if the number of nodes of the example were in it.
        return lambda x, edges: run(x, edges) + 1e-3 * (x.size(0) != 20)

    monkeypatch.setattr(exporting, "saved_program", wrong)
    with pytest.raises(ExportError, match=r"shape \(23, 8\), \(2, 65\) 100 % of the values"):
        qlr.export(qlr.convert(quantized(a_gcn())), path, EXAMPLE, compiled=False)
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_differences_are_counted() -> None:
    wanted = torch.arange(1.0, 1001.0)
    off = wanted.clone()
    off[:5] += 3.0
    assert compare(lambda: off, (), [wanted]) == Difference(0.005, pytest.approx(0.003))
    assert compare(lambda: wanted.clone(), (), [wanted]) == (0.0, 0.0)
    close = compare(lambda: wanted + 5e-4, (), [wanted])
    assert close.beyond == 0 and 0 < close.largest < TOLERANCE
    not_a_number = torch.tensor([float("nan"), torch.inf, 1.0])
    assert compare(lambda: not_a_number.clone(), (), [not_a_number]) == (0.0, 0.0)
    with pytest.raises(ExportError, match="by inf at most"):
        compare(lambda: not_a_number, (), [torch.ones(3)])
    off[: int(1000 * FEW) + 1] += 3.0
    with pytest.raises(ExportError, match=r"1\.1 % of the values of answer 0"):
        compare(lambda: off, (), [wanted])
    with pytest.raises(ExportError, match=r"answers with shapes \[\(3,\)\]"):
        compare(lambda: off[:3], (), [wanted])
    with pytest.raises(ExportError, match="fails: division by zero"):
        compare(lambda: 1 / 0, (), [wanted])


# What is written ##################################################################################

WITHOUT_PACKAGE = """
import ctypes, sys
for name in ("torch_geometric", "torch_geometric_qlr", "brevitas"):
    sys.modules[name] = None  # cannot be imported
import torch
assert ctypes.CDLL(sys.argv[1]).qlr_register_ops(None) == 0
run = torch.export.load(sys.argv[2]).module()
for *inputs, expected in torch.load(sys.argv[3]):
    assert torch.equal(run(*inputs), expected)
print("the same")
"""

needs_kernels = pytest.mark.skipif(
    qlr.ops.backend_info()["library"] is None, reason="the C++ kernels are not built here"
)


@needs_kernels
def test_a_traced_file_runs_without_the_package(tmp_path: Path) -> None:
    packed = qlr.convert(quantized(a_gcn()))
    done = qlr.export(packed, tmp_path / "m.pt2", EXAMPLE, compiled=False)
    assert done.difference.largest == 0 and "in every bit, compared on 3 inputs" in str(done)
    graphs = [graph(20, 60), graph(35, 3), graph(2, 90)]
    torch.save([(*one, packed(*one)) for one in graphs], tmp_path / "answers.pt")
    library = qlr.ops.backend_info()["library"]
    command = [sys.executable, "-c", WITHOUT_PACKAGE, library, "m.pt2", "answers.pt"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout == "the same\n", ran.stderr


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    """Ranges made of evaluation batches go on growing after an export."""
    model = quantized(a_gcn())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = qlr.export(model, tmp_path / "m.pt2", (10 * EXAMPLE[0], EXAMPLE[1]), compiled=False)
    assert done.difference.beyond == 0
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.convs[0].quantizers["source_x"][0].has_range
    assert not model.convs[0].quantizers["source_x"][0].is_fixed


def test_shapes_and_inputs_of_ones_own(tmp_path: Path) -> None:
    sizes = {0: torch.export.Dim("nodes", min=2)}, {1: torch.export.Dim("edges", min=2)}
    others = [graph(9, 30), graph(40, 11)]
    done = qlr.export(
        *(qlr.convert(quantized(a_gcn())), tmp_path / "m.pt2", EXAMPLE),
        compiled=False,
        dynamic_shapes=sizes,
        other_inputs=others,
    )
    assert done.compared == 3 and "Dim('nodes'" in done.dynamic


@needs_kernels
@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_compiled_files_run_in_python_without_the_package_and_in_cpp(tmp_path: Path) -> None:
    packed = qlr.convert(quantized(a_gcn()))
    done = qlr.export(packed, tmp_path / "m.pt2", EXAMPLE)
    assert done.difference.largest == 0
    other = graph(35, 90)
    torch.save([*other, packed(*other)], tmp_path / "inputs.pt")
    library = qlr.ops.backend_info()["library"]
    files = [library, str(tmp_path / "m.pt2"), str(tmp_path / "inputs.pt")]
    said = "shape [35, 4], equal to the model's: "
    python = [sys.executable, str(ROOT / "examples" / "run_exported.py"), *files]
    ran = subprocess.run(python, capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout == f"{said}True\n", ran.stderr

    torch_folder = Path(torch.__file__).parent
    program = str(tmp_path / "run_model")
    source = str(ROOT / "examples" / "cpp" / "run_model.cpp")
    lib = torch_folder / "lib"
    build = ["g++", "-std=c++20", f"-I{torch_folder / 'include'}", source, "-o", program]
    link = [f"-L{lib}", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl", f"-Wl,-rpath,{lib}"]
    subprocess.run([*build, *link], check=True)
    ran = subprocess.run([program, *files], capture_output=True, text=True)
    assert ran.stdout == f"{said}true\n", ran.stderr


def test_what_layers_compute_of_a_graph_is_there_once() -> None:
    """Sorted edges, their normalisation and its codes: for all layers, as eager ones remember."""
    packed = qlr.convert(quantized(a_gcn()))
    example = GraphInputs(EXAMPLE)
    program = traced(packed, example.larger(), example.dynamic_shapes)
    for op in ("qlr.csr.default", "qlr.quantize_edges.default", "aten.rsqrt.default"):
        assert [str(node.target) for node in program.graph.nodes].count(op) == 1
    for one in (EXAMPLE, graph(35, 90)):
        assert torch.equal(program.module()(*one), packed(*one))
