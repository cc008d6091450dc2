"""The choices that a smoothness-aware step has, for every layer that takes such steps."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.expect import expect_number

Primal = Literal["paper", "lagrangian"]
MultiplierState = Literal["forward", "persistent"]
Projection = Literal["nonnegative", "nonpositive"]


_NUMBERS = ("mu", "eta", "tau", "eta_lambda", "eta_slack", "init_lambda", "init_slack")


def check_options(name: str, options: Any) -> None:
    r"""Raises a :class:`~torch_geometric_qlr.errors.ConfigError` for a choice there is not.

    Args:
        name (str): Whose options they are.
        options (StepOptions): The options, with a :obj:`multiplier_state`.
    """
    for field in _NUMBERS:
        expect_number(getattr(options, field), f"{name}: {field}")
    choices = {
        "primal": get_args(Primal),
        "multiplier_state": get_args(MultiplierState),
        "projection": (None, *get_args(Projection)),
    }
    for field, allowed in choices.items():
        value = getattr(options, field)
        if value not in allowed:
            raise ConfigError(f"{name}: {field} is {value!r}; choose one of {list(allowed)}.")
