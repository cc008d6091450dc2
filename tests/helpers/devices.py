"""Another device than a CPU for the tests that do not care which: ``pytest --device cuda``."""

from __future__ import annotations

import pytest
import torch

__all__ = ["GPU_REMEDY", "make_default"]

GPU_REMEDY = "needs a GPU, or --device of another one"


def make_default(device: str) -> None:
    """Makes tensors and generators of random numbers there, unless a test says where."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise pytest.UsageError(f"--device {device}: torch cannot use it here: {reason}") from error
    torch.set_default_device(device)

    class Generator(torch.Generator):
        """Torch's own knows no default device."""

        def __new__(cls, device: str = device) -> torch.Generator:  # type: ignore[misc]
            return super().__new__(torch._C.Generator, device)

    torch.Generator = Generator  # type: ignore[misc]
