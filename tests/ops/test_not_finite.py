"""A number that is not a number stays one, or is refused; it never becomes a code."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.helpers.kernel_cases import ISAS, REFUSED, problem
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.ops import QParams, reference, use_backend

pytestmark = pytest.mark.cpu

qlr = torch.ops.qlr
every_backend = pytest.mark.parametrize("backend", ["reference", *ISAS])
every_value = pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
every_width = pytest.mark.parametrize("bits", (1, 2, 3, 4, 8))
COLS = 83


def output(bits: int, *, truncate: bool = False, axis: str = "tensor") -> dict[str, Any]:
    """Fast paths and slow ones: thresholds, fixed point, division."""
    shape = (1, COLS) if axis == "column" else ()
    names = ("out_scale", "out_zero_point", "out_bits", "out_truncate")
    return dict(
        zip(names, (torch.full(shape, 0.5), torch.ones(shape), bits, truncate), strict=True)
    )


def spoilt(x: torch.Tensor, bad: float, at: int = -1) -> torch.Tensor:
    x = x.clone()
    x.view(-1)[at] = bad
    return x


@every_backend
@every_value
@pytest.mark.parametrize("axis", ("tensor", "row", "column"))
@pytest.mark.parametrize("scale", (0.5, 1e30))
def test_quantize_pack_says_where(backend, bad, axis, scale):
    shape = {"tensor": (), "row": (9, 1), "column": (1, COLS)}[axis]
    places = ((0, 0), (5, 31), (8, COLS - 1))
    for bits, truncate, place in itertools.product((1, 2, 3, 4, 8), (False, True), places):
        arguments, (row, column) = (
            (torch.full(shape, scale), torch.zeros(shape), bits, truncate),
            place,
        )
        x = torch.zeros(9, COLS)
        x[row, column] = bad
        words = rf"x\[{row}, {column}\] is"
        with use_backend(backend), pytest.raises(InputError, match=words):
            qlr.quantize_pack(x, *arguments)


SPOILT = ("bias", "addend", "edge_weight", "source_weight", "row_scale", "scale", "zero_point")


@every_backend
@every_value
@every_width
@pytest.mark.parametrize("what", SPOILT)
def test_sums(backend, bad, bits, what):
    case = problem(1, cols=COLS, bits=4)
    rng = torch.Generator().manual_seed(0)
    arguments = {
        "rowptr": case.rowptr,
        "col": case.col,
        "packed": reference.pack(case.codes, 4),
        "num_cols": COLS,
        "bits": 4,
        "scale": case.scale,
        "zero_point": case.zero_point,
        "bias": torch.randn(COLS, generator=rng),
        "addend": torch.randn(9, COLS, generator=rng),
        "row_scale": torch.rand(9, generator=rng),
    }
    if what == "source_weight":
        arguments[what] = torch.rand(12, generator=rng)
        arguments[what][case.col[0]] = bad
    elif what == "edge_weight":
        arguments[what] = spoilt(torch.rand(case.col.numel(), generator=rng), bad)
    else:  # the last row has edges
        arguments[what] = spoilt(arguments[what], bad)
    for more in ({}, {"truncate": True}, {"axis": "column"}):
        with use_backend(backend):
            assert not qlr.packed_spmm(**arguments).isfinite().all()
            with pytest.raises(InputError, match="packed_spmm: the value to quantize holds NaN"):
                qlr.packed_spmm(**arguments, **output(bits, **more))


@every_backend
@every_width
@pytest.mark.parametrize("biased", (False, True))
def test_relu_keeps_nan_and_ends_minus_infinity(backend, bits, biased):
    case = problem(1, cols=COLS)
    more = {"relu": True, "bias": torch.ones(COLS) if biased else None}
    call = (case.rowptr, case.col, *case.packed)
    addend = torch.zeros(9, COLS)
    with use_backend(backend):
        lowest = spoilt(addend, float("-inf"))
        y = qlr.packed_spmm(*call, addend=lowest, **more)
        assert y.isfinite().all()
        ours = qlr.packed_spmm(*call, addend=lowest, **more, **output(bits))
        to = output(bits)
        assert torch.equal(ours, qlr.quantize_pack(y, *list(to.values())))
        assert qlr.packed_spmm(*call, addend=spoilt(addend, float("nan")), **more).isnan().any()
        with pytest.raises(REFUSED, match="NaN or Inf"):
            qlr.packed_spmm(*call, addend=spoilt(addend, float("nan")), **more, **output(bits))


@every_backend
@every_value
@every_width
def test_attention_and_products(backend, bad, bits):
    case = problem(1, cols=COLS)
    alpha = spoilt(torch.rand(case.col.numel(), 1), bad)
    weight = (reference.pack(case.codes, 2), 2)
    params = case.packed[-2:]
    to = output(bits)
    with use_backend(backend):
        with pytest.raises(REFUSED, match="packed_attention: the value"):
            qlr.packed_attention(case.rowptr, case.col, *case.packed, alpha, **to)
        for bias, scale in ((spoilt(torch.ones(12), bad), params[0]), (None, torch.tensor(bad))):
            call = (*case.packed, *weight, scale, params[1], bias)
            assert not qlr.packed_linear(*call).isfinite().all()
            with pytest.raises(REFUSED, match="packed_linear: the value"):
                qlr.packed_linear(*call, **to)


@every_backend
@every_value
def test_steps_that_follow_each_other(backend, bad):
    case = problem(1, targets=12, cols=COLS)
    steps = (torch.ones(2), torch.zeros(2), 2)
    x = spoilt(torch.rand(12, COLS), bad)
    with use_backend(backend):
        with pytest.raises(REFUSED, match="packed_propagate: the value"):
            qlr.packed_propagate(case.rowptr, case.col, *case.packed, *steps, addend=x)
        with pytest.raises(REFUSED, match="packed_smp: the value"):
            qlr.packed_smp(case.rowptr, case.col, x, *steps)


@every_backend
@pytest.mark.parametrize("scale", (float("nan"), float("inf"), 0.0, -0.5, 1e-42, 3e38))
@pytest.mark.parametrize("zero", (0.0, float("nan"), float("inf"), -float("inf"), 1e30))
@pytest.mark.parametrize("truncate", (False, True))
def test_any_range_has_codes(backend, scale, zero, truncate):
    x = torch.tensor([[0.0, 1.0, -1.0, 1e30, -3e38]]).expand(3, 5)
    skews = (None, torch.tensor(float("nan")), torch.tensor(float("inf")))
    for bits, skew in itertools.product((1, 2, 3, 4, 8), skews):
        arguments = (torch.tensor(scale), torch.tensor(zero), bits)
        truth = reference.quantize(x, QParams(*arguments, truncate=truncate, skew=skew))
        assert bool((truth.int() < 2**bits).all())
        with use_backend(backend):
            packed = qlr.quantize_pack(x, *arguments, truncate, skew)
        assert torch.equal(packed, reference.pack(truth, reference.storage_bits(bits)))


@every_backend
@every_value
@pytest.mark.parametrize("truncate", (False, True))
def test_fake_quantization_hands_on_what_is_not_finite(backend, bad, truncate):
    x = torch.randn(7, COLS, requires_grad=True)
    with torch.no_grad():
        x[3, 5] = bad
    scale = torch.tensor(0.3, requires_grad=True)
    with use_backend(backend):
        x_hat, mask = qlr.fake_quantize(x, scale, torch.tensor(2.0), 4, truncate)
        x_hat.sum().backward()
    assert torch.equal(x_hat[3, 5].nan_to_num(7.0), torch.tensor(bad).nan_to_num(7.0))
    assert not mask[3, 5]
    assert x_hat.isfinite().sum() == x.numel() - 1
    assert x.grad[3, 5] == 0
    assert x.grad.isfinite().all()
    clean = x.detach().clone()
    clean[3, 5] = 0.0
    others = spoilt(torch.ones(7, COLS), 0.0, 3 * COLS + 5)
    again = scale.detach().clone().requires_grad_()
    with use_backend(backend):
        y, _ = qlr.fake_quantize(clean, again, torch.tensor(2.0), 4, truncate)
        (y * others).sum().backward()
    torch.testing.assert_close(scale.grad, again.grad, rtol=1e-4, atol=1e-4)
