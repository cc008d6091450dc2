"""Kernels of training, compiled for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton: pip install triton"
)

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent / "triton"


def run(*command: str, **environment: str) -> str:
    """What a fresh process says: Triton decides for good, when it is imported, how kernels run."""
    result = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("arch", (80, 90))
def test_compiled_ahead_of_time(arch: int) -> None:
    found = run(str(HERE / "compile_training_kernels.py"), str(arch), TRITON_INTERPRET="0")
    lines = [line for line in found.splitlines() if line.startswith(f"sm_{arch}")]
    assert len(lines) == 32
    for line in lines:
        assert line.endswith("0 bytes spilled"), line
