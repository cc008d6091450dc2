"""What an addition takes: new files in a copy of the package, and no word in those it has."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.kernel_cases import ISAS
from tests.helpers.package_copy import LIBRARY, PACKAGE, ROOT, PackageCopy

pytestmark = pytest.mark.cpu

BACKEND = '''
"""A back end with kernels of its own for the six ops that carry the others."""

import os
from collections import Counter

import torch

from torch_geometric_qlr.ops import reference
from torch_geometric_qlr.ops.backend import Backend, NoKernel

CALLS = Counter()


def quantize_pack(a):
    return reference.quantize_pack(a.x, a.quantizer)


def unpack(a):
    return reference.unpack(a.packed, a.num_cols, a.bits)


def values_of(matrix):
    codes = reference.unpack(matrix.data, matrix.num_cols, matrix.bits).double()
    return (codes - matrix.zero_point.double()) * matrix.scale.double()


def written(y, a, graph=None):
    y = reference.finish(y, a.epilogue, graph)
    return y if a.output is None else reference.quantize_pack(y, a.output)


def dense(graph, weight):
    """The adjacency, which no serious back end would make."""
    matrix = weight.new_zeros(graph.num_rows, graph.col.numel(), dtype=torch.float64)
    target = torch.arange(graph.num_rows).repeat_interleave(graph.rowptr.diff())
    matrix[target, torch.arange(graph.col.numel())] = weight.double()
    return matrix


def packed_spmm(a):
    messages = values_of(a.matrix)
    if a.source_weight is not None:
        messages = messages * a.source_weight.double().view(-1, 1)
    weight = torch.ones(a.col.numel()) if a.edge_weight is None else a.edge_weight.view(-1)
    return written(dense(a.graph, weight) @ messages[a.col.long()], a, a.graph)


def packed_attention(a):
    heads = a.alpha.size(1)
    messages = values_of(a.matrix)[a.col.long()].view(a.col.numel(), heads, -1)
    sums = [dense(a.graph, a.alpha[:, h]) @ messages[:, h] for h in range(heads)]
    return written(torch.cat(sums, dim=1), a)


def packed_extremum(a):
    messages, rows = values_of(a.matrix).float()[a.col.long()], []
    for part in messages.split(a.rowptr.diff().tolist()):
        ends = part.amax(0) if a.largest and len(part) else part.amin(0) if len(part) else None
        rows.append(torch.zeros(a.num_cols) if ends is None else ends)
    return torch.stack(rows)


def packed_linear(a):
    if os.environ.get("TOY") == "no product":
        raise NoKernel("products on Sundays")
    return written(values_of(a.matrix) @ values_of(a.factor_matrix).t(), a)


def counted(kernel):
    def run(a):
        CALLS[kernel.__name__] += 1
        return kernel(a)

    return run


SIX = (quantize_pack, unpack, packed_spmm, packed_attention, packed_extremum, packed_linear)


class Toy(Backend):
    name = "toy"
    kernels = {kernel.__name__: counted(kernel) for kernel in SIX}

    def missing(self, name):
        return "the box is empty. Buy a toy." if os.environ.get("TOY") == "missing" else ""

    def answers_on(self, device_type):
        return device_type == ("cuda" if os.environ.get("TOY") == "elsewhere" else "cpu")

    def is_default_on(self, device_type):
        return os.environ.get("TOY") == "default" and self.answers_on(device_type)


BACKEND = Toy()
'''

RUN_MODELS = """
import torch
from torch_geometric.nn import APPNP, GAT, GCN, GraphSAGE

import torch_geometric_qlr as qlr
from torch_geometric_qlr.ops import backend_info, use_backend
from torch_geometric_qlr.ops.toy.backend import CALLS, SIX

torch.manual_seed(0)
x, edge_index = torch.rand(12, 16), torch.randint(12, (2, 50))


class Predict(torch.nn.Module):
    def __init__(self, propagation):
        super().__init__()
        self.lin, self.propagation = torch.nn.Linear(16, 4), propagation

    def forward(self, x, edge_index):
        return self.propagation(self.lin(x), edge_index)


