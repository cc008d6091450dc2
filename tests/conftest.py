"""Shared by all tests: one thread and no deadlines, for the same results on a shared machine."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# New examples are for those who develop; an automatic run gives the same answer every time.
hypothesis.settings.register_profile("shared", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("shared")

HERE = Path(__file__).resolve().parent

# A minute that meets every private part of torch, PyG and Brevitas that the package relies on: what
# is run with the oldest and the newest of each.
SMOKE = (
    "test_package.py",
    "test_warning_policy.py",
    "nn/test_models.py",
    "ops/test_ops.py",
    "quantizers",
    "transforms",
)


@pytest.fixture(autouse=True)
def results_of_any_size_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of tests are small; what happens between layers on large ones is tested on them."""
    monkeypatch.setattr("torch_geometric_qlr.codes.chains.Chains.smallest", 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    chosen = [HERE / name for name in SMOKE]
    for item in items:
        if any(item.path == path or path in item.path.parents for path in chosen):
            item.add_marker(pytest.mark.smoke)
