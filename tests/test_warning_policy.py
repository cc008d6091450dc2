"""Warnings of this package and its tests are errors; those of dependencies are counted."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.warning_policy import ROOT, Source, lines, own_modules, source_of
from torch_geometric_qlr.errors import QLRWarning

OURS = (
    "torch_geometric_qlr",
    "torch_geometric_qlr.nn.linear",
    "tests.test_warning_policy",
    "tests.helpers.graphs",
    "conftest",
    "_common",
    "quickstart",
    "cpu_models",
    "__main__",
    "<string>",
)
OTHERS = ("torch", "torch.jit._script", "torch_geometric.nn", "torch_geometric_qlr2", "typing")


def warn(module: str, category: type[Warning] = UserWarning) -> None:
    warnings.warn_explicit("something is odd", category, f"{module}.py", 1, module=module)


def test_a_warning_of_a_test_is_an_error() -> None:
    with pytest.raises(FutureWarning, match="odd"):
        warnings.warn("something is odd", FutureWarning, stacklevel=1)


@pytest.mark.parametrize("module", OURS)
def test_ours_are_errors(module: str) -> None:
    with pytest.raises(DeprecationWarning, match="odd"):
        warn(module, DeprecationWarning)


@pytest.mark.parametrize("module", OTHERS)
def test_those_of_dependencies_are_recorded(module: str) -> None:
    with warnings.catch_warnings(record=True) as recorded:
        warn(module, FutureWarning)
    assert [entry.category for entry in recorded] == [FutureWarning]


@pytest.mark.parametrize("category", [QLRWarning, pytest.PytestUnraisableExceptionWarning])
def test_some_are_errors_wherever_they_are_attributed(category: type[Warning]) -> None:
    with pytest.raises(category):
        warn("torch.nn.modules.module", category)


def test_every_file_of_ours_is_known() -> None:
    pattern = re.compile(own_modules())
    for path in (ROOT / "examples").rglob("*.py"):
        assert pattern.match(path.stem), path
    assert pattern.match(__name__)
    assert not any(pattern.match(module) for module in OTHERS)


def test_all_own_warnings_have_the_class_of_the_package() -> None:
    package = ROOT / "torch_geometric_qlr"
    for path in package.rglob("*.py"):
        calls = path.read_text().split("warnings.warn(")[1:]
        assert all("QLRWarning" in call.split("stacklevel")[0] for call in calls), path


def test_the_summary_counts_by_package_and_message() -> None:
    message = warnings.WarningMessage(
        FutureWarning("`f` is deprecated.\n  Use `g`."),
        FutureWarning,
        str(Path("lib", "site-packages", "torch", "jit", "_script.py")),
        3,
    )
    source = source_of(message)
    assert source == Source("torch", "FutureWarning", "`f` is deprecated. Use `g`.")
    shown = lines(Counter({source: 12, Source("a.py", "UserWarning", "x" * 300): 1}))
    assert shown[0] == "    12 x torch: FutureWarning: `f` is deprecated. Use `g`."
    assert len(shown[1]) == 160 and shown[1].endswith("...")