models = {
    "GCN": GCN(16, 8, 2, 4),
    "GAT": GAT(16, 8, 2, 4, heads=2),
    "SAGE": GraphSAGE(16, 8, 2, 4, aggr="max"),
    "APPNP": Predict(APPNP(K=3, alpha=0.1)),
    "SMP": Predict(qlr.nn.SMP(K=3)),
}
assert "toy" in backend_info()["available"]
called = set()
for name, model in models.items():
    quantized = qlr.quantize(model, bits=8)
    quantized(x, edge_index)
    quantized.eval()
    with torch.no_grad():
        truth = qlr.convert(quantized, backend="reference")(x, edge_index)
        CALLS.clear()
        found = qlr.convert(quantized, backend="toy")(x, edge_index)
        counts = dict(CALLS)
        with use_backend("toy"):
            in_training = quantized(x, edge_index)
    print(name, counts)
    assert counts["quantize_pack"] and counts["packed_linear"]
    assert CALLS.total() > sum(counts.values())
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(in_training, truth, rtol=1e-5, atol=1e-5)
    called |= set(counts)
with use_backend("toy"):
    packed = torch.ops.qlr.quantize_pack(x, torch.tensor(0.1), torch.tensor(0.0), 4)
    torch.ops.qlr.dequantize_packed(packed, 16, 4, torch.tensor(0.1), torch.tensor(0.0))
called |= set(CALLS)
assert called == {kernel.__name__ for kernel in SIX}, called
"""

CHOOSE = """
import os, sys, warnings

import torch

from torch_geometric_qlr.errors import BackendError
from torch_geometric_qlr.ops import backend_info, use_backend
from torch_geometric_qlr.ops.toy.backend import CALLS

qlr = torch.ops.qlr
x, one, zero = torch.rand(4, 8), torch.tensor(0.1), torch.tensor(0.0)


def refused(words):
    try:
        with use_backend("toy"):
            qlr.quantize_pack(x, one, zero, 4)
    except BackendError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)


def product():
    packed = qlr.quantize_pack(x, one, zero, 4)
    return qlr.packed_linear(packed, 8, 4, one, zero, packed, 4, one, zero)


warnings.simplefilter("ignore")
with use_backend("reference"):
    truth = product()
for case in sys.argv[1:]:
    os.environ["TOY"] = case
    info = backend_info()
    CALLS.clear()
    if case == "missing":
        assert info["unavailable"]["toy"] == "the box is empty. Buy a toy."
        assert "toy" not in info["available"]
        refused("backend 'toy': the box is empty")
    elif case == "elsewhere":
        refused("back end 'toy' does not compute on cpu")
    elif case == "default":
        assert info["selected"] == "toy"
        assert torch.equal(product(), truth)
        assert CALLS == {"quantize_pack": 1, "packed_linear": 1}
    else:
        with warnings.catch_warnings(record=True) as said, use_backend("toy"):
            warnings.simplefilter("always")
            assert torch.equal(product(), truth) and torch.equal(product(), truth)
        assert ["products on Sundays" in str(warning.message) for warning in said] == [True]
print("as expected")
"""

SCHEMA = "packed_row_sums(Tensor packed, SymInt num_cols, int bits) -> Tensor"

DEFINITION = '''
"""The sum of the codes of each row."""

import torch

from torch_geometric_qlr.ops.definition import Definition


class PackedRowSums(Definition, op="packed_row_sums"):
    loses_gradient = False

    def check(self, check, a):
        check.packed_rows(a.packed, a.num_cols, a.bits)

    def fake(self, a):
        return a.packed.new_empty(a.packed.size(0), dtype=torch.int64)

    def compute(self, a, call):
        return call("unpack", a.packed, a.num_cols, a.bits).sum(1)
'''

KERNEL = """
// The sum of the codes of each row.
#include "ops.h"

namespace qlr {
namespace {

void packed_row_sums(Call& call) {
  PackedArgument packed;
  packed.data = call.in.tensor();
  packed.cols = call.in.integer();
  packed.bits = call.in.integer();
  check_packed(packed);

  const int64_t rows = packed.rows(), cols = packed.cols;
  const QlrPacked source{call.prepared.bytes(packed.data), rows, cols,
                         static_cast<int32_t>(packed.bits), QLR_PER_TENSOR, nullptr, nullptr};
  uint8_t* const codes = call.prepared.room<uint8_t>(rows * cols + 1);
  answered(qlr_unpack(&source, codes, call.threads, call.isa));
  call.results[0] = empty(1, &rows, torch().int64);
  int64_t* const sums = static_cast<int64_t*>(address(call.results[0].get()));
  for (int64_t i = 0; i < rows; ++i) {
    sums[i] = 0;
    for (int64_t f = 0; f < cols; ++f) sums[i] += codes[i * cols + f];
  }
}

const Kernel<packed_row_sums> kPackedRowSums("packed_row_sums", Gradient::kNone);

}  // namespace
}  // namespace qlr
"""

CALL_OP = """
import sys, warnings

