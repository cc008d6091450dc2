"""A fused epilogue gives bit for bit what its steps give one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.kernel_cases import (
    ISAS,
    axis_strategy,
    bits_strategy,
    parameters,
    problem,
    seed_strategy,
    width_strategy,
)
from torch_geometric_qlr.ops import reference, use_backend

qlr = torch.ops.qlr

every_backend = pytest.mark.parametrize("backend", ["reference", *ISAS])
examples = settings(max_examples=30, deadline=None)
out_bits_strategy = st.sampled_from((None, 1, 2, 3, 4, 8))


def steps_apart(y: Tensor, rowptr: Tensor | None = None, **steps: Any) -> Tensor:
    """What an epilogue does to float32 sums, by operations of torch."""
    if steps.get("reduce") == "mean":
        assert rowptr is not None
        y = y / rowptr.diff().clamp(min=1).view(-1, 1)
    if steps.get("row_scale") is not None:
        y = y * steps["row_scale"].view(-1, 1)
    if steps.get("addend") is not None:
        y = y + steps["addend_scale"] * steps["addend"]
    if steps.get("bias") is not None:
        y = y + steps["bias"]
    return y.relu() if steps.get("relu") else y


def output_of(seed: int, y: Tensor, bits: int | None) -> tuple[dict[str, Any], Tensor]:
    """A quantizer for results like these, and what it makes of them; or none."""
    if bits is None:
        return {}, y
    rng = torch.Generator().manual_seed(seed + 1)
    axis, truncate = ("column" if seed % 2 else "tensor"), seed % 3 == 0
    scale, zero = parameters(y.size(0), y.size(1), axis, 8 if truncate else bits, rng)
    scale = scale * (float(y.abs().max()) if y.numel() else 1.0) / 2 ** (8 if truncate else bits)
    scale = scale.clamp(min=1e-3)
    skew = torch.tensor(20.5) if truncate and seed % 5 else None
    packed = qlr.quantize_pack(y, scale, zero, bits, truncate, skew)
    names = ("out_scale", "out_zero_point", "out_bits", "out_truncate", "out_skew")
    return dict(zip(names, (scale, zero, bits, truncate, skew), strict=True)), packed


def chosen(data: st.DataObject, optional: dict[str, Any]) -> dict[str, Any]:
    return {name: optional[name] for name in data.draw(st.sets(st.sampled_from(sorted(optional))))}


@every_backend
@examples
@given(
    *(seed_strategy, bits_strategy, width_strategy, axis_strategy, out_bits_strategy),
    *(st.sampled_from((0, 3, 300)), st.booleans(), st.data()),
)
def test_sums(backend, seed, bits, cols, axis, out_bits, hub, packed, data):
    case = problem(seed, cols=cols, bits=bits, axis=axis, hub=hub)
    rng = torch.Generator().manual_seed(seed)
    weights = chosen(
        data,
        {
            "edge_weight": torch.randn(case.col.numel(), generator=rng),
            "source_weight": torch.rand(12, generator=rng) ** 8,
        },
    )
    steps = chosen(
        data,
        {
            "reduce": "mean",
            "row_scale": torch.rand(9, generator=rng),
            "addend": torch.randn(9, cols, generator=rng),
            "bias": torch.randn(cols, generator=rng),
            "relu": True,
        },
    )
    if "addend" in steps:
        steps["addend_scale"] = (1.0, 0.1)[seed % 2]
    x = torch.randn(12, cols, generator=rng)
    graph = (case.rowptr, case.col)
    with use_backend(backend):
        if packed:
            plain = qlr.packed_spmm(*graph, *case.packed, **weights)
            apart = steps_apart(plain, case.rowptr, **steps)
            output, expected = output_of(seed, apart, out_bits)
            fused = qlr.packed_spmm(*graph, *case.packed, **weights, **steps, **output)
        else:
            expected = steps_apart(qlr.spmm(*graph, x, **weights), case.rowptr, **steps)
            fused = qlr.spmm(*graph, x, **weights, **steps)
    assert torch.equal(fused, expected)


@every_backend
@examples
@given(
    *(seed_strategy, bits_strategy, st.integers(1, 20), st.integers(1, 40), axis_strategy),
    *(st.booleans(), st.booleans(), out_bits_strategy),
)
def test_attention(backend, seed, bits, heads, channels, axis, biased, relu, out_bits):
    case = problem(seed, cols=heads * channels, bits=bits, axis=axis)
    rng = torch.Generator().manual_seed(seed)
    alpha = torch.rand(case.col.numel(), heads, generator=rng)
    bias = torch.randn(heads * channels, generator=rng) if biased else None
    call = (case.rowptr, case.col, *case.packed, alpha)
    with use_backend(backend):
        apart = steps_apart(qlr.packed_attention(*call), bias=bias, relu=relu)
        output, expected = output_of(seed, apart, out_bits)
        fused = qlr.packed_attention(*call, bias=bias, relu=relu, **output)
    assert torch.equal(fused, expected)


@every_backend
@examples
@given(
    *(seed_strategy, bits_strategy, bits_strategy, width_strategy, st.integers(1, 70)),
    *(st.sampled_from(("tensor", "row")), st.booleans(), st.booleans(), out_bits_strategy),
)
def test_products(backend, seed, bits, weight_bits, inputs, outputs, axis, biased, relu, out_bits):
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (13, inputs), generator=rng, dtype=torch.uint8)
    weight = torch.randint(2**weight_bits, (outputs, inputs), generator=rng, dtype=torch.uint8)
    call = (
        *(reference.pack(codes, bits), inputs, bits, *parameters(13, inputs, axis, bits, rng)),
        *(reference.pack(weight, weight_bits), weight_bits),
        *parameters(outputs, inputs, "row", weight_bits, rng),
    )
    bias = torch.randn(outputs, generator=rng) if biased else None
    with use_backend(backend):
        apart = steps_apart(qlr.packed_linear(*call), bias=bias, relu=relu)
        output, expected = output_of(seed, apart, out_bits)
        fused = qlr.packed_linear(*call, bias=bias, relu=relu, **output)
    assert torch.equal(fused, expected)


@every_backend
def test_a_mean_is_a_division(backend):
    # One over 41 is no float: a product with it is another number than the quotient.
    rowptr, col = torch.tensor([0, 41]), torch.arange(41, dtype=torch.int32)
    codes = (torch.arange(41 * 50) % 256).view(41, 50).to(torch.uint8)
    packed = (reference.pack(codes, 8), 50, 8, torch.tensor(1.0), torch.tensor(0.0))
    with use_backend(backend):
        mean = qlr.packed_spmm(rowptr, col, *packed, reduce="mean")
    assert torch.equal(mean, codes.sum(0, keepdim=True).float() / 41)
