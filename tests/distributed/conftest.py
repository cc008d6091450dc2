"""What several processes have done, once for all tests."""

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
    joint.checkpointed,
    joint.exchanges,
    joint.joined,
    joint.sharded,
    joint.counted,
    joint.counted_alone,
    joint.counted_by_one,
]
if torch.cuda.is_available():
    ALL.append(joint.sync_batch_norm)


@pytest.fixture(scope="session", params=[2, 4])
def ran(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives what a function has returned in each of 2 or 4 processes."""
    world: int = request.param
    found = run_together(ALL, world, tmp_path_factory.mktemp("ranks"))

    def results(name: str) -> list[Any]:
        assert not any(isinstance(r, str) and r.startswith("Traceback") for r in found[name]), (
            found[name]
        )
        return found[name]

    results.world = world  # type: ignore[attr-defined]
    return results
