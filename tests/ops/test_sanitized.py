"""The kernel tests once more, on a build that watches every access and every overflow.

pytest -m heavy tests/ops/test_sanitized.py
QLR_FUZZ_SECONDS=600 pytest -m heavy tests/ops/test_sanitized.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "torch_geometric_qlr"
FLAGS = [
    *("-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off"),
    *("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"),
    "-fno-omit-frame-pointer",
]
pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A copy of the folders the kernels need, so that the real library stays as it is, and the
    environment to run it in."""
    home = tmp_path_factory.mktemp("watched")
    copy = home / PACKAGE
    copy.mkdir()
    (copy / "__init__.py").touch()
    shutil.copy(ROOT / PACKAGE / "errors.py", copy)
    for folder in ("ops", "tensor"):
        shutil.copytree(ROOT / PACKAGE / folder, copy / folder)
    helpers = home / "tests" / "helpers"
    helpers.mkdir(parents=True)
    for name in ("__init__.py", "kernel_cases.py", "fuzz_ops.py"):
        shutil.copy(ROOT / "tests" / "helpers" / name, helpers)
    sources = sorted((ROOT / PACKAGE / "csrc").rglob("*.cpp"))
    library = copy / "libqlr_cpu.so"
    subprocess.run(["g++", *FLAGS, *map(str, sources), "-ldl", "-o", str(library)], check=True)
    runtime = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "PYTHONPATH": str(home),
        "OMP_NUM_THREADS": "1",
    }
    return home, environment


def run(watched, *command: str) -> str:
    home, environment = watched
    result = subprocess.run(
        [sys.executable, *command], env=environment, cwd=home, capture_output=True, text=True
    )
    said = result.stdout[-4000:] + result.stderr[-4000:]
    assert result.returncode == 0, said
    return said


@pytest.mark.timeout(2400)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_kernels_under_address_and_undefined_sanitizers(watched):
    tests = [
        f"test_{name}.py"
        for name in ("kernels", "fake_quantize", "observed", "fused", "not_finite")
    ]
    for test in tests:
        shutil.copy(ROOT / "tests" / "ops" / test, watched[0])
    said = run(watched, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests)
    assert " passed" in said, said
    assert "skipped" not in said, said  # as they would be if the library had not been loaded


@pytest.mark.timeout(2400)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_any_arguments_under_address_and_undefined_sanitizers(watched):
    """For as many seconds as QLR_FUZZ_SECONDS says."""
    seconds = os.environ.get("QLR_FUZZ_SECONDS", "30")
    said = run(watched, "-m", "tests.helpers.fuzz_ops", "--seconds", seconds)
    assert "portable" in said, said
