"""A training step in one op gives the numbers of the ops that it stands for, bit for bit."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.helpers.quantizer_cases import PLACES
from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.quantizers import LearnedRangeQuant, learned_step

TRUNCATIONS: list[dict[str, Any]] = [
    {},
    {"truncation": "bt"},
    {"truncation": "bt", "zero_aligned": True},
    {"truncation": "bt*"},
]
MORE: list[dict[str, Any]] = [
    {"gradient_scaling": True},
    {"momentum": 0.7},
    {"momentum": 1.0, "gradient_scaling": True, "truncation": "bt", "bits": 3},
]
by_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(map(str, place[:2])))


def quantizer_of(place: tuple[str, str, int], **fields: Any) -> LearnedRangeQuant:
    granularity, statistics, groups = place
    config = QuantizerConfig(granularity=granularity, statistics=statistics, **fields)
    return LearnedRangeQuant(config, groups)


def batches(kind: str) -> list[Tensor]:
    """Four of [8, 6]."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(8, 6, generator=generator) * 3**k for k in range(4)]
    if kind == "constant":
        return [torch.full((8, 6), value) for value in (0.7, 0.0, -2.0, 1e-30)]
    if kind == "huge":
        return [drawn[0], drawn[1] * 1e36, drawn[2] * 1e-30, drawn[3]]
    if kind == "positive":
        return [x.abs() for x in drawn]
    return [x.t().contiguous().t() for x in drawn] if kind == "transposed" else drawn


def one_by_one() -> ExitStack:
    """Within it nothing is computed at once."""
    stack = ExitStack()
    stack.enter_context(
        mock.patch.object(LearnedRangeQuant, "_learns_at_once", lambda self, x: False)
    )
    stack.enter_context(
        mock.patch.object(
            learned_step,
            "_gradients_of_values",
            lambda ctx, saved, grad: learned_step._gradients(ctx, saved, grad, None),
        )
    )
    return stack


def steps(quantizer: LearnedRangeQuant, data: list[Tensor]) -> list[Tensor]:
    """What training gives, in values, gradients and state. The multiplier passes its floor."""
    out: list[Tensor] = []
    for k, batch in enumerate(data):
        x = batch.clone(memory_format=torch.preserve_format).requires_grad_()
        value, scale, zero_point, _ = quantizer(x)
        loss = value.sin().sum() + (scale.square().sum() if k == 2 else 0.0)
        grads = torch.autograd.grad(loss, (x, quantizer.gamma))
        with torch.no_grad():
            quantizer.gamma.view(-1)[0] = -0.4 if k == 1 else 0.8
        assert scale.requires_grad and not zero_point.requires_grad
        out += [value.detach(), scale.detach(), zero_point, *grads]
        out += [kept.clone() for kept in quantizer.state_dict().values()]
    return out


def assert_same(place: tuple[str, str, int], kind: str, **fields: Any) -> None:
    at_once = steps(quantizer_of(place, **fields), batches(kind))
    with one_by_one():
        apart = steps(quantizer_of(place, **fields), batches(kind))
    for a, b in zip(at_once, apart, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7))


@by_place
@pytest.mark.parametrize(
    "bits", (8, 2, *(pytest.param(b, marks=pytest.mark.heavy) for b in (4, 1)))
)
@pytest.mark.parametrize("fields", TRUNCATIONS, ids=str)
def test_the_same_bits(place: tuple[str, str, int], bits: int, fields: dict[str, Any]) -> None:
    for kind in ("drawn", "constant", "positive", "transposed", "huge"):
        assert_same(place, kind, bits=bits, **fields)


@by_place
@pytest.mark.parametrize("fields", MORE, ids=str)
def test_the_same_bits_with_other_options(
    place: tuple[str, str, int], fields: dict[str, Any]
) -> None:
    assert_same(place, "drawn", **fields)


@by_place
def test_most_steps_are_one_op(place: tuple[str, str, int]) -> None:
    quantizer, x = quantizer_of(place), torch.randn(8, 6, requires_grad=True)
    assert not quantizer._learns_at_once(x)  # has no range yet
    quantizer(x)
    assert quantizer._learns_at_once(x)
    for other in (x.double(), x[:, :0], x.to("meta")):
        assert not quantizer._learns_at_once(other)
    with torch.no_grad():
        assert not quantizer._learns_at_once(x)
    with torch.autograd.graph.save_on_cpu():
        assert not quantizer._learns_at_once(x)
    assert not quantizer.eval()._learns_at_once(x)


@pytest.mark.cpu
@by_place
@pytest.mark.parametrize("bad", (torch.nan, torch.inf, -torch.inf))
def test_what_has_no_range_moves_nothing(place: tuple[str, str, int], bad: float) -> None:
    quantizer, x = quantizer_of(place), torch.randn(8, 6)
    quantizer(x)
    before = {name: kept.clone() for name, kept in quantizer.state_dict().items()}
    x[3, 4] = bad
    with pytest.raises(InputError, match="quantizer: the tensor to quantize holds NaN or Inf"):
        quantizer(x)
    assert all(kept.equal(before[name]) for name, kept in quantizer.state_dict().items())


@by_place
def test_nothing_is_no_step(place: tuple[str, str, int]) -> None:
    quantizer = quantizer_of(place)
    quantizer(torch.randn(8, 6))
    before = {name: kept.clone() for name, kept in quantizer.state_dict().items()}
    shape = (8, 0) if place[0] == "channel" else (0, 6)
    value, *_ = quantizer(torch.zeros(shape, requires_grad=True))
    assert value.shape == shape
    assert all(kept.equal(before[name]) for name, kept in quantizer.state_dict().items())


@by_place
def test_second_derivatives(place: tuple[str, str, int]) -> None:
    found = []
    for stack in (ExitStack(), one_by_one()):
        quantizer, x = quantizer_of(place), batches("drawn")[0].requires_grad_()
        quantizer(x)
        with stack:
            value = quantizer(x)[0]
            grads = torch.autograd.grad(value.sin().sum(), (x, quantizer.gamma), create_graph=True)
            penalty = sum((g * g).sum() for g in grads)
            again = torch.autograd.grad(penalty, (x, quantizer.gamma))
        found.append([*grads, *again])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_moves_a_range_once() -> None:
    kept = []
    for recomputes in (False, True):
        quantizer = quantizer_of(PLACES[0])
        for x in batches("drawn"):
            x.requires_grad_()
            run = lambda t, q=quantizer: q(t)[0].sin()  # noqa: E731
            out = checkpoint(run, x, use_reentrant=False) if recomputes else run(x)
            out.sum().backward()
        kept.append([quantizer.lo, quantizer.hi, quantizer.gamma.grad])
    for a, b in zip(*kept, strict=True):
        assert torch.equal(a, b)
