"""Shared by all tests: one thread and no deadlines, for the same results on a shared machine."""

import gc
import os

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# New examples are for those who develop; an automatic run gives the same answer every time.
hypothesis.settings.register_profile("shared", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("shared")

# A minute that meets the private parts of torch, PyG and Brevitas that the package relies on, from
# every folder: what is run with the oldest and the newest of each. Files, or tests in them.
SMOKE = (
    "test_package.py",
    "test_warning_policy.py",
    "codes/test_users_code.py::test_models_inside_of_models",
    "io/test_round_trips.py::test_hetero_models",
    "io/test_round_trips.py::test_lazy",
    "layers/test_pyg.py",
    "nn/test_models.py::test_evaluation_is_quantized_as_well",
    "nn/test_models.py::test_forces",
    "nn/test_models.py::test_a_padded",
    "nn/packed/test_packed_models.py::test_fusion_changes_no_bit",
    "ops/test_ops.py",
    "quantizers/test_brevitas.py",
    *(f"quantizers/test_torch_state.py::test_{part}" for part in ("is", "may", "vmap", "grad")),
    *(f"quantizers/test_torch_state.py::test_{part}" for part in ("forward", "on", "fake")),
    "sparse/test_adjacency.py",
    "transforms/test_convert.py",
    "transforms/test_lifecycle.py",
    "transforms/test_tracing.py::test_exports_for_any_size[",
)


@pytest.fixture(autouse=True)
def results_of_any_size_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of tests are small; what happens between layers on large ones is tested on them."""
    monkeypatch.setattr("torch_geometric_qlr.codes.chains.Chains.smallest", 0)


def pytest_collection_finish() -> None:
    """Modules and tests stay for good: a collection of garbage need not look at them each time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    chosen = tuple(f"tests/{name}" for name in SMOKE)
    for item in items:
        if item.nodeid.startswith(chosen):
            item.add_marker(pytest.mark.smoke)
