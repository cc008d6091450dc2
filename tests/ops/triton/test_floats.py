"""Sums of rows of floats."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.kernel_cases import problem
from tests.helpers.triton_cases import assert_close, by_reference, by_triton

qlr = torch.ops.qlr


@pytest.mark.parametrize("cols,hub", [(1, 0), (7, 2100), (40, 40), (150, 0)])
def test_sums_of_floats(cols: int, hub: int) -> None:
    rng = torch.Generator().manual_seed(cols)
    p = problem(cols, targets=8, cols=cols, hub=hub)
    rows, edges, sources = p.rowptr.numel() - 1, p.col.numel(), p.codes.size(0)
    x = torch.randn(sources, cols, generator=rng)
    every: list[dict[str, Any]] = [
        {},
        {"edge_weight": torch.rand(edges, generator=rng), "reduce": "mean", "relu": True},
        {
            "edge_weight": torch.randint(-9, 9, (edges,), generator=rng, dtype=torch.int8),
            "source_weight": torch.rand(sources, generator=rng),
            "row_scale": torch.rand(rows, generator=rng),
            "bias": torch.randn(cols, generator=rng),
            "addend": torch.randn(rows, cols, generator=rng),
            "addend_scale": 0.5,
        },
    ]
    for options, values in zip(every, (x, x.half(), (9 * x).int()), strict=True):
        call = (p.rowptr, p.col, values)
        truth = by_reference(qlr.spmm, *call, **options)
        assert_close(by_triton(qlr.spmm, *call, **options), truth)


def test_nothing() -> None:
    rowptr, none = torch.zeros(4, dtype=torch.long), torch.zeros(0, dtype=torch.int32)
    bias = torch.arange(5.0)
    y = by_triton(qlr.spmm, rowptr, none, torch.zeros(2, 5), bias=bias)
    assert torch.equal(y, bias.expand(3, 5))
    assert by_triton(qlr.spmm, rowptr, none, torch.zeros(2, 0)).shape == (3, 0)
