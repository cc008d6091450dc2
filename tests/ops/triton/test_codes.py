"""Values to packed codes and back."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.kernel_cases import parameters
from tests.helpers.triton_cases import by_reference, by_triton
from torch_geometric_qlr.errors import InputError

qlr = torch.ops.qlr
WIDTHS = (1, 7, 33, 40, 602)
AXES = ("tensor", "row", "column")


def values(seed: int, rows: int, cols: int, axis: str, bits: int, truncate: bool):
    """Values of which half lie exactly between two codes."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, cols, generator=rng) * 3
    scale, zero = parameters(rows, cols, axis, 8 if truncate else bits, rng)
    if seed % 2:
        x, zero = (x / scale).round() * scale + scale / 2, zero.round()
    return x, scale, zero


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_those_of_the_definition(bits: int, axis: str) -> None:
    for seed, (cols, truncate) in enumerate(
        ((40, False), (40, True), (150, bits % 2 == 0), (7, False))
    ):
        x, scale, zero = values(seed, 11, cols, axis, bits, truncate)
        skew = torch.tensor(-40.25) if truncate and cols == 40 else None
        call = (x, scale, zero, bits, truncate, skew)
        expected = by_reference(qlr.quantize_pack, *call)
        assert torch.equal(by_triton(qlr.quantize_pack, *call), expected)


@pytest.mark.parametrize("cols", WIDTHS)
def test_rows_of_any_width(cols: int) -> None:
    for bits in (1, 2, 4, 8):
        x, scale, zero = values(1, 5, cols, "tensor", bits, False)
        packed = by_triton(qlr.quantize_pack, x, scale, zero, bits)
        assert torch.equal(packed, by_reference(qlr.quantize_pack, x, scale, zero, bits))
        codes = by_triton(qlr.unpack, packed, cols, bits)
        assert torch.equal(codes, by_reference(qlr.unpack, packed, cols, bits))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("magnitudes", [(-10, 10), (-76, 20), (-120, 100), (90, 127)])
def test_quotients_are_rounded_once_at_every_magnitude(magnitudes, axis) -> None:
    """The kernels multiply by an inverse and correct; the definition divides."""
    rng = torch.Generator().manual_seed(magnitudes[1])
    rows, cols, bits = 40, 97, 8
    scale, zero = parameters(rows, cols, axis, bits, rng)
    scale = torch.ldexp(scale, torch.randint(*magnitudes, scale.shape, generator=rng))
    zero = zero.round()  # so that quotients end in a half, or next to it
    quotient = torch.randint(0, 600, (rows, cols), generator=rng) / 2 - zero
    x = quotient * scale * (1 + torch.randint(-2, 3, (rows, cols), generator=rng) * 2.0**-24)
    noise = torch.randint(-(2**31), 2**31, (rows, cols), generator=rng, dtype=torch.int32)
    x[::5] = noise.view(torch.float32)[::5]
    x = x.nan_to_num(1.0, 3e38, -3e38)
    truth = by_reference(qlr.quantize_pack, x, scale, zero, bits)
    assert torch.equal(by_triton(qlr.quantize_pack, x, scale, zero, bits), truth)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_other_floats(dtype: torch.dtype) -> None:
    x, scale, zero = values(0, 9, 40, "column", 4, False)
    call = (x.to(dtype).t().contiguous().t(), scale.to(dtype), zero.to(dtype), 4)
    expected = by_reference(qlr.quantize_pack, *call)
    assert torch.equal(by_triton(qlr.quantize_pack, *call), expected)


@pytest.mark.parametrize("truncate,aligned", [(False, False), (True, False), (True, True)])
def test_ranges_of_rows(truncate: bool, aligned: bool) -> None:
    for bits, cols in ((1, 40), (2, 1), (2, 602), (3, 40), (4, 7), (8, 40)):
        x = torch.randn(9, cols, generator=torch.Generator().manual_seed(cols)) * 2
        x[2], x[3], x[4] = 0.0, x[3].abs() + 1, 1e-25
        skew = torch.tensor(3.5) if truncate else None
        call = (x, torch.tensor(0.9), bits, truncate, aligned, skew)
        for ours, truth in zip(
            by_triton(qlr.quantize_rows, *call), by_reference(qlr.quantize_rows, *call), strict=True
        ):
            assert torch.equal(ours, truth)


def test_values_that_are_not_finite_are_refused_on_a_cpu() -> None:
    x = torch.zeros(3, 5)
    x[1, 2] = torch.nan
    with pytest.raises(InputError, match=r"x\[1, 2\] is nan"):
        by_triton(qlr.quantize_pack, x, torch.tensor(1.0), torch.tensor(0.0), 4)
    with pytest.raises(InputError, match=r"x\[1, 2\] is nan"):
        by_triton(qlr.quantize_rows, x, torch.tensor(1.0), 4)


def test_nothing() -> None:
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    for shape in ((0, 5), (3, 0), (0, 0)):
        packed = by_triton(qlr.quantize_pack, torch.zeros(shape), one, zero, 2)
        assert torch.equal(packed, torch.zeros(shape[0], 16, dtype=torch.uint8))
        assert by_triton(qlr.unpack, packed, shape[1], 2).shape == shape
        assert by_triton(qlr.quantize_rows, torch.zeros(shape), one, 2)[1].shape == (shape[0], 1)
