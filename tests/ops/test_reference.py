"""The definition itself, against values worked out by hand or by plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.kernel_cases import (
    axis_strategy,
    bits_strategy,
    problem,
    seed_strategy,
    width_strategy,
)
from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.ops import QParams, reference, row_layout, storage_bits
from torch_geometric_qlr.ops.groups import Weights


def test_rounding_is_half_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, 3.5])
    codes = reference.quantize(x, QParams(torch.tensor(1.0), torch.tensor(0.0), bits=8))
    assert codes.tolist() == [0, 2, 2, 4]


def test_truncation_keeps_the_top_bits():
    q = torch.arange(256.0)
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    codes = reference.quantize(q, QParams(one, zero, 2, truncate=True))
    assert codes.bincount().tolist() == [43, 85, 85, 43]
    shifted = reference.quantize(q, QParams(one, zero, 2, truncate=True, skew=torch.tensor(43.0)))
    assert shifted[0] == 1  # 43 / 85 rounds up: the threshold has moved below the range
    assert shifted.max() == 3  # and the top stays within two bits


def test_eight_bits_truncate_to_themselves():
    x = torch.randn(1000)
    scale, zero = torch.tensor(0.03), torch.tensor(120.0)
    plain = reference.quantize(x, QParams(scale, zero, 8))
    assert torch.equal(plain, reference.quantize(x, QParams(scale, zero, 8, truncate=True)))


@given(seed_strategy, bits_strategy, width_strategy)
def test_pack_is_undone_by_unpack_and_pads_with_zero(seed, bits, cols):
    codes = problem(seed, cols=cols, bits=bits).codes
    packed = reference.pack(codes, bits)
    layout = row_layout(cols, bits)
    assert packed.shape == (12, layout.stride)
    assert torch.equal(reference.unpack(packed, cols, bits), codes)
    whole = reference.unpack(packed, layout.units * layout.codes_per_unit, bits)
    assert not whole[:, cols:].any()


def test_layout_is_planar_within_a_unit():
    codes = torch.zeros(1, 200, dtype=torch.uint8)
    codes[0, 128 + 3 * 16] = 2  # unit 1 at two bits: field 1, byte 16
    packed = reference.pack(codes, 2)
    assert packed.nonzero().tolist() == [[0, 32 + 16]]
    assert packed[0, 48] == 2 << 2


@given(seed_strategy, bits_strategy, axis_strategy)
def test_spmm_is_the_dense_product(seed, bits, axis):
    case = problem(seed, bits=bits, axis=axis)
    adjacency = torch.zeros(9, 12, dtype=torch.float64)
    target = torch.arange(9).repeat_interleave(case.rowptr.diff())
    weight = torch.rand(case.col.numel())
    adjacency.index_put_((target, case.col.long()), weight.double(), accumulate=True)
    truth = adjacency @ case.values.double()
    ours = reference.spmm(case.graph, case.matrix, Weights(weight))
    torch.testing.assert_close(ours, truth.float(), rtol=1e-5, atol=1e-5)


def test_blocks_of_edges_do_not_change_the_result(monkeypatch):
    case = problem(3, mean_degree=20.0)
    args = case.graph, case.matrix
    whole = reference.spmm(*args), reference.extremum(*args)
    monkeypatch.setattr(reference, "_BLOCK_ELEMENTS", 100)
    assert torch.equal(reference.spmm(*args), whole[0])
    assert torch.equal(reference.extremum(*args), whole[1])


@pytest.mark.parametrize("bits", (0, 9, -1, True))
def test_bits_out_of_range(bits):
    with pytest.raises(ConfigError, match="bits"):
        storage_bits(bits)


@pytest.mark.parametrize("bits", (0, 3, 16))
def test_packed_bits_out_of_range(bits):
    with pytest.raises(ConfigError, match="storage_bits"):
        row_layout(10, bits)


@given(st.integers(1, 2000), bits_strategy)
def test_rows_waste_less_than_a_unit(cols, bits):
    layout = row_layout(cols, bits)
    assert 0 <= layout.stride * 8 - cols * bits < layout.unit * 8
