"""What arguments have to be: each check says who was called, what it got, and what it takes."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from torch_geometric_qlr.errors import ConfigError, InputError, UnsupportedLayerError

__all__ = ["expect_matrix", "expect_module", "expect_number", "expect_tensor"]


def expect_module(model: Any, caller: str) -> None:
    """Refuses what is no model."""
    if not isinstance(model, nn.Module):
        raise UnsupportedLayerError(
            f"{caller}: expected a torch.nn.Module (got {_kind(model)}). Pass the model itself, "
            f"not its class or its state_dict."
        )


def expect_number(value: Any, name: str, least: float = -math.inf) -> None:
    """Refuses what is no number, not finite, or too small."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < least:
        at_least = "" if least == -math.inf else f" of {least:g} or more"
        raise ConfigError(f"{name} is {value!r}; choose a finite number{at_least}.")


def expect_tensor(x: Any, name: str) -> None:
    """Refuses what is no tensor."""
    if not isinstance(x, Tensor):
        raise InputError(f"{name} is a {_kind(x)}; pass a tensor, such as torch.as_tensor(...).")


def expect_matrix(x: Any, name: str) -> None:
    """Refuses what is no dense matrix of floats."""
    expect_tensor(x, name)
    if x.dim() != 2 or not x.is_floating_point():
        raise InputError(
            f"{name} is {x.dtype} of shape {list(x.shape)}; pass floats of shape [N, F]."
        )


def _kind(value: Any) -> str:
    return f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
