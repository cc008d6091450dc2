"""The same values get the same codes, before and after a conversion, without exception."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_geometric_qlr.codes.weights import PackedWeight
from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.quantizers import FrozenRange, build_quantizer
from torch_geometric_qlr.tensor import linear

BITS = st.sampled_from([1, 2, 3, 4, 5, 8])
TRUNCATION = st.sampled_from([None, "bt", "bt*"])


@settings(max_examples=60, deadline=None)
@given(BITS, TRUNCATION, st.sampled_from(["tensor", "feature", "node"]), st.integers(0, 99))
def test_codes_are_identical(bits: int, truncation: str | None, per: str, seed: int) -> None:
    config = QuantizerConfig(
        bits=bits,
        truncation=truncation,
        granularity=per,
        statistics="current" if per == "node" else "running",
    )
    rng = torch.Generator().manual_seed(seed)
    first, x = torch.randn(9, 7, generator=rng), torch.randn(5, 7, generator=rng).exp()
    quantizer = build_quantizer(config, num_groups=7)
    quantizer(first)
    quantizer.eval()
    with torch.no_grad():
        value = quantizer(x)[0]
    frozen = FrozenRange.of(quantizer)
    assert torch.equal(frozen.pack(x).dequantize(), value)
    assert torch.equal(frozen(x)[0], value)
    out = frozen.output()
    assert (out is None) == (per == "node")
    if out is not None:
        # A kernel that writes codes rounds as the quantizer does.
        eye = PackedWeight.from_quantizer(build_quantizer(QuantizerConfig(bits=1)), torch.eye(7))
        codes = build_quantizer(QuantizerConfig(bits=8))
        given = FrozenRange.of(codes.eval()) if codes(x) else None
        assert given is not None
        product = linear(given.pack(x), eye.packed)
        written = linear(given.pack(x), eye.packed, out=out)
        assert written.equal(frozen.pack(product))


@settings(max_examples=30, deadline=None)
@given(BITS, TRUNCATION, st.sampled_from([0, -1]))
def test_weights_are_identical(bits: int, truncation: str | None, channel_dim: int) -> None:
    config = QuantizerConfig(
        bits=bits, truncation=truncation, granularity="channel", statistics="current"
    )
    weight = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(bits))
    quantizer = build_quantizer(
        config, num_groups=weight.size(channel_dim), channel_dim=channel_dim
    )
    with torch.no_grad():
        value = quantizer(weight)[0]
    packed = PackedWeight.from_quantizer(quantizer, weight)
    assert torch.equal(packed.dequantize(), value)
    assert torch.equal(copy.deepcopy(packed).dequantize(), value)


def test_static_parameters_follow_the_module() -> None:
    quantizer = build_quantizer(QuantizerConfig(bits=4))
    quantizer(torch.randn(9, 7))
    frozen = FrozenRange.of(quantizer)
    x = torch.randn(5, 7)
    before = frozen.pack(x)
    state = {k: v.clone() for k, v in frozen.state_dict().items()}
    state["gamma"] *= 2
    frozen.load_state_dict(state)
    after = frozen.pack(x)
    torch.testing.assert_close(after.scale, 2 * before.scale)
    assert frozen.double().pack(x).equal(after)


@pytest.mark.parametrize("per", ["tensor", "node"])
def test_nothing_to_round(per: str) -> None:
    config = QuantizerConfig(
        bits=4, granularity=per, statistics="current" if per == "node" else "running"
    )
    frozen = FrozenRange.of(build_quantizer(config))
    assert frozen.pack(torch.zeros(0, 3)).shape == (0, 3)
