"""Ops that torch's dispatcher calls without Python: exported, compiled, from C, in a loop."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from tests.helpers.kernel_cases import ISAS, REFUSED, problem
from tests.helpers.op_samples import samples
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.ops import reference, row_layout, use_backend
from torch_geometric_qlr.ops.cpu import companions, library
from torch_geometric_qlr.ops.schemas import NAMES

pytestmark = pytest.mark.cpu

qlr = torch.ops.qlr
built = pytest.mark.skipif(not ISAS, reason="the C++ kernels are not built here")
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class Layer(torch.nn.Module):
    """Quantize, multiply, gather: with every kind of argument."""

    def __init__(self) -> None:
        super().__init__()
        codes = torch.randint(16, (24, 40), dtype=torch.uint8)
        self.register_buffer("weight", reference.pack(codes, 4))
        self.register_buffer("scale", torch.rand(24, 1) + 0.1)
        self.register_buffer("step", torch.tensor(0.1))
        self.register_buffer("zero", torch.tensor(7.0))

    def forward(self, x: Tensor, rowptr: Tensor, col: Tensor, edge_weight: Tensor) -> Tensor:
        packed = qlr.quantize_pack(x, self.step, self.zero, 4)
        y = qlr.packed_linear(
            *(packed, x.size(1), 4, self.step, self.zero),
            *(self.weight, 4, self.scale, self.zero),
            *(None, True, self.step, self.zero, 3, True),
        )
        weighted = (rowptr, col, y, 24, 4, self.step, self.zero, edge_weight)
        return qlr.packed_spmm(*weighted, reduce="mean", addend_scale=0.5, relu=True)


def graph(nodes: int, seed: int) -> tuple[Tensor, ...]:
    case = problem(seed, targets=nodes, sources=nodes, cols=40)
    weight = torch.rand(case.col.numel(), generator=torch.Generator().manual_seed(seed))
    x = torch.randn(nodes, 40, generator=torch.Generator().manual_seed(seed))
    return x, case.rowptr, case.col, weight


def exported() -> tuple[Layer, torch.export.ExportedProgram]:
    layer = Layer()
    nodes, edges = torch.export.Dim("nodes", min=2), torch.export.Dim("edges", min=2)
    sizes = ({0: nodes}, {0: nodes + 1}, {0: edges}, {0: edges})
    with torch.no_grad():
        return layer, torch.export.export(layer, graph(9, 0), dynamic_shapes=sizes)


def test_an_exported_program_takes_graphs_of_any_size():
    layer, program = exported()
    for nodes in (9, 30, 100):
        inputs = graph(nodes, nodes)
        assert torch.equal(program.module()(*inputs), layer(*inputs))


@built
@compiler
@pytest.mark.heavy
def test_a_compiled_program_without_python_gives_the_same_bits(tmp_path):
    layer, program = exported()
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "layer.pt2")
    )
    compiled = torch._inductor.aoti_load_package(path)
    for nodes in (9, 30, 100):
        inputs = graph(nodes, nodes)
        assert torch.equal(compiled(*inputs), layer(*inputs))
    x, *rest = graph(9, 0)
    with pytest.raises(RuntimeError):
        compiled(x * float("nan"), *rest)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_an_op_that_raises_our_errors_is_no_graph_break(backend):
    x = torch.randn(6, 7)
    arguments = torch.tensor(0.3), torch.tensor(2.0), 4

    def pack(x: Tensor) -> Tensor:
        return qlr.quantize_pack(x + 1, *arguments)

    with torch.no_grad():
        compiled = torch.compile(pack, backend=backend, fullgraph=True)
        assert torch.equal(compiled(x), pack(x))
        with pytest.raises(REFUSED, match="is nan"):
            compiled(x * float("nan"))


@built
@pytest.mark.parametrize("name", NAMES)
def test_a_warm_call_never_enters_python(name, monkeypatch):
    def asked(self, status, arguments):
        raise AssertionError(f"{self.op.name} asked: {status}")

    monkeypatch.setattr(companions.Companion, "_answer", asked)
    with torch.no_grad():
        for arguments in samples()[name]:
            getattr(qlr, name)(*arguments)


@built
def test_errors_are_those_of_the_last_call():
    codes = torch.full((2, 3), 200, dtype=torch.uint8)
    with pytest.raises(InputError, match="code 200 does not fit"):
        qlr.pack(codes, 4)
    with pytest.raises(RuntimeError, match="code 200 does not fit"):
        qlr.pack.default(codes, 4)
    assert qlr.pack(codes, 8).shape == (2, 16)
    with pytest.raises(InputError, match="uint8 of shape"):
        qlr.unpack(codes, 90, 2)
    with pytest.raises(RuntimeError, match="Expected a value of type 'Tensor'"):  # torch's own
        qlr.pack("codes", 4)


def test_forward_duals_are_refused():
    case = problem(0, cols=8)
    x = torch.randn(12, 8)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(REFUSED, match="has no gradient"):
            qlr.spmm(case.rowptr, case.col, dual)
        # Which torch does not stop forward mode.
        with torch.no_grad(), pytest.raises(InputError, match="has no gradient"):
            qlr.spmm(case.rowptr, case.col, dual)
        assert qlr.spmm(case.rowptr, case.col, x).shape == (9, 8)


def test_transforms_nest():
    case = problem(0, cols=8)
    graph, x = (case.rowptr, case.col), torch.randn(12, 8)
    y = qlr.spmm(*graph, x)
    batch = torch.func.vmap(lambda x: qlr.spmm(*graph, x))(torch.stack([x, x + 1]))
    assert torch.equal(batch[0], y)

    def inner(x: Tensor, z: Tensor) -> Tensor:
        return torch.func.grad(lambda z: (qlr.spmm(*graph, x).sum() * z).sum())(z)

    # Constant for the transform, followed by the one around it.
    assert torch.equal(inner(x, torch.ones(2)), y.sum().expand(2))
    with pytest.raises(InputError, match="has no gradient"):
        torch.func.grad(lambda x: inner(x, torch.ones(2)).sum())(x)


def test_a_compiled_step_refuses_what_an_eager_one_refuses():
    case = problem(0, cols=8)

    def step(x: Tensor) -> Tensor:
        return qlr.spmm(case.rowptr, case.col, x).sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    x = torch.randn(12, 8)
    assert torch.equal(compiled(x), step(x))
    with pytest.raises(Exception, match="has no gradient"):
        compiled(x.clone().requires_grad_())


def resident() -> int:
    """In KiB."""
    gc.collect()
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def grows(calls: int, function, *arguments: object) -> int:
    """How much larger the process becomes, after it is warm."""
    for _ in range(calls // 10):
        function(*arguments)
    before = resident()
    for _ in range(calls):
        function(*arguments)
    return resident() - before


@built
@torch.no_grad()
def test_calls_do_not_leak():
    """Half a tensor a call would be 4 MiB."""
    gather = samples()["packed_spmm"][1]
    assert grows(20_000, qlr.packed_spmm, *gather) < 2048
    with torch.enable_grad():  # where each kernel asks its companion
        assert grows(10_000, qlr.packed_spmm, *gather) < 1024
    # With arguments that are converted on the way.
    rowptr, col, packed, *rest = gather
    turned = packed.t().contiguous().t()
    wide = (rowptr.int(), col.long(), turned, *rest)
    assert torch.equal(qlr.packed_spmm(*wide), qlr.packed_spmm(*gather))
    assert grows(20_000, qlr.packed_spmm, *wide) < 2048


@built
@torch.no_grad()
def test_errors_do_not_leak():
    packed, cols, bits = samples()["unpack"][0]

    def wrong() -> None:
        with pytest.raises(RuntimeError):
            qlr.unpack.default(packed, cols + 1000, bits)
        with pytest.raises(InputError):
            qlr.index_select(packed, torch.tensor([10**6]))

    assert grows(5_000, wrong) < 1024


@built
def test_a_choice_in_another_thread_does_not_reach_this_one():
    case = problem(0, axis="row")
    arguments = (torch.randn(9, 33), torch.tensor(0.3), torch.tensor(1.0), 4)
    expected = qlr.quantize_pack(*arguments)
    with use_backend("portable"):
        assert torch.equal(qlr.quantize_pack(*arguments), expected)
        with use_backend("reference"):
            assert torch.equal(qlr.quantize_pack(*arguments), expected)
    assert case.bits == 2


PROGRAM = r"""
#include <dlfcn.h>
#include <cstdint>
#include <cstdio>
#include <initializer_list>

