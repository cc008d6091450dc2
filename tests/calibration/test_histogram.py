"""Counts that do not depend on how values come."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_geometric_qlr.calibration import Histogram


def values(seed: int, rows: int, groups: int) -> torch.Tensor:
    """Of very different sizes, some zero, and of one sign in some groups."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, groups, generator=rng) * torch.randn(groups, generator=rng).mul(6).exp()
    x = torch.where(torch.rand(x.shape, generator=rng) < 0.3, 0.0, x)
    return torch.where(torch.rand(groups, generator=rng) < 0.3, x.abs(), x)


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 4), st.integers(1, 7))
def test_batches_make_no_difference(seed: int, rows: int, groups: int, parts: int) -> None:
    x = values(seed, rows, groups)
    whole, several = Histogram(groups, 64), Histogram(groups, 64)
    whole.add(x)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    for part in x[order].tensor_split(parts):
        several.add(part)
    assert torch.equal(whole.counts, several.counts)
    assert torch.equal(whole.centers(), several.centers())
    assert whole.num_values == several.num_values == rows


@given(st.integers(0, 2**31), st.integers(1, 60))
def test_a_value_is_known_to_the_width_of_a_bin(seed: int, rows: int) -> None:
    x = values(seed, rows, 1)
    histogram = Histogram(1, 64)
    histogram.add(x)
    given = x[x != 0].sort().values
    found = histogram.centers()[0].repeat_interleave(histogram.counts[0])
    assert found.numel() == given.numel()
    width = (histogram.hi - histogram.lo) / 32
    assert ((found - given).abs() <= width).all()


def test_a_percentile_is_that_of_torch() -> None:
    x = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0))
    histogram = Histogram(1)
    histogram.add(x)
    for share in (0.9, 0.99, 0.999):
        ends = torch.tensor([(1 - share) / 2, 1 - (1 - share) / 2])
        expected = x.flatten().quantile(ends)
        found = torch.cat(histogram.between(share))
        torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("x", [torch.zeros(0, 2), torch.zeros(3, 2)])
def test_nothing_and_zeros(x: torch.Tensor) -> None:
    histogram = Histogram(2)
    histogram.add(x)
    assert histogram.num_values == x.size(0)
    assert not histogram.counts.any() and not histogram.hi.any()
