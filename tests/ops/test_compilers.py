"""The kernel tests once more, on a build by the other compiler: the same bits are the definition.
And the kernels themselves on aarch64, in emulation: tests in Python would need a torch for it.

pytest -m heavy tests/ops/test_compilers.py
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.builds import (
    EMULATED_VNNI,
    FLAGS,
    PACKAGE,
    ROOT,
    WITHOUT_AVX512,
    Build,
    build,
)

CROSS, EMULATOR, FOREIGN = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"

pytestmark = [pytest.mark.cpu, pytest.mark.heavy, pytest.mark.timeout(2400)]
needs_clang = pytest.mark.skipif(shutil.which("clang++") is None, reason="needs clang++")


@pytest.fixture(scope="module")
def by_clang(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build(tmp_path_factory.mktemp("clang"), "clang++", "-O3")


@needs_clang
def test_small_set(tmp_path: Path) -> None:
    """What .ci/run takes of the rest."""
    small = build(tmp_path, "clang++", "-O1", WITHOUT_AVX512, EMULATED_VNNI)
    small.test("not_finite", "fused")


@needs_clang
def test_kernels(by_clang: Build) -> None:
    by_clang.test("kernels", "fake_quantize", "observed", "row_ranges")


def test_kernels_for_vnni(tmp_path: Path) -> None:
    """With the instruction itself only where the processor has it."""
    emulated = build(tmp_path, "g++", "-O2", WITHOUT_AVX512, EMULATED_VNNI)
    emulated.test("kernels", "row_ranges", "not_finite", "fused")


def _plain_calls(home: Path, compiler: str, *runner: str) -> str:
    """What plain_calls.cpp says, built with all kernels."""
    sources = sorted((ROOT / PACKAGE / "csrc").glob("*.cpp"))
    sources.append(Path(__file__).with_name("plain_calls.cpp"))
    include, program = f"-I{ROOT / PACKAGE / 'csrc'}", home / "plain_calls"
    command = [compiler, *FLAGS, "-O1", WITHOUT_AVX512, "-Wall", "-Wextra", include]
    built = subprocess.run(
        [*command, *map(str, sources), "-o", str(program)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-4000:]
    done = subprocess.run([*runner, str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_plain_calls(tmp_path: Path) -> None:
    assert _plain_calls(tmp_path, "g++").endswith(" numbers compared, 0 differ\n")


@pytest.mark.skipif(
    shutil.which(CROSS) is None or shutil.which(EMULATOR) is None,
    reason=f"needs {CROSS} and {EMULATOR}",
)
def test_small_set_on_aarch64(tmp_path: Path) -> None:
    said = _plain_calls(tmp_path, CROSS, EMULATOR, "-L", FOREIGN)
    assert "instruction set 5\n" in said, said  # NEON, with dot products
    assert said.endswith(" numbers compared, 0 differ\n")
