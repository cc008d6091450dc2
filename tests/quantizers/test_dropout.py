"""Ranges of what dropout has scaled are those of evaluation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.quantizers import build_quantizer
from torch_geometric_qlr.quantizers.dropout import kept_share


def hidden(seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(64, 16, generator=rng).requires_grad_()


@given(p=st.floats(0.05, 0.9), inplace=st.booleans(), half=st.booleans())
def test_dropout_is_recognised(p: float, inplace: bool, half: bool) -> None:
    x = hidden().to(torch.bfloat16 if half else torch.float32)
    out = F.dropout(x * 1.5, p, training=True, inplace=inplace)
    assert kept_share(out) == pytest.approx(1 - p, rel=1e-2 if half else 1e-6)
    assert kept_share(nn.Dropout(p)(x)) is not None


def test_what_is_none() -> None:
    x = hidden()
    mask = (torch.rand(64, 16) < 0.5).float()
    for other in (
        x,
        x.relu(),
        x * 2,
        x * mask,  # keeps the size: in evaluation as well
        x * torch.rand(64, 16),
        x * x,
        x * (mask + 1),
        x * torch.full((64, 16), 2.0),
        x * 2 * mask.mean(),
        F.dropout(x, 0.5, training=False),
        F.dropout(x, 0.0),
        F.dropout(x, 1.0),
        F.dropout(x, 0.5).relu(),
        F.dropout(x.detach(), 0.5),
        F.dropout1d(x.view(8, 8, 16), 0.5),
        F.dropout(x[:0], 0.5),
    ):
        assert kept_share(other) is None


@pytest.mark.parametrize("method", ["learned_range", "lsq"])
@pytest.mark.parametrize("p", [0.5, 0.75])
def test_the_range_is_that_of_evaluation(method: str, p: float) -> None:
    config = QuantizerConfig(bits=2, method=method, search=False)
    quantizer, plain = build_quantizer(config), build_quantizer(config)
    x = hidden()
    dropped = F.dropout(x, p)
    value = quantizer(dropped)[0]
    kept = (1 - p) * dropped
    expected = plain(kept.detach())[0]
    assert torch.equal((1 - p) * value, expected)
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert torch.equal(grad, (dropped.detach() != 0) / (1 - p))
    with torch.no_grad():
        assert torch.equal(quantizer.eval()(x)[0], plain.eval()(x)[0])
    # Dropout after rounding: what is left of the values is what rounding gave.
    assert set(((1 - p) * value).unique().tolist()) <= set(plain(x.detach())[0].unique().tolist())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_twice(reentrant: bool) -> None:
    quantizer = build_quantizer(QuantizerConfig(bits=2, search=False))
    seen: list[Tensor] = []

    def part(x: Tensor) -> Tensor:
        seen.append(quantizer(F.dropout(x, 0.5))[0].detach())
        return seen[-1] * x

    checkpoint(part, hidden(), use_reentrant=reentrant).sum().backward()
    first, again = seen
    assert torch.equal(first, again)


def test_rows_have_their_own() -> None:
    config = QuantizerConfig(bits=2, granularity="node", statistics="current", search=False)
    quantizer, dropped = build_quantizer(config), F.dropout(hidden(), 0.5)
    assert torch.equal(quantizer(dropped)[0], build_quantizer(config)(dropped.detach())[0])
