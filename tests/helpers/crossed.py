"""Products of cases, of which a share always runs and the rest is marked heavy."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest


def crossed(
    names: Iterable[Any],
    values: Sequence[Any],
    *,
    whole: Collection[str] = (),
    ids: Sequence[str] | None = None,
) -> list[Any]:
    """Every pair of a name and a value, to parametrize two arguments with.

    Each name always runs with one value, in turn, so that each value meets its share of the names;
    a name of ``whole`` always runs with all of them. The other pairs are heavy.
    """
    pairs = []
    for i, case in enumerate(names):
        (name,), marks, _ = case if isinstance(case, tuple) else pytest.param(case)
        for j, value in enumerate(values):
            always = name in whole or j == i % len(values)
            label = str(value) if ids is None else ids[j]
            more = () if always else (pytest.mark.heavy,)
            pairs.append(pytest.param(name, value, id=f"{name}-{label}", marks=(*marks, *more)))
    missing = set(whole) - {pair.values[0] for pair in pairs}
    assert not missing, f"no case is called {sorted(missing)}"
    return pairs
