"""A few seconds of the fuzzer; `test_sanitized.py` runs it for longer, on a build that watches."""

from __future__ import annotations

import pytest

from tests.helpers import fuzz_ops

pytestmark = pytest.mark.cpu


def test_any_arguments_are_answered_or_refused():
    calls, answered = fuzz_ops.run(seed=0, seconds=4)
    assert 0 < answered < calls or calls < 50  # a slow machine gets a share of them done


def test_the_same_seed_draws_the_same_calls():
    first, second = (fuzz_ops.Fuzzer(5).arguments("packed_spmm") for _ in range(2))
    assert first["packed"].equal(second["packed"])
    assert first.keys() == second.keys()
