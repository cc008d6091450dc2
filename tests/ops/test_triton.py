"""The back end of Triton kernels: where it is there, and what they give in the interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.package_copy import ROOT, run_python
from torch_geometric_qlr.ops.triton.backend import BACKEND

HERE = Path(__file__).parent / "triton"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton: pip install triton"
)


# Triton reads the variable when it is imported, which torch does early, and it changes what torch
# compiles: hence processes of their own, and few of them, since each takes long to start.
@needs_triton
@pytest.mark.parametrize("half", (0, 1))
def test_in_the_interpreter(half: int) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "0"]
    done = subprocess.run(
        [*command, *map(str, sorted(HERE.glob("test_*.py"))[half::2])],
        env={**os.environ, "TRITON_INTERPRET": "1", "QLR_BACKEND": "", "PYTEST_ADDOPTS": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def python(program: str, **environment: str) -> str:
    return run_python("-c", program, places=[ROOT], cwd=ROOT, **environment)


def test_it_says_what_is_missing() -> None:
    program = "import sys; sys.modules['triton'] = None\n"
    program += "from torch_geometric_qlr.ops import backend_info\n"
    program += "print(backend_info()['unavailable']['triton'])"
    assert "pip install triton" in python(program)


@needs_triton
def test_it_needs_a_gpu_or_the_interpreter() -> None:
    program = "import torch\ntorch.cuda.is_available = lambda: False\n"
    program += "from torch_geometric_qlr.ops import backend_info\n"
    program += "print(backend_info()['unavailable'].get('triton', 'there'))"
    assert "TRITON_INTERPRET=1" in python(program, TRITON_INTERPRET="")
    assert "there" in python(program, TRITON_INTERPRET="1")
    late = f"import os, triton\nos.environ['TRITON_INTERPRET'] = '1'\n{program}"
    assert "before Python was started" in python(late, TRITON_INTERPRET="")


def test_it_computes_on_a_cpu_only_when_it_is_asked() -> None:
    program = "import torch, torch_geometric_qlr as q\n"
    program += "from torch_geometric_qlr.ops import backend_info\nprint(backend_info()['selected'])"
    assert "triton" not in python(program, TRITON_INTERPRET="1")
    assert BACKEND.is_default_on("cuda") and not BACKEND.is_default_on("cpu")


def test_it_is_not_imported_before_it_is_used() -> None:
    program = "import torch_geometric_qlr, sys\n"
    program += "print([n for n in sys.modules if 'ops.triton.' in n])"
    assert python(program).strip() == "['torch_geometric_qlr.ops.triton.backend']"


@needs_triton
@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_the_main_kernels_compile_without_a_gpu() -> None:
    program = str(ROOT / "examples" / "benchmarks" / "gpu_compile.py")
    said = run_python(program, "--quick", "--sm", "90", places=[ROOT], cwd=ROOT)
    assert "0 problems" in said


def test_bounds_are_told_from_counts() -> None:
    program = str(ROOT / "examples" / "benchmarks" / "gpu_roofline.py")
    counts = str(ROOT / "docs" / "results" / "gpu" / "compiled.json")
    said = run_python(program, "--compiled", counts, places=[ROOT], cwd=ROOT)
    table = [line.split("|") for line in said.splitlines() if "| INT2 | unweighted" in line]
    assert "### H100 SXM, Reddit shape" in said and table
    assert all(float(row[7]) > float(row[8]) > 1 for row in table)  # over FP32, over FP16
