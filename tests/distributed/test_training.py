"""Several processes train one model as one process does with the batches of all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import joint_training as joint
from tests.helpers.processes import run_together

ALL = [
    joint.configs,
    joint.weak_features,
    joint.evaluated_before,
    joint.other_ways,
    joint.one_goes_elsewhere,
    joint.missing_edge_type,
    joint.sync_batch_norm,
    joint.checkpointed,
    joint.joined,
]


@pytest.fixture(scope="module", params=[2, 4])
def ran(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    world: int = request.param
    found = run_together(ALL, world, tmp_path_factory.mktemp("ranks"))

    def results(name: str) -> list[Any]:
        for result in found[name]:
            assert not isinstance(result, str) or name == "joined", result
        return found[name]

    results.world = world  # type: ignore[attr-defined]
    return results


def assert_same_everywhere(ranks: list[list[joint.State]]) -> None:
    for states in zip(*ranks, strict=True):
        for key, value in states[0].items():
            assert all(torch.equal(value, other[key]) for other in states), key


def assert_close(found: joint.State, expected: joint.State) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        assert (found[key] - value).abs().max() <= 1e-6 * scale, key


@pytest.mark.parametrize("name", joint.CONFIGS)
def test_training_is_that_of_one_process(ran: Any, name: str) -> None:
    ranks = [result[name] for result in ran("configs")]
    assert_same_everywhere(ranks)
    own, expected = (
        joint.train(joint.two_layers(joint.CONFIGS[name]), inputs)
        for inputs in (joint.graph(0), joint.joint_graph(ran.world))
    )
    learned = [key for key in own[0] if key.endswith((".gamma", ".step"))]
    assert any(not torch.equal(own[0][key], expected[0][key]) for key in learned)
    # The first step of LSQ is twice a mean, at which many values lie halfway between two codes.
    forwards = 1 if name == "lsq" else len(expected)
    for found, alone in list(zip(ranks[0], expected, strict=True))[:forwards]:
        assert_close(found, alone)


def test_a_gain_of_weak_features(ran: Any) -> None:
    ranks = ran("weak_features")
    assert_same_everywhere(ranks)
    expected = joint.train(joint.two_layers({"bits": 4}), joint.joint_graph(ran.world, 0.02))
    assert_close(ranks[0][-1], expected[-1])
    gains = [value for key, value in expected[0].items() if key.endswith("input_gain")]
    assert [gain.item() > 1 for gain in gains] == [True]


def test_ranges_of_evaluation_become_one(ran: Any) -> None:
    assert_same_everywhere(ran("evaluated_before"))


def test_nobody_waits_whatever_way_a_batch_takes(ran: Any) -> None:
    assert_same_everywhere(ran("other_ways"))


def test_a_layer_that_one_process_goes_through(ran: Any) -> None:
    states = ran("one_goes_elsewhere")
    assert_same_everywhere([[state] for state in states])
    model = joint.branches(2)
    for _ in range(3):
        model(*joint.graph(0), [0])
    expected = {k: v for k, v in model.state_dict().items() if k.startswith("layers.0.")}
    assert len(expected) > 8
    assert_close({key: states[0][key] for key in expected}, expected)


def test_an_edge_type_that_a_batch_misses(ran: Any) -> None:
    states = ran("missing_edge_type")
    assert_same_everywhere([[state] for state in states])
    model = joint.hetero()
    for _ in range(3):
        model(*joint.hetero_graph(list(range(ran.world))))
    assert_close(states[0], model.state_dict())


def test_batch_norm_of_all_processes(ran: Any) -> None:
    assert_same_everywhere(ran("sync_batch_norm"))


def test_layers_that_are_computed_again(ran: Any) -> None:
    ranks = ran("checkpointed")
    assert_same_everywhere(ranks)
    expected = joint.train(joint.checkpointed_model(), joint.joint_graph(ran.world))
    assert_close(ranks[0][-1], expected[-1])


def test_processes_that_end_one_by_one_are_refused(ran: Any) -> None:
    for words in ran("joined"):
        assert "join()" in words and "DistributedSampler(drop_last=True)" in words
