"""The best choice of options is the best there is."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_geometric_qlr.search.knapsack import choose

Table = list[list[tuple[float, int]]]


def tables(most_cost: int) -> st.SearchStrategy[Table]:
    """Groups of options, each with an error and a cost."""
    errors = st.one_of(st.floats(0, 1, width=32), st.floats(1e-7, 1e-5), st.just(0.0))
    option = st.tuples(errors, st.integers(0, most_cost))
    return st.lists(st.lists(option, min_size=1, max_size=4), min_size=1, max_size=5)


def brute_force(table: Table, budget: float) -> float | None:
    """The least error of all choices within the budget."""
    within = [
        sum(error for error, _ in choice)
        for choice in itertools.product(*table)
        if sum(cost for _, cost in choice) <= budget
    ]
    return min(within, default=None)


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from([3, 50, 10**6, 10**12]))
def test_it_is_as_good_as_trying_all(data: st.DataObject, most_cost: int) -> None:
    table = data.draw(tables(most_cost))
    budget = data.draw(st.integers(-1, sum(max(c for _, c in group) for group in table) + 1))
    errors = [[error for error, _ in group] for group in table]
    costs = [[cost for _, cost in group] for group in table]
    found, expected = choose(errors, costs, budget), brute_force(table, budget)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert sum(group[i] for group, i in zip(costs, found, strict=True)) <= budget
    error = sum(group[i] for group, i in zip(errors, found, strict=True))
    assert error == pytest.approx(expected, rel=1e-6, abs=1e-12 * max(map(max, errors)))


def test_a_budget_that_is_met_to_the_last_unit() -> None:
    # What a solver takes for whole would let it spend more than there is.
    costs = [[0, 10**9 + 1], [0, 10**9]]
    errors = [[2.0, 0.0], [1.0, 0.0]]
    assert choose(errors, costs, 10**9 + 1) == [1, 0]
    assert choose(errors, costs, 10**9) == [0, 1]
    assert choose(errors, costs, 10**9 - 1) == [0, 0]
    assert choose(errors, costs, float("inf")) == [1, 1]


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        choose([[1.0]], [[1]], 1)
