"""Extrema, and sums with a coefficient for each head."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.helpers.kernel_cases import problem
from tests.helpers.triton_cases import (
    assert_close,
    assert_codes,
    by_reference,
    by_triton,
    quantizer,
)
from torch_geometric_qlr.ops import reference

qlr = torch.ops.qlr


@pytest.mark.parametrize("axis", ("tensor", "row", "column"))
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_extrema(bits: int, axis: str) -> None:
    for seed, largest in enumerate((True, False)):
        p = problem(seed, targets=6, cols=(33, 7)[seed], bits=bits, axis=axis)
        call = (p.rowptr, p.col, *p.packed, largest)
        assert torch.equal(
            by_triton(qlr.packed_extremum, *call), by_reference(qlr.packed_extremum, *call)
        )


def test_extrema_of_hubs() -> None:
    for bits, axis, largest in ((2, "tensor", True), (4, "row", False)):
        p = problem(1, targets=4, cols=7, bits=bits, axis=axis, hub=2100)
        call = (p.rowptr, p.col, *p.packed, largest)
        assert torch.equal(
            by_triton(qlr.packed_extremum, *call), by_reference(qlr.packed_extremum, *call)
        )


def test_what_is_no_number_stays_none() -> None:
    p = problem(1, targets=9, cols=7, bits=4, axis="row")
    p.scale[2] = torch.nan
    lost = torch.tensor([2 in part for part in p.col.split(p.rowptr.diff().tolist())])
    for largest in (True, False):
        y = by_triton(qlr.packed_extremum, p.rowptr, p.col, *p.packed, largest)
        assert bool(lost.any()) and torch.equal(y.isnan().any(dim=1), lost)


def check_attention(seed: int, bits: int, heads: int, width: int, axis: str, hub: int = 0) -> None:
    """One width of heads, and the codes of its result."""
    rng = torch.Generator().manual_seed(seed)
    p = problem(seed, targets=7, cols=heads * width, bits=bits, axis=axis, hub=hub)
    alpha = torch.rand(p.col.numel(), heads, generator=rng)
    bias = torch.randn(heads * width, generator=rng)
    options = {"bias": bias, "relu": bool(seed % 2)}
    truth = by_reference(qlr.packed_attention, p.rowptr, p.col, *p.packed, alpha, **options)
    ours = by_triton(qlr.packed_attention, p.rowptr, p.col, *p.packed, alpha, **options)
    assert_close(ours, truth)
    if seed % 3 == 0:
        how = quantizer(truth, bits, "tensor", rng, False)
        named = {**options, **how.named("out_")}
        packed = by_triton(qlr.packed_attention, p.rowptr, p.col, *p.packed, alpha, **named)
        assert torch.equal(packed, reference.quantize_pack(ours, how))
        assert_codes(packed, truth, how)


@pytest.mark.parametrize("heads,width", [(1, 33), (8, 5), (8, 8), (2, 32)])
@pytest.mark.parametrize("bits", (2, 8))
def test_attention(bits: int, heads: int, width: int) -> None:
    axis = ("tensor", "row", "column")[(bits + heads + width) % 3]
    check_attention(bits + heads, bits, heads, width, axis)


def test_attention_of_a_hub() -> None:
    check_attention(2, 8, 2, 4, "row", hub=2100)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_attention_with_everything(bits: int) -> None:
    shapes = [(1, 1), (1, 33), (8, 5), (8, 8), (2, 32), (4, 150), (8, 75)]
    axes = ("tensor", "row", "column")
    cases = itertools.product(shapes, axes, (0, 40, 2500))
    for seed, ((heads, width), axis, hub) in enumerate(cases):
        check_attention(seed, bits, heads, width, axis, hub)
