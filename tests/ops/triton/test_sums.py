"""Packed sums, weighted or not, with all that follows them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.helpers.kernel_cases import Problem, problem
from tests.helpers.triton_cases import (
    assert_close,
    assert_codes,
    by_reference,
    by_triton,
    magnitude_of,
    quantizer,
)
from torch_geometric_qlr.ops import reference

qlr = torch.ops.qlr
WIDTHS = (1, 7, 33, 40, 602)
AXES = ("tensor", "row", "column")
WEIGHTS = ("none", "int8", "float", "source", "int8 and source", "float64")


def weights_of(p: Problem, kind: str, rng: torch.Generator) -> dict[str, Any]:
    """Weights of edges and sources, with the row scales that integers come with."""
    edges, sources = p.col.numel(), p.codes.size(0)
    found: dict[str, Any] = {}
    if "int8" in kind:
        found["edge_weight"] = torch.randint(-128, 128, (edges,), generator=rng, dtype=torch.int8)
        found["row_scale"] = torch.rand(p.rowptr.numel() - 1, generator=rng) / 100
    if "float" in kind:
        dtype = torch.float64 if "64" in kind else torch.float32
        found["edge_weight"] = torch.randn(edges, generator=rng).to(dtype)
    if "source" in kind:
        found["source_weight"] = torch.rand(sources, generator=rng)
    return found


def steps_of(p: Problem, kind: int, rng: torch.Generator) -> dict[str, Any]:
    """One of several epilogues."""
    rows, cols = p.rowptr.numel() - 1, p.codes.size(1)
    bias = torch.randn(cols, generator=rng)
    addend = torch.randn(rows, cols, generator=rng)
    every: list[dict[str, Any]] = [
        {},
        {"bias": bias, "relu": True},
        {"reduce": "mean"},
        {"addend": addend, "addend_scale": 0.3, "row_scale": torch.rand(rows, generator=rng)},
        {"reduce": "mean", "addend": addend.half(), "bias": bias.double(), "relu": True},
    ]
    return every[kind % len(every)]


def check(p: Problem, options: dict[str, Any], rng: torch.Generator, outs: list[Any]) -> None:
    """Floats, then the codes of several quantizers, against the definition."""
    truth = by_reference(qlr.packed_spmm, p.rowptr, p.col, *p.packed, **options)
    magnitude = magnitude_of(p, options)
    ours = by_triton(qlr.packed_spmm, p.rowptr, p.col, *p.packed, **options)
    assert_close(ours, truth, magnitude)
    for bits, axis, truncate in outs:
        how = quantizer(truth, bits, axis, rng, truncate)
        named = {**options, **how.named("out_")}
        packed = by_triton(qlr.packed_spmm, p.rowptr, p.col, *p.packed, **named)
        # Joined and apart, they give the same bits.
        assert torch.equal(packed, reference.quantize_pack(ours, how))
        assert_codes(packed, truth, how, magnitude)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_sums(bits: int, weights: str) -> None:
    for axis, cols in ((AXES[bits % 3], 7), (AXES[(bits + 1) % 3], 40)):
        seed = bits + cols + len(weights)
        rng = torch.Generator().manual_seed(seed)
        p = problem(seed, targets=8, cols=cols, bits=bits, axis=axis)
        options = {**steps_of(p, seed, rng), **weights_of(p, weights, rng)}
        check(p, options, rng, [(bits, "tensor", False)] if cols == 40 else [])


@pytest.mark.parametrize("cols", (1, 33, 602))
@pytest.mark.parametrize("bits", (2, 8))
def test_rows_of_any_width(bits: int, cols: int) -> None:
    rng = torch.Generator().manual_seed(cols)
    p = problem(cols, targets=5, cols=cols, bits=bits, mean_degree=2.0)
    for weights in ("none", "int8"):
        check(p, weights_of(p, weights, rng), rng, [])


@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_codes_of_other_widths(bits: int) -> None:
    """Codes of a result that are wider or narrower than those of the sources."""
    rng = torch.Generator().manual_seed(bits)
    for cols, widths in ((20, (8, 2)), (33, (4, 1)), (130, (1, 2, 5, 8))):
        p = problem(cols, targets=5, cols=cols, bits=bits, mean_degree=2.0)
        check(p, {}, rng, [(b, "tensor", False) for b in widths])


@pytest.mark.parametrize("axis", AXES)
def test_quantizers_of_results(axis: str) -> None:
    rng = torch.Generator().manual_seed(1)
    p = problem(1, targets=6, cols=40, bits=2)
    outs = [(2, axis, False), (2, axis, True), (3, axis, True), (8, axis, False)]
    check(p, {"bias": torch.randn(40, generator=rng)}, rng, outs)


def whole_numbers(bits: int, degrees: list[int], *, full: bool, weighted: bool) -> None:
    """A sum of whole numbers, which has no error."""
    one, zero, rng = torch.tensor(1.0), torch.tensor(0.0), torch.Generator().manual_seed(0)
    rowptr = torch.nn.functional.pad(torch.tensor(degrees).cumsum(0), (1, 0))
    codes = torch.randint(2**bits, (9, 7), generator=rng, dtype=torch.uint8)
    codes = torch.full_like(codes, 2**bits - 1) if full else codes
    col = torch.randint(9, (int(rowptr[-1]),), generator=rng)
    weight = torch.randint(-128, 128, (col.numel(),), generator=rng, dtype=torch.int8)
    weight = weight.fill_(-128) if full else weight
    call = (rowptr, col, reference.pack(codes, bits), 7, bits, one, zero)
    call = (*call, weight if weighted else None)
    truth = by_reference(qlr.packed_spmm, *call)
    assert torch.equal(by_triton(qlr.packed_spmm, *call), truth)


@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_whole_numbers_are_exact(bits: int) -> None:
    """Counters that are full, in rows as long as each bin has them."""
    whole_numbers(bits, [0, 32, 128, 512], full=True, weighted=False)
    whole_numbers(bits, [1, 33, 129, 0], full=False, weighted=False)


def test_whole_numbers_times_weights_are_exact() -> None:
    whole_numbers(2, [0, 33], full=False, weighted=True)
    whole_numbers(8, [600], full=True, weighted=True)


@pytest.mark.parametrize("weights", ("none", "source"))
def test_hubs(weights: str) -> None:
    rng = torch.Generator().manual_seed(3)
    axis = "row" if weights == "source" else "tensor"
    p = problem(3, targets=4, cols=33, bits=2, hub=5000 if weights == "none" else 2100, axis=axis)
    p.rowptr = p.rowptr.int()
    options = {**steps_of(p, 4, rng), **weights_of(p, weights, rng)}
    check(p, options, rng, [(4, "column", True)])


def test_the_same_every_time() -> None:
    rng = torch.Generator().manual_seed(5)
    p = problem(5, targets=9, cols=40, bits=2, hub=200)
    weight = torch.randn(p.col.numel(), generator=rng)
    first, again = (
        by_triton(qlr.packed_spmm, p.rowptr, p.col, *p.packed, edge_weight=weight) for _ in range(2)
    )
    assert torch.equal(first, again)


def test_weights_of_any_size() -> None:
    """Weights times codes are computed below the normal floats, and leave no trace of it."""
    p = problem(2, targets=9, cols=33, bits=4, mean_degree=6.0)
    for exponent in (-60, -35, 30):
        weight = torch.rand(p.col.numel()) * 2.0**exponent
        truth = by_reference(qlr.packed_spmm, p.rowptr, p.col, *p.packed, weight)
        ours = by_triton(qlr.packed_spmm, p.rowptr, p.col, *p.packed, weight)
        assert_close(ours, truth, magnitude_of(p, {"edge_weight": weight}))


def test_what_is_no_number_stays_none() -> None:
    p = problem(4, targets=9, cols=7, bits=2)
    weight = torch.ones(p.col.numel())
    weight[3] = torch.nan
    y = by_triton(qlr.packed_spmm, p.rowptr, p.col, *p.packed, edge_weight=weight, relu=True)
    lost = (p.rowptr[:-1] <= 3) & (p.rowptr[1:] > 3)
    assert torch.equal(y.isnan().any(dim=1), lost)


def test_nothing() -> None:
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    none = torch.zeros(0, dtype=torch.int32)
    bias = torch.arange(5.0) - 2
    for rows, sources in ((3, 0), (3, 4), (0, 4)):
        packed = torch.zeros(sources, 16, dtype=torch.uint8)
        rowptr = torch.zeros(rows + 1, dtype=torch.long)
        y = by_triton(qlr.packed_spmm, rowptr, none, packed, 5, 2, one, zero, bias=bias, relu=True)
        assert torch.equal(y, bias.relu().expand(rows, 5))


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_every_bin_is_exact(bits: int) -> None:
    degrees = [0, 1, 31, 32, 33, 128, 129, 512, 513, 2048, 2049, 5000, 0]
    for full, weighted in itertools.product((True, False), repeat=2):
        whole_numbers(bits, degrees, full=full, weighted=weighted)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_everything_with_everything(bits: int, weights: str) -> None:
    cases = itertools.product(AXES, WIDTHS, range(5), (0, 140, 600))
    for seed, (axis, cols, steps, hub) in enumerate(cases):
        rng = torch.Generator().manual_seed(seed)
        p = problem(seed, targets=12, cols=cols, bits=bits, axis=axis, hub=hub)
        options = {**steps_of(p, steps, rng), **weights_of(p, weights, rng)}
        outs = [(b, AXES[seed % 3], bool(seed % 2)) for b in (1, 2, 4, 6, 8)]
        check(p, options, rng, outs)