import torch

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.ops import backend_info, use_backend
from torch_geometric_qlr.ops.kernels import definition_of

qlr, by_kernel, library = torch.ops.qlr, sys.argv[1] == "kernel", sys.argv[1] != "reference"
warnings.simplefilter("ignore")
assert (backend_info()["library"] is not None) == library, backend_info()
codes = torch.randint(16, (5, 40), dtype=torch.uint8)
packed = qlr.pack(codes, 4)
sums = codes.sum(1)
for backend in ("auto", *backend_info()["available"]):
    with use_backend(backend):
        assert torch.equal(qlr.packed_row_sums(packed, 40, 4), sums)
torch.library.opcheck(qlr.packed_row_sums.default, (packed, 40, 4))
try:
    qlr.packed_row_sums(packed, 4000, 4)
except InputError as error:
    assert "uint8 of shape" in str(error)
else:
    raise AssertionError

type(definition_of("packed_row_sums")).compute = None
if by_kernel:
    assert torch.equal(qlr.packed_row_sums(packed, 40, 4), sums)
else:
    try:
        qlr.packed_row_sums(packed, 40, 4)
    except TypeError:
        pass
    else:
        raise AssertionError
print("as expected")
"""


@pytest.fixture
def copy(tmp_path: Path) -> PackageCopy:
    return PackageCopy(tmp_path)


def add_backend(copy: PackageCopy) -> None:
    copy.add("ops/toy/__init__.py", "")
    copy.add("ops/toy/backend.py", BACKEND)


def test_a_back_end_is_one_folder(copy: PackageCopy) -> None:
    add_backend(copy)
    said = copy.run("-c", RUN_MODELS)
    assert len(said.splitlines()) == 5
    copy.assert_nothing_else_differs()


@pytest.mark.heavy
@pytest.mark.skipif(not ISAS, reason="the C++ kernels are not built here")
def test_a_back_end_beside_the_kernels(copy: PackageCopy) -> None:
    shutil.copy(ROOT / PACKAGE / LIBRARY, copy.package)
    add_backend(copy)
    copy.run("-c", RUN_MODELS)


# A process asks once who computes by default.
@pytest.mark.parametrize("cases", [("missing", "elsewhere", "no product"), ("default",)], ids=str)
def test_what_a_back_end_says_decides(copy: PackageCopy, cases: tuple[str, ...]) -> None:
    add_backend(copy)
    assert "as expected" in copy.run("-c", CHOOSE, *cases)


@pytest.mark.heavy
def test_the_command_lists_a_back_end_that_is_missing(copy: PackageCopy) -> None:
    add_backend(copy)
    command = f"runpy.run_module({PACKAGE!r}, run_name='__main__')"
    program = f"import os, runpy\n{command}\nprint('then')\ndel os.environ['TOY']\n{command}"
    missing, there = copy.run("-c", program, TOY="missing").split("then\n")
    assert "none: the box is empty" in missing
    assert "toy" in there and "the box is empty" not in there


def add_op(copy: PackageCopy) -> None:
    copy.add_line("ops/schemas.inc", SCHEMA, after="observed_quantize_backward(")
    copy.add("ops/definitions/row_sums.py", DEFINITION)


@pytest.mark.parametrize("built", (pytest.param(False, marks=pytest.mark.heavy), True))
def test_an_op_is_a_line_and_a_definition(copy: PackageCopy, built: bool) -> None:
    if built and not ISAS:
        pytest.skip("the C++ kernels are not built here")
    if built:
        shutil.copy(ROOT / PACKAGE / LIBRARY, copy.package)
    add_op(copy)
    assert "as expected" in copy.run("-c", CALL_OP, "library" if built else "reference")
    copy.assert_nothing_else_differs()


@pytest.mark.heavy
def test_an_op_with_a_part_missing_is_named(copy: PackageCopy) -> None:
    copy.add_line("ops/schemas.inc", SCHEMA, after="observed_quantize_backward(")
    program = f"try:\n import {PACKAGE}.ops\nexcept TypeError as error: print(error)"
    assert "missing for packed_row_sums" in copy.run("-c", program)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_kernel_is_one_file(copy: PackageCopy) -> None:
    add_op(copy)
    copy.add("csrc/torch/ops_row_sums.cpp", KERNEL)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy.home)
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(build, cwd=copy.home, capture_output=True, text=True)
    assert (copy.package / LIBRARY).exists(), done.stdout[-4000:] + done.stderr[-4000:]
    assert "as expected" in copy.run("-c", CALL_OP, "kernel")
    copy.assert_nothing_else_differs()
