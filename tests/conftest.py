"""Shared by all tests: one thread and no deadlines, for the same results on a shared machine."""

import collections
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

# Tests of which every n-th case always runs; the others are heavy.
SHARES = {
    "codes/test_edge_weights.py::test_compiled": 4,
    "codes/test_edges.py::test_a_warm_call": 2,
    "codes/test_edges.py::test_no_number_comes": 3,
    "codes/test_edges.py::test_what_is_remembered_goes": 3,
    "codes/test_forms.py::test_a_pair_of_sets": 2,
    "codes/test_forms.py::test_cached_edges": 2,
    "codes/test_forms.py::test_no_edges": 2,
    "codes/test_one_arithmetic.py::test_convs": 2,
    "codes/test_one_arithmetic.py::test_models": 2,
    "codes/test_users_code.py::test_between_two_layers": 2,
    "io/test_hostile_files.py::test_every_field_of_a_header": 3,
    "io/test_options.py::test_other_options": 3,
    "io/test_options.py::test_what_no_result": 2,
    "io/test_state_dicts.py::test_a_state_of_other_settings": 3,
    "nn/packed/test_packed_convs.py::test_fake_equals_packed": 2,
    "nn/packed/test_packed_graphs.py::test_every_form": 2,
    "nn/packed/test_packed_models.py::test_models_agree": 2,
    "nn/test_conv_zoo.py::TestEveryConv::test_copies_and_checkpoints": 2,
    "nn/test_conv_zoo.py::TestEveryConv::test_every_weight": 2,
    "nn/test_conv_zoo.py::test_every_form_of_the_graph": 3,
    "nn/test_conv_zoo.py::test_pickles": 2,
    "nn/test_conv_zoo.py::test_reset_parameters": 2,
    "nn/test_models.py::test_model[": 2,
    "nn/test_names.py::test_own_names": 2,
    "ops/test_adding.py::test_what_a_back_end_says": 2,
    "quantizers/test_adding_a_method.py::test_a_method_is": 2,
    "quantizers/test_observed_step.py::test_the_same_bits": 2,
    "transforms/test_lifecycle.py::test_compiles_without_a_break": 3,
    "transforms/test_tracing.py::test_compiles_whole": 2,
}


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where tests make their tensors, if they do not say it."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def results_of_any_size_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of tests are small; what happens between layers on large ones is tested on them."""
    monkeypatch.setattr("torch_geometric_qlr.codes.chains.Chains.smallest", 0)


def pytest_collection_finish() -> None:
    """Modules and tests stay for good: a collection of garbage need not look at them each time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = tuple(f"tests/{name}" for name in SMOKE)
    _leave_shares(items)
    device = config.getoption("--device")
    for item in items:
        if device != "cpu" and item.get_closest_marker("cpu"):
            item.add_marker(pytest.mark.skip(reason=f"is about the CPU, not about {device}"))
        if item.nodeid.startswith(chosen):
            item.add_marker(pytest.mark.smoke)


def _leave_shares(items: list[pytest.Item]) -> None:
    """Marks as heavy what SHARES leaves out. What is heavy anyway does not count."""
    seen: collections.Counter[str] = collections.Counter()
    places = {f"tests/{name}": share for name, share in SHARES.items()}
    for item in items:
        if item.get_closest_marker("heavy"):
            continue
        for place, share in places.items():
            if item.nodeid.startswith(place):
                if seen[place] % share:
                    item.add_marker(pytest.mark.heavy)
                seen[place] += 1
