"""The kernels of training against their definitions, on whatever device there is for them.

In Triton's interpreter, in a process in which nobody has imported Triton before (see
``test_triton_training.py``); on a GPU with ``--device cuda``.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.kernel_cases import axis_strategy, parameters
from torch_geometric_qlr.ops import QParams, reference, use_backend
from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.backend import NoKernel
from torch_geometric_qlr.ops.schemas import SIGNATURES

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not IS_INTERPRETED and torch.get_default_device().type == "cpu",
    reason="needs TRITON_INTERPRET=1 before Python starts, or --device cuda",
)
AXES = {"tensor": -1, "row": 0, "column": 1}
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: With more than one tile along a group, and more groups than one program has.
SHAPES = ((1, 1), (3, 5), (23, 33), (70, 129), (1, 5000), (5000, 1), (300, 40))
ODD = (torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-40, 3e38)


def launched(op: str, *arguments: Any) -> tuple[Tensor, ...]:
    """What the kernel gives."""
    # Not above: whoever looks for examples in docstrings imports this file, with or without Triton.
    from torch_geometric_qlr.ops.triton.fake_quantize import KERNELS

    found: tuple[Tensor, ...] = KERNELS[op](Arguments.of(SIGNATURES[op], arguments, {}))
    return found


def defined(op: str, *arguments: Any) -> tuple[Tensor, ...]:
    """What the op is defined to give."""
    with use_backend("reference"), torch.no_grad():
        found: tuple[Tensor, ...] = getattr(torch.ops.qlr, op)(*arguments)
    return found


def rounded(op: str, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """What the op is defined to give, as it is stored: Triton's interpreter cuts bfloat16 off where
    it should round."""
    truth = defined(op, x, *rest)
    if x.dtype != torch.bfloat16 or not IS_INTERPRETED:
        return truth
    wide = defined(op, x.float(), *rest)[0]
    return (wide.view(torch.int32) & -(1 << 16)).view(torch.float32).to(x.dtype), *truth[1:]


def assert_same(ours: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> None:
    """To the last bit; a NaN is one in both."""
    for a, b in zip(ours, truth, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def assert_same_average(ours: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> None:
    """The same where a range moves on. Before 3.9 Triton's interpreter rounds a product before it
    adds to it, other than any GPU: there a moving average may be a last bit off, and a value beside
    a middle get another code."""
    if tuple(int(n) for n in version("triton").split(".")[:2]) >= (3, 9):
        return assert_same(ours, truth)
    for a, b in zip(ours, truth, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
        near = torch.isclose(a.float(), b.float(), rtol=1e-5, atol=1e-7, equal_nan=True)
        assert near.float().mean() >= 0.99 or (~near).sum() <= 1
    return None


def assert_sums_close(ours: Tensor, truth: Tensor, terms: Tensor) -> None:
    """Within 1e-5 of the scale of what was added up."""
    assert (ours.shape, ours.dtype) == (truth.shape, truth.dtype)
    size = float(terms[terms.isfinite()].abs().sum())
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-6 * size, equal_nan=True)


def values(data: st.DataObject, rng: torch.Generator) -> Tensor:
    """A matrix that may be turned, of any type, around zero or far from it."""
    rows, cols = data.draw(st.sampled_from(SHAPES))
    x = torch.randn(rows, cols, generator=rng) * 10.0 ** data.draw(st.integers(-6, 3))
    x = x + data.draw(st.sampled_from((0.0, 0.0, 2.0)))
    return x.to(data.draw(st.sampled_from(DTYPES)))


def turned(x: Tensor, data: st.DataObject) -> Tensor:
    return x.t().contiguous().t() if data.draw(st.booleans()) else x


@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])  # one run takes a second
@given(st.data(), st.integers(1, 8), axis_strategy, st.booleans(), st.booleans())
def test_fake_quantize(
    data: st.DataObject, bits: int, axis: str, truncate: bool, has_skew: bool
) -> None:
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    x = values(data, rng)
    scale, zero = parameters(*x.shape, axis, 8 if truncate else bits, rng)
    scale = scale * x[x.isfinite()].abs().float().mean().clamp_min(1e-6)
    if data.draw(st.booleans()):
        zero = zero.reshape(-1)[:1].reshape(())  # one for all
    for at, odd in enumerate(ODD[: x.numel()]):
        x.view(-1)[-1 - at] = odd
    skew = torch.tensor(data.draw(st.sampled_from((50.0, -30.0)))) if has_skew else None
    arguments = (turned(x, data), scale, zero, bits, truncate, skew)
    found = launched("fake_quantize", *arguments)
    assert_same(found, rounded("fake_quantize", *arguments))

    x_hat, mask = found
    grad = torch.randn(x.shape, generator=rng).to(x.dtype)
    back = (turned(grad, data), x, x_hat, mask, AXES[axis])
    grad_x, reduced = launched("fake_quantize_backward", *back)
    expected = defined("fake_quantize_backward", *back)
    assert_same((grad_x,), expected[:1])
    assert_sums_close(reduced, expected[1], grad.double() * (x.double() + x_hat.double()))


@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])  # one run takes a second
@given(st.data(), st.integers(1, 8), st.sampled_from((-1, 0, 1)), st.booleans(), st.booleans())
def test_observed_quantize(
    data: st.DataObject, bits: int, axis: int, truncate: bool, aligned: bool
) -> None:
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    x = values(data, rng)
    groups = (*x.shape, 1)[axis]
    lo = hi = None
    if data.draw(st.booleans()):
        lo, hi = (torch.rand(groups, generator=rng) * end for end in (-3.0, 5.0))
    gamma = torch.rand(groups if data.draw(st.booleans()) else (), generator=rng) * 2 - 0.1
    momentum = data.draw(st.sampled_from((0.1, 0.3, 0.5, 0.9, 1.0)))
    factor = data.draw(st.sampled_from((1.0, 0.01)))
    flags = (bits, truncate, aligned, momentum, factor)
    arguments = (turned(x, data), gamma, lo, hi, axis, *flags)
    found = launched("observed_quantize", *arguments)
    assert_same_average(found, rounded("observed_quantize", *arguments))

    x_hat, mask, scale, _, own_scale = found[:5]
    grad = torch.randn(x.shape, generator=rng).to(x.dtype)
    back = (grad, x, x_hat, mask, scale, own_scale, factor)
    grad_x, grad_gamma = launched("observed_quantize_backward", *back)
    expected = defined("observed_quantize_backward", *back)
    assert_same((grad_x,), expected[:1])
    ratio = (own_scale / scale).abs().max() * factor
    assert_sums_close(grad_gamma, expected[1], grad.double() * (x.double() + x_hat) * ratio)


@pytest.mark.parametrize("axis", (-1, 0, 1))
@pytest.mark.parametrize("kept", (True, False))
def test_what_is_no_number_moves_no_range_and_is_not_rounded(
    axis: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU, where nobody looks.
    for module in ("triton.fake_quantize", "definitions.observed"):
        monkeypatch.setattr(f"torch_geometric_qlr.ops.{module}.finite", lambda x: x)
    x = torch.randn(6, 5000)
    x[0, 0], x[1, 7], x[2, 4999] = torch.nan, torch.inf, -torch.inf
    groups = (*x.shape, 1)[axis]
    lo, hi = (torch.full((groups,), end) for end in (-2.0, 2.0)) if kept else (None, None)
    arguments = (x, torch.tensor(0.9), lo, hi, axis, 4)
    assert_same_average(
        launched("observed_quantize", *arguments), defined("observed_quantize", *arguments)
    )


@pytest.mark.parametrize("axis", (-1, 0, 1))
def test_sums_are_the_same_every_time(axis: int) -> None:
    x, grad = torch.randn(2, 700, 90)
    x_hat, mask = reference.fake_quantize(x, QParams(torch.tensor(0.3), torch.tensor(7.0), 4))
    sums = [launched("fake_quantize_backward", grad, x, x_hat, mask, axis)[1] for _ in range(3)]
    assert all(torch.equal(sums[0], other) for other in sums[1:])


def test_a_vector_and_stacks_have_one_range() -> None:
    for shape in ((7,), (2, 3, 5), ()):
        x = torch.randn(shape)
        arguments = (x, torch.tensor(0.9), None, None, -1, 4)
        assert_same(
            launched("observed_quantize", *arguments), defined("observed_quantize", *arguments)
        )
        given_range = (x, torch.full((1, 1), 0.3), torch.zeros(()), 4)
        assert_same(launched("fake_quantize", *given_range), defined("fake_quantize", *given_range))


def test_results_have_memory_of_their_own() -> None:
    numbers = launched("observed_quantize", torch.randn(4, 5), torch.ones(()), None, None, 0, 4)
    assert len({n.untyped_storage().data_ptr() for n in numbers}) == len(numbers)


def test_nothing_is_left_to_the_definition() -> None:
    with pytest.raises(NoKernel):
        launched("fake_quantize", torch.empty(0, 3), torch.ones(()), torch.zeros(()), 4)
