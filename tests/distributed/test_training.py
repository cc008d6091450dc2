"""Several processes train one model as one process does with the batches of all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import joint_training as joint


def assert_same_everywhere(ranks: list[list[joint.State]]) -> None:
    for states in zip(*ranks, strict=True):
        for key, value in states[0].items():
            assert all(torch.equal(value, other[key]) for other in states), key


def assert_close(found: joint.State, expected: joint.State) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        assert (found[key] - value).abs().max() <= 1e-6 * scale, key


@pytest.mark.parametrize("name", [name for name in joint.CONFIGS if name != "lsq"])
def test_training_is_that_of_one_process(ran: Any, name: str) -> None:
    ranks = [result[name] for result in ran("configs")]
    assert_same_everywhere(ranks)
    own, expected = (
        joint.train(joint.two_layers(joint.CONFIGS[name]), inputs)
        for inputs in (joint.graph(0), joint.joint_graph(ran.world))
    )
    assert any(not torch.equal(value, expected[0][key]) for key, value in own[0].items())
    for found, alone in zip(ranks[0], expected, strict=True):
        assert_close(found, alone)


def test_steps_start_from_the_batches_of_all(ran: Any) -> None:
    lsq = {"config": "lsq", "bits": 4}
    ranks = [result["lsq"] for result in ran("configs")]
    assert_same_everywhere(ranks)
    expected = joint.train(joint.two_layers(lsq), joint.joint_graph(ran.world))[0]
    # It counts what is not zero: later on that is a question of how a sum was rounded.
    first = [key for key in expected if key.startswith("convs.0.lin.")]
    assert any(key.endswith("input.step") for key in first), first
    assert_close({key: ranks[0][0][key] for key in first}, {key: expected[key] for key in first})


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="SyncBatchNorm needs a GPU")
def test_batch_norm_of_all_processes(ran: Any) -> None:
    ranks = ran("sync_batch_norm")
    assert_same_everywhere(ranks)
    inputs = (part.cuda() for part in joint.joint_graph(ran.world))
    expected = joint.train(joint.batch_norm_model().cuda(), tuple(inputs))
    for key, value in expected[0].items():
        torch.testing.assert_close(ranks[0][0][key], value.cpu(), rtol=1e-4, atol=1e-5, msg=key)


def test_layers_that_are_computed_again(ran: Any) -> None:
    ranks = ran("checkpointed")
    assert_same_everywhere(ranks)
    expected = joint.train(joint.checkpointed_model(), joint.joint_graph(ran.world))
    assert_close(ranks[0][-1], expected[-1])


def test_a_step_exchanges_once_for_each_running_range_and_at_its_end(ran: Any) -> None:
    for running, in_training, in_evaluation in ran("exchanges"):
        assert running > 1
        assert (in_training, in_evaluation) == (running + 1, 0)


def test_processes_that_end_one_by_one_are_refused(ran: Any) -> None:
    for words in ran("joined"):
        assert "join()" in words and "DistributedSampler(drop_last=True)" in words


def test_parameters_in_pieces_are_refused(ran: Any) -> None:
    for by_torch, by_the_model in ran("sharded"):
        assert "scalar parameters" in by_torch
        assert "fully_shard" in by_the_model and "DistributedDataParallel" in by_the_model
