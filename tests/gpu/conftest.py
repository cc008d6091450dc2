"""Tests that need a GPU: skipped without one, unless ``--device`` names something in its place."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.devices import GPU_REMEDY


@pytest.fixture(scope="session")
def gpu(request: pytest.FixtureRequest) -> torch.device:
    """Where tests of this folder compute."""
    asked = request.config.getoption("--device")
    if asked == "cpu" and not torch.cuda.is_available():
        pytest.skip(GPU_REMEDY)
    return torch.device("cuda" if asked == "cpu" else asked)


@pytest.fixture(scope="session")
def cuda(gpu: torch.device) -> torch.device:
    """The same, for streams and graphs of CUDA."""
    if gpu.type != "cuda":
        pytest.skip("needs a GPU of CUDA")
    return gpu
