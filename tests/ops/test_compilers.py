"""The kernel tests once more, on a build by the other compiler: the same bits are the definition.

pytest -m heavy tests/ops/test_compilers.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.builds import WITHOUT_AVX512, Build, build

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(shutil.which("clang++") is None, reason="needs clang++"),
]


@pytest.fixture(scope="module")
def by_clang(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build(tmp_path_factory.mktemp("clang"), "clang++", "-O3")


def test_small_set(tmp_path: Path) -> None:
    """What .ci/run takes of the rest."""
    build(tmp_path, "clang++", "-O1", WITHOUT_AVX512).test("not_finite", "fused")


def test_kernels(by_clang: Build) -> None:
    by_clang.test("kernels", "fake_quantize", "observed", "row_ranges")