// A program without Python: codes 1, 2, 3 are packed at 2 bits.
int main(int, char** argv) {
  void* torch = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
  void* qlr = dlopen(argv[2], RTLD_NOW);
  if (!torch || !qlr) return std::printf("%s\n", dlerror()), 1;
  auto add = reinterpret_cast<int32_t (*)(const char*)>(dlsym(qlr, "qlr_register_ops"));
  if (add(argv[1]) != 0 || add(nullptr) != 0) return std::puts("not registered"), 1;
  auto make = reinterpret_cast<int32_t (*)(void*, int64_t, const int64_t*, const int64_t*, int64_t,
                                           int32_t, int32_t, int32_t, void**)>(
      dlsym(torch, "aoti_torch_create_tensor_from_blob"));
  auto call = reinterpret_cast<int32_t (*)(const char*, const char*, uint64_t*)>(
      dlsym(torch, "aoti_torch_call_dispatcher"));
  auto data = reinterpret_cast<int32_t (*)(void*, void**)>(dlsym(torch, "aoti_torch_get_data_ptr"));
  uint8_t codes[] = {1, 2, 3};
  const int64_t sizes[] = {1, 3}, strides[] = {3, 1};
  for (const uint64_t bits : {uint64_t{2}, uint64_t{1}}) {
    void *tensor, *bytes;
    if (make(codes, 2, sizes, strides, 0, 0, 0, 0, &tensor) != 0) return 1;
    uint64_t stack[2] = {reinterpret_cast<uint64_t>(tensor), bits};
    if (call("qlr::pack", "", stack) != 0) return std::puts("refused"), bits == 2;
    data(reinterpret_cast<void*>(stack[0]), &bytes);
    for (int i = 0; i < 4; ++i) std::printf("%d ", static_cast<uint8_t*>(bytes)[i]);
  }
}
"""


@built
@compiler
def test_a_program_without_python_calls_an_op(tmp_path):
    (tmp_path / "main.cpp").write_text(PROGRAM)
    program = tmp_path / "main"
    build = ["g++", "-std=c++17", str(tmp_path / "main.cpp"), "-ldl", "-o", str(program)]
    subprocess.run(build, check=True)
    paths = str(library._torch_path()), str(library.library_path())
    result = subprocess.run(
        [str(program), *paths], capture_output=True, text=True, env={**os.environ}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.split() == ["1", "2", "3", "0", "refused"]
    assert row_layout(3, 2).unit == 16
