"""One option of each group, so that the error is least and the cost within a budget: exactly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["choose"]

#: What a solver takes for no difference between two errors is 1e-6, whatever they are.
_SCALE = 1e6


def choose(
    errors: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], budget: float
) -> list[int] | None:
    r"""Solves the multiple-choice knapsack problem

    .. math::
        \min_x \sum_{g, o} \epsilon_{go} x_{go} \quad \text{s. t.} \quad
        \sum_{g, o} c_{go} x_{go} \le B, \quad \sum_o x_{go} = 1, \quad x_{go} \in \{0, 1\}

    as an integer program, by branch and bound to optimality.

    Args:
        errors (list): :math:`\epsilon`, by group and option.
        costs (list): :math:`c`, whole numbers.
        budget (float): :math:`B`.

    Returns:
        The option of each group, or :obj:`None` if even the cheapest ones are over the budget.

    Raises:
        ImportError: If scipy is not installed.

    Example:
        >>> choose([[9.0, 1.0], [5.0, 0.0]], [[1, 4], [1, 4]], budget=5)
        [1, 0]
        >>> choose([[9.0, 1.0]], [[1, 4]], budget=0) is None
        True
    """
    least = [min(options) for options in costs]
    spare = budget - sum(least)
    if spare < 0:
        return None
    above = [[c - low for c in options] for options, low in zip(costs, least, strict=True)]
    # What a solver takes for whole depends on how large the numbers are: as small as can be.
    unit = math.gcd(*itertools.chain(*above)) or 1
    above = [[c // unit for c in options] for options in above]
    most = sum(map(max, above))
    limit = most if spare >= most * unit else math.floor(spare) // unit
    excluded: list[list[int]] = []
    while True:
        found = _solve(errors, above, limit, excluded)
        if sum(options[i] for options, i in zip(above, found, strict=True)) <= limit:
            return found
        excluded.append(found)  # it was within the limit by the solver's tolerance only


def _solve(
    errors: Sequence[Sequence[float]],
    costs: Sequence[Sequence[int]],
    limit: int,
    excluded: Sequence[Sequence[int]],
) -> list[int]:
    optimize = _scipy_optimize()
    ends = np.cumsum([len(options) for options in errors])
    starts = ends - [len(options) for options in errors]
    size = int(ends[-1])
    group = np.repeat(np.arange(len(errors)), ends - starts)
    limits = [
        optimize.LinearConstraint(group == np.arange(len(errors))[:, None], 1, 1),
        optimize.LinearConstraint(np.array([list(itertools.chain(*costs))]), -np.inf, limit),
    ]
    for found in excluded:
        row = np.zeros((1, size))
        row[0, starts + found] = 1
        limits.append(optimize.LinearConstraint(row, -np.inf, len(found) - 1))
    objective = np.array(list(itertools.chain(*errors)), dtype=float)
    done = optimize.milp(
        objective * (_SCALE / (objective.max() or 1.0)),
        constraints=limits,
        integrality=np.ones(size),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if done.x is None:
        raise RuntimeError(f"scipy.optimize.milp found no choice of bits: {done.message}")
    return [int(done.x[a:b].argmax()) for a, b in zip(starts, ends, strict=True)]


def _scipy_optimize() -> Any:
    try:
        from scipy import optimize
    except ImportError as error:
        raise ImportError(
            "search_bits solves an integer program with scipy, which is not installed. Run "
            "'pip install scipy'."
        ) from error
    return optimize
