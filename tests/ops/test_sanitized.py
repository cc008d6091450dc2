"""The kernel tests once more, on a build that watches every access and every overflow.

pytest -m heavy tests/ops/test_sanitized.py
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
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
]
pytestmark = pytest.mark.heavy


@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_kernels_under_address_and_undefined_sanitizers(tmp_path):
    """In a copy of the folders the kernels need, so that the real library stays as it is."""
    copy = tmp_path / PACKAGE
    copy.mkdir()
    (copy / "__init__.py").touch()
    shutil.copy(ROOT / PACKAGE / "errors.py", copy)
    for folder in ("ops", "tensor"):
        shutil.copytree(ROOT / PACKAGE / folder, copy / folder)
    sources = sorted((ROOT / PACKAGE / "csrc").glob("*.cpp"))
    library = copy / "libqlr_cpu.so"
    subprocess.run(["g++", *FLAGS, *map(str, sources), "-o", str(library)], check=True)
    tests = [ROOT / "tests" / "ops" / f"test_{name}.py" for name in ("kernels", "fake_quantize")]
    for test in (*tests, tests[0].with_name("kernel_cases.py")):
        shutil.copy(test, tmp_path)
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
        "PYTHONPATH": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tmp_path)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    said = result.stdout[-4000:] + result.stderr[-4000:]
    assert result.returncode == 0, said
    assert " passed" in said, said
    assert "skipped" not in said, said  # as they would be if the library had not been loaded
