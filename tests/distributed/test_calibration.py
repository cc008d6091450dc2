"""Several processes count as one does that is given the batches of all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import joint_training as joint


@pytest.mark.parametrize("name", ["mse", "percentile", "minmax", "more", "lsq"])
def test_ranges_are_those_of_all_batches(ran: Any, name: str) -> None:
    expected = joint.calibrated(joint.joint_graph(ran.world))[name]
    own = joint.calibrated(joint.graph(0))[name]
    assert any(not torch.equal(own[key], value) for key, value in expected.items())
    for found in ran("counted"):
        for key, value in expected.items():
            if name == "lsq" and key.endswith("step"):
                continue  # a mean over each batch; the largest counts
            torch.testing.assert_close(found[name][key], value, rtol=1e-6, atol=1e-7, msg=key)


def test_steps_are_the_same_everywhere(ran: Any) -> None:
    first, *others = (found["lsq"] for found in ran("counted"))
    for other in others:
        assert all(torch.equal(first[key], other[key]) for key in first)


def test_a_process_may_count_alone(ran: Any) -> None:
    first, *others = ran("counted_alone")
    model = joint.two_layers({"bits": 4})
    missing = model.state_dict()
    ranges = [key for key in missing if key.endswith("calibrated")]
    assert all(first[key] > 0 for key in ranges)
    for other in others:
        assert all(other[key] == 0 for key in ranges)


def test_a_layer_that_one_process_goes_through(ran: Any) -> None:
    first, *others = ran("counted_by_one")
    assert sum(name.startswith("layers.0.") for name in first[1]) >= 1
    for state, observed in others:
        assert observed == first[1]
        assert all(torch.equal(state[key], first[0][key]) for key in state)
