"""The kernel tests once more, on a build by the other compiler: the same bits are the definition.

pytest -m heavy tests/ops/test_compilers.py
"""

from __future__ import annotations

import shutil

import pytest

from tests.helpers.builds import Build, build

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(shutil.which("clang++") is None, reason="needs clang++"),
]


@pytest.fixture(scope="module")
def by_clang(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build(tmp_path_factory.mktemp("clang"), "clang++", "-O3")


def test_small_set(by_clang: Build) -> None:
    """What .ci/run takes of the rest."""
    by_clang.test("not_finite", "fused")


def test_kernels(by_clang: Build) -> None:
    by_clang.test("kernels", "fake_quantize", "observed", "row_ranges")
