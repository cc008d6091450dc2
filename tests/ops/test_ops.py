"""What torch asks of an op: schema, fake kernel, autograd, compile, and the choice of back end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.kernel_cases import ISAS, problem
from tests.helpers.op_samples import samples
from torch_geometric_qlr.errors import BackendError
from torch_geometric_qlr.ops import backend_info, kernels, use_backend
from torch_geometric_qlr.ops.cpu.backend import BACKEND
from torch_geometric_qlr.ops.schemas import NAMES

qlr = torch.ops.qlr
ROOT = Path(__file__).resolve().parents[2]


# torch hides this warning of its own tracing, which it cannot where warnings are errors.
@pytest.mark.filterwarnings("default:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    for arguments in samples()[name]:
        torch.library.opcheck(getattr(qlr, name).default, arguments)


def test_every_op_goes_through_export():
    class Layer(torch.nn.Module):
        def forward(self, x, rowptr, col, scale, zero):
            packed = qlr.quantize_pack(x, scale, zero, 4)
            return qlr.packed_spmm(rowptr, col, packed, x.size(1), 4, scale, zero).relu()

    case = problem(2, cols=40)
    args = (torch.randn(12, 40), case.rowptr, case.col, torch.tensor(0.5), torch.tensor(7.0))
    exported = torch.export.export(Layer(), args)
    assert torch.equal(exported.module()(*args), Layer()(*args))
    calls = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert "qlr.packed_spmm.default" in calls


def test_compiled_training_step_has_no_graph_break():
    def step(x, scale):
        y, _ = qlr.fake_quantize(x, scale, torch.tensor(2.0), 4)
        return y.square().sum()

    x = torch.randn(6, 7)
    grads = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        scale = torch.tensor(0.3, requires_grad=True)
        function(x, scale).backward()
        grads.append(scale.grad)
    torch.testing.assert_close(*grads)


def test_backend_by_environment(monkeypatch):
    monkeypatch.setenv("QLR_BACKEND", "reference")
    assert backend_info()["selected"] == "reference"
    monkeypatch.setenv("QLR_BACKEND", "gpu")
    codes = torch.zeros(1, 1, dtype=torch.uint8)
    with pytest.raises(BackendError, match="unknown"):
        qlr.pack(codes, 2)
    with pytest.raises(RuntimeError, match="unknown"):
        qlr.pack(codes, 2)


CAPPED = """
from torch_geometric_qlr.ops import backend_info
print(backend_info()["available"])
"""


@pytest.mark.cpu
@pytest.mark.skipif(not ISAS, reason="the C++ kernels are not built here")
def test_instruction_set_by_environment(monkeypatch):
    environment = {**os.environ, "QLR_CPU": "portable", "QLR_BACKEND": ""}
    command = [sys.executable, "-c", CAPPED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "['reference', 'portable']"
    monkeypatch.setenv("QLR_CPU", "sse9")
    every = "portable, avx2, avx_vnni, avx512, amx, neon"
    with pytest.raises(BackendError, match=f"QLR_CPU='sse9' is unknown, choose from {every}"):
        BACKEND.register([])


def test_unknown_backend():
    with pytest.raises(BackendError, match="choose from"), use_backend("sse9"):
        pass


@pytest.mark.cpu
@pytest.mark.skipif(not ISAS, reason="the C++ kernels are not built here")
def test_backends_nest():
    with use_backend("reference"):
        with use_backend("portable"):
            assert backend_info()["selected"] == "portable"
        assert backend_info()["selected"] == "reference"


WITHOUT_LIBRARY = """
import warnings

import torch

from torch_geometric_qlr.errors import BackendError, InputError
from torch_geometric_qlr.ops import backend_info, use_backend

qlr, codes = torch.ops.qlr, torch.tensor([[1, 2, 3]], dtype=torch.uint8)


def packed_sum(scale):
    return qlr.dequantize_packed(packed, 3, 2, scale, torch.zeros(()))


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    packed = qlr.pack(codes, 2)
assert ["was not built" in str(warning.message) for warning in said] == [True]
warnings.simplefilter("error")
assert torch.equal(qlr.unpack(packed, 3, 2), codes)
assert "was not built" in backend_info()["reason"]
for wrong, error in (
    (lambda: qlr.unpack(packed, 300, 2), InputError),
    (lambda: qlr.index_select(packed, torch.tensor([7])), InputError),
    (lambda: use_backend("cpu").__enter__(), BackendError),
    (lambda: torch.func.grad(lambda x: packed_sum(x).sum())(torch.ones(())), InputError),
):
    try:
        wrong()
    except error as refusal:
        print(refusal)
    else:
        raise AssertionError(error)
"""


def test_without_a_library_the_reference_answers_and_says_so_once(tmp_path):
    package = tmp_path / "torch_geometric_qlr"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(ROOT / package.name / "errors.py", package)
    shutil.copytree(ROOT / package.name / "ops", package / "ops")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBRARY],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for words in ("uint8 of shape", "out of range", "Reinstall", "has no gradient"):
        assert words in result.stdout


@pytest.mark.cpu
@pytest.mark.skipif(not ISAS, reason="the C++ kernels are not built here")
def test_a_fall_back_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_TOLD", set())
    case = problem(0, cols=20, axis="row")
    with pytest.warns(UserWarning, match=r"packed_extremum has no kernel for source rows with a r"):
        expected = qlr.packed_extremum(case.rowptr, case.col, *case.packed)
    columns = problem(0, cols=20, axis="column")
    weight = (*columns.packed[:1], *columns.packed[2:])
    with pytest.warns(UserWarning, match=r"packed_linear has no kernel for an input or a weight"):
        qlr.packed_linear(*columns.packed, *weight)
    # Neither again, nor where the reference is what was asked for or meant.
    assert torch.equal(qlr.packed_extremum(case.rowptr, case.col, *case.packed), expected)
    monkeypatch.setattr(kernels, "_TOLD", set())
    with use_backend("reference"):
        assert torch.equal(qlr.packed_extremum(case.rowptr, case.col, *case.packed), expected)
    qlr.fake_quantize(torch.ones(2, 2).double(), torch.tensor(1.0), torch.tensor(0.0), 4)
