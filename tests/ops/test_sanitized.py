"""The kernel tests once more, on a build that watches every access and every overflow.

pytest -m heavy tests/ops/test_sanitized.py
QLR_FUZZ_SECONDS=600 pytest -m heavy tests/ops/test_sanitized.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.builds import WITHOUT_AVX512, Build, build

FLAGS = (
    *("-O1", "-g", "-fsanitize=address,undefined,float-cast-overflow"),
    *("-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
)
pytestmark = [
    pytest.mark.cpu,
    pytest.mark.heavy,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


def watch(home: Path, *flags: str) -> Build:
    """The build, with the runtimes of the sanitizers loaded before everything else."""
    made = build(home, "g++", *FLAGS, *flags)
    runtime = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    made.environment["LD_PRELOAD"] = ":".join(runtime)
    made.environment["ASAN_OPTIONS"] = "detect_leaks=0"  # the interpreter's own
    return made


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return watch(tmp_path_factory.mktemp("watched"))


def fuzz(watched: Build, seconds: str) -> None:
    assert "portable" in watched.run("-m", "tests.helpers.fuzz_ops", "--seconds", seconds)


def test_small_set(tmp_path: Path) -> None:
    """What .ci/run takes: every op with any arguments, and values that are no numbers."""
    small = watch(tmp_path, WITHOUT_AVX512)
    small.test("not_finite")
    fuzz(small, "10")


def test_kernels_under_address_and_undefined_sanitizers(watched: Build) -> None:
    watched.test("kernels", "fake_quantize", "observed", "fused")


def test_any_arguments_under_address_and_undefined_sanitizers(watched: Build) -> None:
    """For as many seconds as QLR_FUZZ_SECONDS says."""
    fuzz(watched, os.environ.get("QLR_FUZZ_SECONDS", "30"))
