"""One step of a range that learns: the kernel against the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.kernel_cases import ISAS, by_definition
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.ops import use_backend

qlr = torch.ops.qlr
every_isa = pytest.mark.parametrize("isa", ISAS or ("reference",))
FILLS = (0.0, -0.0, 1e-30, -1e-38, 3e38, -3e38, 255.0, 0.5)


def same(ours: tuple[torch.Tensor, ...], truth: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(ours, truth, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@every_isa
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_steps(isa: str, data: st.DataObject) -> None:
    draw = data.draw
    rows, cols = draw(st.integers(0, 40)), draw(st.integers(0, 140))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randn(rows, cols, generator=generator) * 10 ** draw(st.integers(-12, 12))
    if x.numel() and draw(st.booleans()):
        x[draw(st.integers(0, rows - 1))] = draw(st.sampled_from(FILLS))
    x = x.abs() if draw(st.booleans()) else x
    x = x.to(draw(st.sampled_from((torch.float32, torch.float32, torch.float64, torch.bfloat16))))
    x = x.t().contiguous().t() if draw(st.booleans()) else x
    axis = draw(st.integers(-1, 1))
    groups = (rows, cols, 1)[axis]
    if axis == -1 and draw(st.booleans()):
        x = x.reshape(draw(st.sampled_from(((-1,), (1, rows, cols), (rows, 1, cols)))))
    lo = hi = None
    if draw(st.booleans()):
        lo, hi = (torch.rand(groups, generator=generator) * end for end in (-3.0, 5.0))
    gamma = torch.rand(groups if draw(st.booleans()) else (), generator=generator) * 2 - 0.1
    flags = (draw(st.booleans()), draw(st.booleans()))
    numbers = (draw(st.sampled_from((0.1, 0.3, 0.5, 0.9, 1.0))), draw(st.sampled_from((1.0, 0.01))))
    arguments = (x, gamma, lo, hi, axis, draw(st.integers(1, 8)), *flags, *numbers)
    with use_backend(isa):
        found = qlr.observed_quantize(*arguments)
    same(found, by_definition(qlr.observed_quantize, *arguments))
    x_hat, mask, scale, _, own_scale = found[:5]
    back = (torch.randn(x.shape, generator=generator), x, x_hat, mask, scale, own_scale, numbers[1])
    with use_backend(isa):
        grad_x, grad_gamma = qlr.observed_quantize_backward(*back)
        reduced = qlr.fake_quantize_backward(*back[:4], -1 if scale.numel() == 1 else axis)[1]
    truth = by_definition(qlr.observed_quantize_backward, *back)
    same((grad_x,), truth[:1])
    # The sum is the other op's, which adds in another order than the definition.
    same((grad_gamma,), (reduced.view(scale.shape) / scale * own_scale * numbers[1],))
    assert grad_gamma.shape == truth[1].shape


@every_isa
@pytest.mark.parametrize("axis", (-1, 0, 1))
def test_large_ones_are_measured_in_pieces(isa: str, axis: int) -> None:
    x = torch.randn(1000, 130)
    x[537, 77] = -50.0
    groups = (1000, 130, 1)[axis]
    lo, hi = torch.zeros(groups), torch.ones(groups)
    arguments = (x, torch.tensor(0.9), lo, hi, axis, 4)
    with use_backend(isa):
        found = qlr.observed_quantize(*arguments)
    same(found, by_definition(qlr.observed_quantize, *arguments))


@pytest.mark.cpu
@every_isa
@pytest.mark.parametrize("axis", (-1, 0, 1))
@pytest.mark.parametrize("bad", (torch.nan, torch.inf, -torch.inf))
@pytest.mark.parametrize("shape", ((40, 33), (3, 5), (80, 128)))
def test_what_has_no_range_is_refused(
    isa: str, axis: int, bad: float, shape: tuple[int, int]
) -> None:
    for at in (0, 14, -1):
        x = torch.randn(shape)
        x.view(-1)[at] = bad
        with use_backend(isa), pytest.raises(InputError, match="NaN or Inf"):
            qlr.observed_quantize(x, torch.ones(()), None, None, axis, 4)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"lo": torch.zeros(())}, "come together"),
        ({"lo": torch.zeros(2), "hi": torch.zeros(2)}, "lo has 2 elements"),
        ({"gamma": torch.ones(3)}, "gamma has 3 elements"),
        ({"axis": 2}, "axis is -1"),
        ({"lo": torch.zeros((), dtype=torch.int64), "hi": torch.zeros(())}, "lo is torch.int64"),
        ({"bits": 9}, "bits"),
    ],
)
def test_what_does_not_fit_is_named(wrong: dict[str, object], words: str) -> None:
    right = {"x": torch.ones(4, 5), "gamma": torch.ones(()), "lo": None, "hi": None, "axis": -1}
    with pytest.raises(ValueError, match=words):
        qlr.observed_quantize(**{**right, "bits": 4, **wrong})
