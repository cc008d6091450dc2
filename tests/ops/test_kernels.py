"""Every instruction set of the C++ kernels against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.helpers.kernel_cases import (
    ISAS,
    REFUSED,
    assert_float32_close,
    axis_strategy,
    bits_strategy,
    nearest_tie,
    parameters,
    problem,
    seed_strategy,
    width_strategy,
)
from torch_geometric_qlr.ops import QParams, affine_params, reference, storage_bits, use_backend
from torch_geometric_qlr.ops.groups import CodeMatrix, Epilogue, Weights

qlr = torch.ops.qlr

pytestmark = pytest.mark.skipif(not ISAS, reason="the C++ kernels are not built here")

every_isa = pytest.mark.parametrize("isa", ISAS)
examples = settings(max_examples=40, deadline=None)


def plain(values: torch.Tensor) -> CodeMatrix:
    """Values instead of codes."""
    return CodeMatrix(values, torch.tensor(1.0), torch.tensor(0.0))


def steps_of(given: dict[str, Any]) -> tuple[Weights, Epilogue]:
    """The arguments of a sum, in their groups."""
    weights = {name: given[name] for name in Weights._fields if name in given}
    after = {name: given[name] for name in Epilogue._fields if name in given}
    return Weights(**weights), Epilogue(**after)


@every_isa
@examples
@given(seed_strategy, st.integers(1, 8), width_strategy, axis_strategy, st.booleans())
def test_quantize_pack_gives_identical_codes(isa, seed, bits, cols, axis, truncate):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(11, cols, generator=rng) * 3
    scale, zero = parameters(11, cols, axis, 8 if truncate else bits, rng)
    if seed % 2:  # values exactly between two codes
        x, zero = (x / scale).round() * scale + scale / 2, zero.round()
    skew = torch.tensor((40.25, 130.0, -130.0)[seed % 5 % 3]) if truncate and seed % 4 else None
    expected = reference.quantize_pack(x, QParams(scale, zero, bits, truncate, skew))
    with use_backend(isa):
        assert torch.equal(qlr.quantize_pack(x, scale, zero, bits, truncate, skew), expected)


@every_isa
@examples
@given(seed_strategy, st.integers(1, 8), axis_strategy, st.booleans())
def test_quotients_are_rounded_once_at_every_magnitude(isa, seed, bits, axis, truncate):
    # The kernels multiply by an inverse and correct; the definition divides.
    rng = torch.Generator().manual_seed(seed)
    rows, cols = 40, 97
    scale, zero = parameters(rows, cols, axis, 8 if truncate else bits, rng)
    low, high = [(-10, 10), (-76, 20), (-100, 60)][seed % 3]  # the last: beyond what is multiplied
    scale = torch.ldexp(scale, torch.randint(low, high, scale.shape, generator=rng))
    zero = zero.round()  # so that quotients end in a half, or next to it
    quotient = torch.randint(0, 600, (rows, cols), generator=rng) / 2 - zero
    x = quotient * scale * (1 + torch.randint(-2, 3, (rows, cols), generator=rng) * 2.0**-24)
    bits_of_x = torch.randint(-(2**31), 2**31, (rows, cols), generator=rng, dtype=torch.int32)
    x[::5] = bits_of_x.view(torch.float32)[::5].nan_to_num(1.0, torch.inf, -torch.inf)
    expected = reference.quantize_pack(x, QParams(scale, zero, bits, truncate=truncate))
    values = reference.fake_quantize(x, QParams(scale, zero, bits, truncate=truncate))[0]
    with use_backend(isa):
        assert torch.equal(qlr.quantize_pack(x, scale, zero, bits, truncate), expected)
        assert torch.equal(qlr.fake_quantize(x, scale, zero, bits, truncate)[0], values)


@every_isa
@examples
@given(seed_strategy, bits_strategy, width_strategy, axis_strategy)
def test_pack_unpack_dequantize_select(isa, seed, bits, cols, axis):
    case = problem(seed, cols=cols, bits=bits, axis=axis)
    packed = reference.pack(case.codes, bits)
    index = torch.randint(12, (20,), generator=torch.Generator().manual_seed(seed))
    with use_backend(isa):
        assert torch.equal(qlr.pack(case.codes, bits), packed)
        assert torch.equal(qlr.unpack(packed, cols, bits), case.codes)
        assert torch.equal(qlr.dequantize_packed(*case.packed), case.values)
        assert torch.equal(qlr.index_select(packed, index), packed[index])


@every_isa
@examples
@given(seed_strategy, bits_strategy, width_strategy, st.sampled_from((0, 1, 3, 18, 90, 300)))
def test_unweighted_sums_are_exact_integers(isa, seed, bits, cols, hub):
    case = problem(seed, cols=cols, bits=bits, hub=hub)
    case.scale, case.zero_point = torch.tensor(1.0), torch.tensor(float(seed % 2**bits))
    truth = reference.spmm(case.graph, case.matrix)
    with use_backend(isa):
        ours = qlr.packed_spmm(case.rowptr, case.col, *case.packed)
    assert torch.equal(ours, truth)


@every_isa
@examples
@given(
    seed_strategy,
    bits_strategy,
    width_strategy,
    st.sampled_from((0, 1, 3, 18, 90, 300)),
    st.sampled_from((2, 4, 8)),
)
def test_sums_with_integer_weights_are_exact(isa, seed, bits, cols, hub, weight_bits):
    case = problem(seed, cols=cols, bits=bits, hub=hub)
    case.scale, case.zero_point = torch.tensor(1.0), torch.tensor(float(seed % 2**bits))
    rng = torch.Generator().manual_seed(seed)
    top = 2 ** (weight_bits - 1) - 1
    weight = torch.randint(-top * (seed % 2), top + 1, case.col.shape, generator=rng)
    truth = reference.spmm(case.graph, case.matrix, Weights(weight))
    with use_backend(isa):
        ours = qlr.packed_spmm(
            case.rowptr, case.col, *case.packed, edge_weight=weight.to(torch.int8)
        )
    assert torch.equal(ours, truth)


@every_isa
@examples
@given(seed_strategy, bits_strategy, width_strategy, axis_strategy, st.booleans())
def test_edges_in_few_bits_through_every_epilogue(isa, seed, bits, cols, axis, by_source):
    case = problem(seed, cols=cols, bits=bits, hub=40, axis=axis)
    rng = torch.Generator().manual_seed(seed)
    source = torch.rand(12, generator=rng) if by_source else None
    weight = torch.randn(case.col.shape, generator=rng)
    weight[::3] = 0.0
    with use_backend(isa):
        codes, scale = qlr.quantize_edges(case.rowptr, case.col, weight, 8, source)
        given = {"edge_weight": codes, "row_scale": scale, "bias": torch.randn(cols, generator=rng)}
        given |= {"reduce": ("sum", "mean")[seed % 2], "relu": seed % 3 == 0}
        ours = qlr.packed_spmm(case.rowptr, case.col, *case.packed, **given)
    expected = reference.edge_codes(case.graph, Weights(weight, source), 8)
    assert torch.equal(codes, expected[0]) and torch.equal(scale, expected[1])
    assert_float32_close(ours, reference.spmm(case.graph, case.matrix, *steps_of(given)))


@every_isa
@examples
@given(seed_strategy, bits_strategy, width_strategy, st.sampled_from((0, 1, 40)))
def test_integer_weights_of_sources_with_zero_points_of_their_own(isa, seed, bits, cols, hub):
    case = problem(seed, cols=cols, bits=bits, hub=hub, axis="row")
    rng = torch.Generator().manual_seed(seed)
    case.scale = torch.tensor(1.0)  # what a scale per source is once the weights have it
    case.zero_point = torch.randint(2**bits, (12, 1), generator=rng).float()
    weight = torch.randint(-128, 128, case.col.shape, generator=rng)
    truth = reference.spmm(case.graph, case.matrix, Weights(weight))
    with use_backend(isa):
        ours = qlr.packed_spmm(
            case.rowptr, case.col, *case.packed, edge_weight=weight.to(torch.int8)
        )
    assert torch.equal(ours, truth)


def test_weights_that_are_no_numbers_or_nothing():
    rowptr, col = torch.tensor([0, 2, 4, 6, 6]), torch.zeros(6, dtype=torch.int32)
    weight = torch.tensor([1.0, torch.nan, 0.0, 1e-38, torch.inf, -1.0])
    codes, scale = qlr.quantize_edges(rowptr, col, weight)
    assert codes.tolist() == [0] * 6
    assert scale.isnan().tolist() == [True, False, True, False] and scale[1] == scale[3] == 1
    with use_backend("reference"):
        again = qlr.quantize_edges(rowptr, col, weight)
    assert torch.equal(again[0], codes)
    assert torch.equal(again[1].isnan(), scale.isnan())
    with pytest.raises(REFUSED, match="bits must be 2 to 8"):
        qlr.quantize_edges(rowptr, col, weight, 1)


@every_isa
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
@pytest.mark.parametrize("sign", (-1, 1))
def test_hub_of_largest_integer_weights_does_not_overflow(isa, bits, sign):
    degree, cols = 150_001, 40
    rowptr = torch.tensor([0, degree])
    col = torch.zeros(degree, dtype=torch.int32)
    packed = reference.pack(torch.full((1, cols), 2**bits - 1, dtype=torch.uint8), bits)
    largest = 127 if sign > 0 else -128
    weight = torch.full((degree,), largest, dtype=torch.int8)
    with use_backend(isa):
        y = qlr.packed_spmm(
            *(rowptr, col, packed, cols, bits, torch.tensor(1.0), torch.tensor(0.0)),
            edge_weight=weight,
        )
    assert torch.equal(y, torch.full((1, cols), float(largest * degree * (2**bits - 1))))


@every_isa
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
@pytest.mark.parametrize("cols", (16, 64, 200))
def test_hub_of_largest_codes_does_not_overflow(isa, bits, cols):
    degree, top = 33_000, 2**bits - 1
    rowptr = torch.tensor([0, degree, degree, degree + 1])
    col = torch.zeros(degree + 1, dtype=torch.int32)
    packed = reference.pack(torch.full((1, cols), top, dtype=torch.uint8), bits)
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    with use_backend(isa):
        plain = qlr.packed_spmm(rowptr, col, packed, cols, bits, one, zero)
        weighted = qlr.packed_spmm(
            rowptr, col, packed, cols, bits, one, zero, torch.full((degree + 1,), 0.5)
        )
    expected = torch.tensor([degree, 0, 1]).mul(top).float().view(3, 1).expand(3, cols)
    assert torch.equal(plain, expected)
    torch.testing.assert_close(weighted, expected / 2, rtol=1e-6, atol=0)


@every_isa
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_a_hub_of_equal_weights_keeps_its_digits(isa, bits):
    # Equal addends are rounded the same way every time, which is the worst for a running sum.
    degree, cols, top = 70_000, 17, 2**bits - 1
    packed = reference.pack(torch.full((1, cols), top, dtype=torch.uint8), bits)
    rowptr, col = torch.tensor([0, degree]), torch.zeros(degree, dtype=torch.int32)
    weight, one = torch.full((degree,), 1 / 264.5), torch.tensor(1.0)
    with use_backend(isa):
        ours = qlr.packed_spmm(rowptr, col, packed, cols, bits, one, torch.tensor(0.0), weight)
    expected = (weight.double().sum() * top).float().expand(1, cols)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)


@every_isa
@examples
@given(seed_strategy, bits_strategy, width_strategy, axis_strategy, st.data())
def test_weighted_sums_and_epilogue(isa, seed, bits, cols, axis, data):
    case = problem(seed, cols=cols, bits=bits, axis=axis, hub=data.draw(st.sampled_from((0, 600))))
    rng = torch.Generator().manual_seed(seed)
    optional = {
        "edge_weight": torch.randn(case.col.numel(), generator=rng),
        "source_weight": torch.rand(12, generator=rng) ** 8,  # like the normalisation of hubs
        "row_scale": torch.rand(9, generator=rng),
        "bias": torch.randn(cols, generator=rng),
        "addend": torch.randn(9, cols, generator=rng),
    }
    chosen = data.draw(st.sets(st.sampled_from(sorted(optional))))
    kwargs = {name: optional[name] for name in chosen}
    kwargs["reduce"] = data.draw(st.sampled_from(("sum", "mean")))
    kwargs["relu"] = data.draw(st.booleans())
    kwargs["addend_scale"] = 0.25
    truth = reference.spmm(case.graph, case.matrix, *steps_of(kwargs))
    kwargs_of_size = {k: v.abs() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    size = reference.spmm(case.graph, plain(case.values.abs()), *steps_of(kwargs_of_size))
    with use_backend(isa):
        ours = qlr.packed_spmm(case.rowptr, case.col, *case.packed, **kwargs)
    assert_float32_close(ours, truth, size)


@every_isa
@examples
@given(seed_strategy, bits_strategy, width_strategy, st.integers(1, 8), st.booleans())
def test_packed_output_has_the_codes_of_the_float_output(isa, seed, bits, cols, out_bits, truncate):
    case = problem(seed, cols=cols, bits=bits)
    rng = torch.Generator().manual_seed(seed)
    scale, zero = parameters(9, cols, "column" if seed % 2 else "tensor", out_bits, rng)
    output = (scale, zero, out_bits, truncate, torch.tensor(3.0) if truncate else None)
    weight = torch.rand(12, generator=rng)
    with use_backend(isa):
        y = qlr.packed_spmm(case.rowptr, case.col, *case.packed, source_weight=weight)
        packed = qlr.packed_spmm(
            *(case.rowptr, case.col, *case.packed, None, weight, None),
            *(None, None, 1.0, "sum", False, *output),
        )
    expected = reference.quantize_pack(y, QParams(scale, zero, out_bits, truncate, output[-1]))
    assert torch.equal(packed, expected)


@every_isa
@settings(max_examples=150, deadline=None)
@given(seed_strategy, st.integers(1, 8), st.booleans(), st.booleans(), st.booleans())
def test_codes_beside_ties_are_those_of_the_definition(isa, seed, bits, biased, relu, truncate):
    # Without edges the addend is the result, so that values can be chosen to the last bit.
    rng = torch.Generator().manual_seed(seed)
    rows, cols = 40, 83
    axis = "column" if seed % 2 else "tensor"
    scale, zero = parameters(rows, cols, axis, 8 if truncate else bits, rng)
    if seed % 3:
        zero = (zero * 4).round() / 4
    # Also skews beyond half a step, with which the lowest codes are never used.
    skew = (torch.rand((), generator=rng) - 0.5) * 300 if truncate and seed % 5 else None
    bias = torch.randn(cols, generator=rng) * scale.max() * 3 if biased else None
    quotient = torch.randint(0, 2 ** (9 if truncate else bits + 1), (rows, cols), generator=rng) / 2
    x = (quotient - zero) * scale - (bias if biased else 0.0)
    x = x * (1 + torch.randint(-6, 7, (rows, cols), generator=rng) * 2.0**-24)
    x[::7] *= 2.0 ** torch.randint(-120, 100, (6, cols), generator=rng)
    y = x if bias is None else x + bias
    expected = reference.quantize_pack(
        y.relu() if relu else y, QParams(scale, zero, bits, truncate, skew)
    )
    nothing = torch.zeros(rows + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32)
    source = torch.zeros(1, 32 * ((cols + 31) // 32), dtype=torch.uint8)
    with use_backend(isa):
        packed = qlr.packed_spmm(
            *(*nothing, source, cols, 8, torch.ones(()), torch.zeros(()), None, None, None),
            *(bias, x, 1.0, "sum", relu, scale, zero, bits, truncate, skew),
        )
    assert torch.equal(packed, expected)


@every_isa
@examples
@given(
    *(seed_strategy, bits_strategy, width_strategy, st.integers(0, 4)),
    *(bits_strategy, st.booleans(), st.booleans()),
)
def test_hops_in_one_call_are_hops(isa, seed, bits, cols, steps, step_bits, truncate, teleports):
    case = problem(seed, targets=12, cols=cols, bits=bits)
    rng = torch.Generator().manual_seed(seed)
    scales, zeros = torch.rand(steps, generator=rng) + 0.1, torch.rand(steps, generator=rng) * 3
    skews = torch.rand(steps, generator=rng) * 20 if truncate else None
    weight = torch.rand(case.col.numel(), generator=rng) if seed % 3 else None
    rows = torch.rand(12, generator=rng) / 100 if seed % 3 == 2 else None
    if rows is not None:
        weight = torch.randint(-128, 128, weight.shape, generator=rng, dtype=torch.int8)
    term = torch.randn(12, cols, generator=rng) if teleports else None
    with use_backend(isa):
        ours = qlr.packed_propagate(
            *(case.rowptr, case.col, *case.packed, scales, zeros, step_bits, truncate, skews),
            *(weight, rows, 0.75, term, 0.25),
        )
        sources = case.packed
        for k in range(steps + 1):
            data, _, width, scale, zero = sources
            hop = (case.rowptr, case.col, data, cols, width, scale * 0.75, zero, weight)
            if k == steps:
                y = qlr.packed_spmm(*hop, None, rows, None, term, 0.25)
                break
            skew = skews[k] if truncate else None
            out = (scales[k], zeros[k], step_bits, truncate, skew)
            data = qlr.packed_spmm(*hop, None, rows, None, term, 0.25, "sum", False, *out)
            params = reference.affine_params(scales[k], zeros[k], step_bits, truncate)
            sources = (data, cols, step_bits, *params)
    assert torch.equal(ours, y)


def test_hops_need_a_square_graph_and_one_range_each():
    case = problem(1)  # 12 sources, 9 targets
    one = (torch.ones(1), torch.zeros(1), 2)
    with pytest.raises(REFUSED, match="12 rows are sent to 9 nodes"):
        qlr.packed_propagate(case.rowptr, case.col, *case.packed, *one)
    square = problem(1, targets=12)
    with pytest.raises(REFUSED, match="vectors of one length"):
        qlr.packed_propagate(square.rowptr, square.col, *square.packed, *one[:1], torch.zeros(2), 2)


@every_isa
@examples
@given(
    *(seed_strategy, bits_strategy, width_strategy, st.integers(0, 3), st.booleans()),
    *(st.sampled_from(("paper", "lagrangian")),),
    *(st.sampled_from(("none", "nonnegative", "nonpositive")), st.sampled_from((0.1, 0.05))),
)
def test_smoothness_aware_steps(isa, seed, bits, cols, steps, truncate, primal, projection, eta):
    case = problem(seed, targets=12, cols=cols)
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(12, cols, generator=rng)
    code_bits = 8 if truncate else bits
    skews = torch.rand(2 * steps, generator=rng) * 20 if truncate else None
    weight = torch.rand(case.col.numel(), generator=rng) / 4 if seed % 3 else None
    options = {"eta": eta, "eta_lambda": 1e-2, "init_lambda": 0.3, "eta_slack": 0.1, "tau": 0.01}
    options |= {"primal": primal, "projection": projection}
    if seed % 3 == 2:  # weights that are integers
        options["row_scale"] = torch.rand(12, generator=rng) / 400
        weight = torch.randint(-128, 128, weight.shape, generator=rng, dtype=torch.int8)
    # A tie would be decided by the last digit of a sum, so ranges are drawn until none is near.
    for _ in range(50):
        scales = (torch.rand(2 * steps, generator=rng) + 0.5) * 4 / 2**code_bits
        zeros = torch.rand(2 * steps, generator=rng) + (2**code_bits - 1) / 2
        arguments = (case.rowptr, case.col, x, scales, zeros, bits, truncate, skews, weight)
        with use_backend("reference"), nearest_tie() as distances:
            truth = qlr.packed_smp(*arguments, **options)
        if min(distances, default=1.0) > 3e-5:
            break
    else:
        assume(False)
    with use_backend(isa):
        assert_float32_close(qlr.packed_smp(*arguments, **options), truth)


def test_smoothness_aware_steps_need_a_square_graph_and_two_ranges_each():
    case, square = problem(1), problem(1, targets=12)  # 12 sources; 9 and 12 targets
    x, two = torch.randn(12, 5), (torch.ones(2), torch.zeros(2), 2)
    with pytest.raises(REFUSED, match="12 rows are sent to 9 nodes"):
        qlr.packed_smp(case.rowptr, case.col, x, *two)
    with pytest.raises(REFUSED, match="two quantizers per step"):
        qlr.packed_smp(square.rowptr, square.col, x, torch.ones(1), torch.zeros(1), 2)
    with pytest.raises(REFUSED, match="no primal 'dual'"):
        qlr.packed_smp(square.rowptr, square.col, x, *two, primal="dual")


@every_isa
@pytest.mark.filterwarnings("ignore:torch.ops.qlr.packed_extremum has no kernel")
@examples
@given(seed_strategy, bits_strategy, width_strategy, axis_strategy, st.booleans())
def test_extremum(isa, seed, bits, cols, axis, largest):
    case = problem(seed, cols=cols, bits=bits, axis=axis)
    truth = reference.extremum(case.graph, case.matrix, largest=largest)
    with use_backend(isa):
        ours = qlr.packed_extremum(case.rowptr, case.col, *case.packed, largest)
    assert_float32_close(ours, truth)


@every_isa
@examples
@given(seed_strategy, bits_strategy, st.integers(1, 20), st.integers(1, 40), axis_strategy)
def test_attention(isa, seed, bits, heads, channels, axis):
    case = problem(seed, cols=heads * channels, bits=bits, axis=axis)
    rng = torch.Generator().manual_seed(seed)
    alpha = torch.rand(case.col.numel(), heads, generator=rng)
    bias = torch.randn(heads * channels, generator=rng)
    truth = reference.attention(case.graph, case.matrix, alpha, Epilogue(bias=bias))
    with use_backend(isa):
        ours = qlr.packed_attention(case.rowptr, case.col, *case.packed, alpha, bias)
    assert_float32_close(ours, truth)


@every_isa
@examples
@given(
    *(seed_strategy, bits_strategy, bits_strategy, width_strategy),
    *(st.integers(0, 20), st.integers(1, 150), st.sampled_from(("tensor", "row"))),
)
def test_linear(isa, seed, bits, weight_bits, inputs, rows, outputs, axis):
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, inputs), generator=rng, dtype=torch.uint8)
    weight = torch.randint(2**weight_bits, (outputs, inputs), generator=rng, dtype=torch.uint8)
    params = parameters(rows, inputs, axis if rows > 1 else "tensor", bits, rng)
    weight_params = parameters(outputs, inputs, "row", weight_bits, rng)
    bias = torch.randn(outputs, generator=rng)
    matrices = CodeMatrix(codes, *params), CodeMatrix(weight, *weight_params)
    truth = reference.linear(*matrices, Epilogue(bias=bias, relu=True))
    values, factors = (reference.dequantize(*matrix).abs() for matrix in matrices)
    size = values @ factors.t()
    packed, packed_weight = reference.pack(codes, bits), reference.pack(weight, weight_bits)
    with use_backend(isa):
        ours = qlr.packed_linear(
            *(packed, inputs, bits, *params, packed_weight, weight_bits, *weight_params),
            *(bias, True),
        )
    assert_float32_close(ours, truth, size)


@every_isa
@examples
@given(
    *(seed_strategy, st.integers(1, 8), bits_strategy, width_strategy, st.integers(0, 120)),
    *(st.integers(1, 100), st.booleans(), st.sampled_from(("grid", "rows"))),
)
def test_linear_of_floats_is_that_of_their_codes(
    isa, seed, bits, weight_bits, inputs, rows, outputs, truncate, ranges
):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=rng)
    x *= torch.rand(rows, inputs, generator=rng) < (0.02 if seed % 3 == 0 else 1.0)
    codes = torch.randint(2**weight_bits, (outputs, inputs), generator=rng, dtype=torch.uint8)
    axis = "row" if outputs > 1 else "tensor"
    weight_params = parameters(outputs, inputs, axis, weight_bits, rng)
    weight = reference.pack(codes, weight_bits), weight_bits, *weight_params
    bias, relu = torch.randn(outputs, generator=rng) if seed % 2 else None, seed % 5 == 0
    skew = torch.tensor(2.0) if truncate and seed % 4 else None
    scale, zero = parameters(rows, inputs, "tensor", 8 if truncate else bits, rng)
    with use_backend(isa):
        if ranges == "grid":
            packed = qlr.quantize_pack(x, scale, zero, bits, truncate, skew)
            params = affine_params(scale, zero, bits, truncate)
        else:
            scale, zero = torch.tensor(0.9), None
            packed, *params = qlr.quantize_rows(x, scale, bits, truncate, True, skew)
        of_codes = qlr.packed_linear(
            *(packed, inputs, storage_bits(bits), *params), *weight, bias, relu
        )
        at_once = qlr.quantize_linear(
            x, scale, zero, bits, truncate, True, skew, *weight, bias, relu
        )
    assert torch.equal(at_once, of_codes)


@every_isa
@examples
@given(
    *(seed_strategy, bits_strategy, bits_strategy, st.sampled_from((0.0, 0.004, 0.03, 0.2, 0.9))),
    *(st.sampled_from((3, 65, 129, 300, 1433)), st.sampled_from((7, 40, 129))),
)
def test_products_of_mostly_zeros_are_exact_integers(
    isa, seed, bits, width, share, inputs, outputs
):
    rng = torch.Generator().manual_seed(seed)
    rows = 70
    middle = torch.full((rows, 1), 2**bits // 2)
    zero = middle if seed % 2 else torch.randint(2**bits, (rows, 1), generator=rng)
    codes = torch.randint(2**bits, (rows, inputs), generator=rng)
    dense = torch.rand(rows, 1, generator=rng) < 0.1  # one here and there among them
    given = (torch.rand(rows, inputs, generator=rng) < share) | dense
    codes = torch.where(given, codes, zero).to(torch.uint8)
    weight = torch.randint(2**width, (outputs, inputs), generator=rng, dtype=torch.uint8)
    x_params = torch.ones(rows, 1), zero.float()
    w_params = torch.ones(()), torch.tensor(float(2**width // 2))
    truth = reference.linear(CodeMatrix(codes, *x_params), CodeMatrix(weight, *w_params))
    with use_backend(isa):
        ours = qlr.packed_linear(
            *(reference.pack(codes, bits), inputs, bits, *x_params),
            *(reference.pack(weight, width), width, *w_params),
        )
    assert_float32_close(ours, truth)
    exact = truth.abs() < 2**24
    if seed % 2:  # nothing is left to a float
        assert torch.equal(ours[exact], truth[exact])


@every_isa
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
@pytest.mark.parametrize("weight_bits", (1, 2, 4, 8))
@pytest.mark.parametrize("lowest", (False, True))
def test_products_of_the_largest_codes_do_not_overflow(isa, bits, weight_bits, lowest):
    inputs, outputs, top = 10_001, 17, 2**bits - 1
    codes = torch.full((3, inputs), top, dtype=torch.uint8)
    fill = 0 if lowest else 2**weight_bits - 1
    weight = torch.full((outputs, inputs), fill, dtype=torch.uint8)
    x_params = torch.tensor(1.0), torch.tensor(0.0)
    w_params = torch.tensor(1.0), torch.tensor(float(2**weight_bits // 2))
    with use_backend(isa):
        ours = qlr.packed_linear(
            *(reference.pack(codes, bits), inputs, bits, *x_params),
            *(reference.pack(weight, weight_bits), weight_bits, *w_params),
        )
    expected = torch.tensor(float(inputs * top * (fill - 2**weight_bits // 2)))
    assert torch.equal(ours, expected.expand(3, outputs))


@every_isa
@examples
@given(seed_strategy, width_strategy, st.booleans(), st.booleans())
def test_float_spmm(isa, seed, cols, mean, weighted):
    case = problem(seed, cols=cols, hub=600)
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(12, cols, generator=rng)
    weight = torch.randn(case.col.numel(), generator=rng) if weighted else None
    reduce = "mean" if mean else "sum"
    size, after = None if weight is None else weight.abs(), Epilogue(reduce)
    truth = reference.spmm(case.graph, plain(x), Weights(weight), after)
    magnitude = reference.spmm(case.graph, plain(x.abs()), Weights(size), after)
    with use_backend(isa):
        ours = qlr.spmm(*case.graph, x, weight, reduce=reduce)
    assert_float32_close(ours, truth, magnitude)


@every_isa
@pytest.mark.parametrize("threads", (1, 2))
def test_large_graph_takes_the_parallel_path(isa, threads):
    case = problem(0, targets=3000, sources=3000, mean_degree=20.0, cols=64, bits=4, hub=9000)
    truth = reference.spmm(case.graph, case.matrix)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with use_backend(isa):
            ours = qlr.packed_spmm(case.rowptr, case.col, *case.packed)
    finally:
        torch.set_num_threads(before)
    assert_float32_close(ours, truth)


@every_isa
@pytest.mark.parametrize("column", (-1, 12, 2**32))
def test_index_out_of_range_is_refused(isa, column):
    case = problem(0)
    col = case.col.long()
    col[0] = column
    with use_backend(isa), pytest.raises(REFUSED, match="out of range"):
        qlr.packed_spmm(case.rowptr, col, *case.packed)
    with use_backend(isa), pytest.raises(REFUSED, match="out of range"):
        qlr.index_select(reference.pack(case.codes, 2), col)


@every_isa
def test_rowptr_must_ascend_to_the_number_of_edges(isa):
    case = problem(0)
    for broken in (case.rowptr + 1, case.rowptr.flip(0), case.rowptr[:-2]):
        with use_backend(isa), pytest.raises(REFUSED, match="rowptr"):
            qlr.packed_spmm(broken, case.col, *case.packed)


@every_isa
def test_wrong_sizes_are_refused_before_memory_is_read(isa):
    case = problem(0, cols=33)
    data, cols, bits, scale, zero = case.packed
    short = {name: torch.ones(3) for name in ("edge_weight", "source_weight", "row_scale", "bias")}
    with use_backend(isa):
        for name, value in short.items():
            with pytest.raises(REFUSED, match=name):
                qlr.packed_spmm(case.rowptr, case.col, *case.packed, **{name: value})
        with pytest.raises(REFUSED, match="uint8"):
            qlr.packed_spmm(case.rowptr, case.col, data[:, :8], cols, bits, scale, zero)
        with pytest.raises(REFUSED, match="alpha"):
            qlr.packed_attention(case.rowptr, case.col, *case.packed, torch.ones(3, 2))


@every_isa
@pytest.mark.parametrize("targets, sources", ((0, 5), (5, 1), (5, 12)))
def test_empty_graph(isa, targets, sources):
    case = problem(0, targets=targets, sources=sources, mean_degree=0.0, cols=20)
    with use_backend(isa):
        y = qlr.packed_spmm(case.rowptr, case.col, *case.packed, bias=torch.ones(20))
        assert torch.equal(y, torch.ones(targets, 20))
        top = qlr.packed_extremum(case.rowptr, case.col, *case.packed)
        assert torch.equal(top, torch.zeros(targets, 20))


@every_isa
def test_nan_and_infinite_weights_reach_the_result(isa):
    case = problem(0, cols=20)
    for bad in (float("nan"), float("inf")):
        weight = torch.ones(case.col.numel())
        weight[0] = bad
        with use_backend(isa):
            y = qlr.packed_spmm(case.rowptr, case.col, *case.packed, weight)
        assert not torch.isfinite(y).all()


@examples
@given(seed_strategy, st.integers(0, 9), st.booleans(), st.booleans())
def test_softmax_along_rows(seed, heads, has_target, has_edge):
    case, rng = problem(seed, cols=4, bits=8), torch.Generator().manual_seed(seed)
    rows, edges = case.rowptr.numel() - 1, case.col.numel()
    spread = (1.0, 30.0, 1e4)[seed % 3]
    logits = [torch.randn(n, heads, generator=rng) * spread for n in (12, rows, edges)]
    given = dict(zip(("x", "target", "edge"), logits, strict=True))
    if not has_target:
        del given["target"]
    if not has_edge:
        del given["edge"]
    slope = (0.2, 0.0, 1.0, -0.5)[seed % 4]
    ours = qlr.edge_softmax(case.rowptr, case.col, **given, negative_slope=slope)
    with use_backend("reference"):
        expected = qlr.edge_softmax(case.rowptr, case.col, **given, negative_slope=slope)
    assert torch.allclose(ours, expected, rtol=2e-6 * max(1.0, spread / 10), atol=1e-30)


def test_softmax_of_logits_that_are_no_numbers():
    nan, inf = torch.nan, torch.inf
    rowptr, col = torch.tensor([0, 2, 4, 6, 8, 8]), torch.arange(8, dtype=torch.int32)
    x = torch.tensor([[0.0], [nan], [0.0], [inf], [0.0], [-inf], [-inf], [-inf]])
    ours = qlr.edge_softmax(rowptr, col, x)
    with use_backend("reference"):
        expected = qlr.edge_softmax(rowptr, col, x)
    assert torch.equal(ours.isnan(), expected.isnan())
    assert ours[:4].isnan().all() and ours[4:6].flatten().tolist() == [1, 0]
    with pytest.raises(REFUSED, match=r"target has shape \[8, 1\], expected \[5, 1\]"):
        qlr.edge_softmax(rowptr, col, x, x)
