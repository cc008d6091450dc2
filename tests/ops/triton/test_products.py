"""Products of packed matrices."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.helpers.kernel_cases import by_definition, parameters
from tests.helpers.triton_cases import (
    assert_close,
    assert_codes,
    by_reference,
    by_triton,
    quantizer,
)
from torch_geometric_qlr.errors import QLRWarning
from torch_geometric_qlr.ops import reference

qlr = torch.ops.qlr


def matrices(
    seed: int, bits: int, weight_bits: int, shape: tuple[int, int, int], axes: tuple[str, str]
):
    """The arguments of a product."""
    rows, cols, outputs = shape
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(2**bits, (rows, cols), generator=rng, dtype=torch.uint8)
    w = torch.randint(2**weight_bits, (outputs, cols), generator=rng, dtype=torch.uint8)
    x_params = parameters(rows, cols, axes[0], bits, rng)
    w_params = parameters(outputs, cols, axes[1], weight_bits, rng)
    left = (reference.pack(x, bits), cols, bits, *x_params)
    return (*left, reference.pack(w, weight_bits), weight_bits, *w_params), rng


def check(
    seed: int, bits: int, weight_bits: int, shape: tuple[int, int, int], out_bits: int
) -> None:
    """A product as floats and as codes."""
    axes = [("tensor", "row"), ("row", "tensor"), ("row", "row"), ("tensor", "tensor")][seed % 4]
    call, rng = matrices(seed, bits, weight_bits, shape, axes)
    options = {"bias": torch.randn(shape[2], generator=rng), "relu": bool(seed % 2)}
    truth = by_reference(qlr.packed_linear, *call, **options)
    ours = by_triton(qlr.packed_linear, *call, **options)
    magnitude = float(qlr.dequantize_packed(*call[:5]).norm(dim=1).max())
    assert_close(ours, truth, magnitude)
    if out_bits:
        how = quantizer(truth, out_bits, ("tensor", "row", "column")[seed % 3], rng, seed % 2 == 1)
        packed = by_triton(qlr.packed_linear, *call, **options, **how.named("out_"))
        assert torch.equal(packed, reference.quantize_pack(ours, how))
        assert_codes(packed, truth, how, magnitude)


@pytest.mark.parametrize("weight_bits", (1, 2, 4, 8))
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_products(bits: int, weight_bits: int) -> None:
    shape = (70, 33, 40) if bits == weight_bits else (5, 150, 7)
    check(bits + weight_bits, bits, weight_bits, shape, bits)


@pytest.mark.parametrize("out_bits", (1, 2, 3, 4, 5, 8))
def test_codes_of_products(out_bits: int) -> None:
    check(out_bits, 2, 8, (9, 40, 150), out_bits)


@pytest.mark.parametrize("cols,outputs", [(1, 1), (602, 40), (7, 150)])
def test_products_of_any_width(cols: int, outputs: int) -> None:
    for bits in (2, 8):
        check(cols + bits, bits, 8, (6, cols, outputs), bits)


@pytest.mark.parametrize("bits", (2, 8))
def test_whole_numbers_are_exact(bits: int) -> None:
    (packed, cols, bits, _, _, weight, weight_bits, _, _), _ = matrices(
        1, bits, 8, (9, 150, 7), ("tensor", "tensor")
    )
    one, zero = torch.tensor(1.0), torch.tensor(100.0)
    call = (packed, cols, bits, one, zero, weight, weight_bits, one, zero)
    assert torch.equal(by_triton(qlr.packed_linear, *call), by_definition(qlr.packed_linear, *call))


def test_weights_are_read_again_when_they_change() -> None:
    call, _ = matrices(1, 4, 4, (5, 33, 7), ("tensor", "tensor"))
    before = by_triton(qlr.packed_linear, *call)
    call[5].zero_()
    after = by_triton(qlr.packed_linear, *call)
    assert not torch.equal(before, after)
    assert_close(after, by_reference(qlr.packed_linear, *call))


def test_scales_along_the_sum_have_no_kernel() -> None:
    call, _ = matrices(1, 4, 4, (5, 33, 7), ("column", "tensor"))
    with pytest.warns(QLRWarning, match="scales that differ along the columns"):
        ours = by_triton(qlr.packed_linear, *call)
    assert torch.equal(ours, by_reference(qlr.packed_linear, *call))


def test_nothing() -> None:
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    for rows, cols, outputs in ((0, 5, 3), (4, 5, 0), (4, 0, 3)):
        x, w = (torch.zeros(n, 16, dtype=torch.uint8) for n in (rows, outputs))
        call = (x, cols, 2, one, zero, w, 2, one, zero, torch.ones(outputs))
        truth = by_reference(qlr.packed_linear, *call)
        assert torch.equal(by_triton(qlr.packed_linear, *call), truth)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_everything_with_everything(bits: int) -> None:
    shapes = itertools.product((1, 70), (1, 33, 602), (1, 7, 40, 150))
    cases = itertools.product(shapes, (1, 2, 4, 8), (2, 5, 8))
    for seed, (shape, weight_bits, out_bits) in enumerate(cases):
        check(seed, bits, weight_bits, shape, out_bits)
