"""The fused fake quantization: values, mask, and gradients by finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.kernel_cases import (
    ISAS,
    axis_strategy,
    parameters,
    seed_strategy,
    width_strategy,
)
from torch_geometric_qlr.ops import QParams, reference, use_backend

qlr = torch.ops.qlr
every_backend = pytest.mark.parametrize("backend", ["reference", *ISAS])
AXES = {"tensor": -1, "row": 0, "column": 1}


@every_backend
@settings(max_examples=40, deadline=None)
@given(seed_strategy, st.integers(1, 8), width_strategy, axis_strategy, st.booleans())
def test_forward_and_backward(backend, seed, bits, cols, axis, truncate):
    rng = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(23, cols, generator=rng) * 3 for _ in range(2))
    scale, zero = parameters(23, cols, axis, 8 if truncate else bits, rng)
    skew = torch.tensor(50.0) if truncate and seed % 2 else None
    truth = reference.fake_quantize(x, QParams(scale, zero, bits, truncate=truncate, skew=skew))
    with use_backend(backend):
        x_hat, mask = qlr.fake_quantize(x, scale, zero, bits, truncate, skew)
        grad_x, reduced = qlr.fake_quantize_backward(grad, x, x_hat, mask, AXES[axis])
    assert torch.equal(x_hat, truth[0])
    assert torch.equal(mask, truth[1])
    expected = reference.fake_quantize_backward(grad, x, *truth, AXES[axis])
    assert torch.equal(grad_x, expected[0])
    size = float((grad * x).abs().sum())
    torch.testing.assert_close(reduced, expected[1], rtol=1e-5, atol=1e-6 * size)


@every_backend
def test_scale_gradient_matches_finite_differences_where_clipped(backend):
    # Far out of range the value is top * scale, so the difference quotient is exact.
    x = torch.tensor([[50.0, -40.0, 60.0]])
    scale = torch.tensor(0.5, requires_grad=True)
    with use_backend(backend):
        qlr.fake_quantize(x, scale, torch.tensor(3.0), 4)[0].sum().backward()
        low, high = (
            qlr.fake_quantize(x, torch.tensor(s), torch.tensor(3.0), 4)[0].sum()
            for s in (0.4375, 0.5625)
        )
    torch.testing.assert_close(scale.grad, (high - low) / 0.125)


@every_backend
def test_gradient_of_x_is_cut_outside_the_range(backend):
    x = torch.tensor([-9.0, -0.4, 0.4, 9.0], requires_grad=True)
    with use_backend(backend):
        qlr.fake_quantize(x, torch.tensor(1.0), torch.tensor(1.0), 2)[0].sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16))
def test_other_dtypes_keep_their_dtype(dtype):
    x = torch.randn(4, 5).to(dtype).requires_grad_()
    scale = torch.tensor(0.3, requires_grad=True)
    y, mask = qlr.fake_quantize(x, scale, torch.tensor(2.0), 3)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert scale.grad is not None
    assert mask.dtype == torch.bool


@pytest.mark.cpu
@pytest.mark.skipif(not ISAS, reason="the C++ kernels are not built here")
@pytest.mark.parametrize("axis", (-1, 1))
def test_reduction_does_not_depend_on_the_number_of_threads(axis):
    x, grad = torch.randn(2, 4000, 50)
    scale = torch.rand(1, 50) + 0.1 if axis == 1 else torch.tensor(0.3)
    x_hat, mask = qlr.fake_quantize(x, scale, torch.zeros_like(scale), 4)
    before, sums = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            sums.append(qlr.fake_quantize_backward(grad, x, x_hat, mask, axis)[1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*sums)


def test_empty_input():
    y, _ = qlr.fake_quantize(torch.empty(0, 5), torch.tensor(1.0), torch.tensor(0.0), 4)
    grad, reduced = qlr.fake_quantize_backward(y, y, y, y.bool(), -1)
    assert grad.shape == (0, 5)
    assert reduced == 0
