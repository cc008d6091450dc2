"""One node of autograd gives the numbers that the operations inside of it give one by one."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.helpers.quantizer_cases import PLACES
from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.quantizers import LearnedRangeQuant, learned_range
from torch_geometric_qlr.quantizers.observing import Observing

CONFIGS: list[dict[str, Any]] = [
    {},
    {"bits": 1},
    {"bits": 4, "gradient_scaling": True},
    {"bits": 2, "truncation": "bt", "zero_aligned": True},
    {"bits": 2, "truncation": "bt*", "skewness_unit": "step", "skewness_rounding": True},
]


def steps(
    fields: dict[str, Any], place: tuple[str, str, int], one_node: bool, order: int
) -> list[Tensor]:
    """What three steps of training give, in values, gradients and state."""
    granularity, statistics, groups = place
    config = QuantizerConfig(granularity=granularity, statistics=statistics, **fields)
    quantizer, generator = LearnedRangeQuant(config, groups), torch.Generator().manual_seed(0)
    out: list[Tensor] = []
    with mock.patch.object(learned_range, "runs_plainly", lambda: one_node):
        for _ in range(3):
            x = torch.randn(8, 6, generator=generator).requires_grad_()
            value, scale, zero_point, _ = quantizer(x)
            loss = (value.sin().sum() + scale.square().sum()) * 1.5
            wanted = (x, quantizer.gamma)
            grads = torch.autograd.grad(loss, wanted, create_graph=order == 2)
            if order == 2:
                again = torch.autograd.grad(sum((g * g).sum() for g in grads), wanted)
                grads = (*grads, *again)
            with torch.no_grad():
                quantizer.gamma -= 0.01 * grads[1]
            out += [value.detach(), scale.detach(), zero_point, *grads]
    return [*out, *quantizer.state_dict().values()]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(map(str, place[:2])))
@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_first_order_is_the_same_bit_for_bit(
    fields: dict[str, Any], place: tuple[str, str, int]
) -> None:
    one, many = (steps(fields, place, one_node, order=1) for one_node in (True, False))
    for a, b in zip(one, many, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(map(str, place[:2])))
@pytest.mark.parametrize("fields", CONFIGS, ids=str)
def test_second_order_is_the_same(fields: dict[str, Any], place: tuple[str, str, int]) -> None:
    one, many = (steps(fields, place, one_node, order=2) for one_node in (True, False))
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_multiplier_below_its_floor_climbs_back(groups: int) -> None:
    granularity = "tensor" if groups == 1 else "feature"
    quantizer = LearnedRangeQuant(QuantizerConfig(granularity=granularity), groups)
    x = torch.randn(5, 3).abs()
    quantizer(x)
    with torch.no_grad():
        quantizer.gamma.view(-1)[0] = -0.3
    (one, scale, *_), grads = quantizer(x), []
    grads.append(torch.autograd.grad(one.sum(), quantizer.gamma)[0])
    quantizer.eval()
    with mock.patch.object(learned_range, "runs_plainly", lambda: False):
        many = quantizer(x)[0]
    grads.append(torch.autograd.grad(many.sum(), quantizer.gamma)[0])
    assert one.equal(many) and grads[0].equal(grads[1])
    assert bool((scale > 0).all()) and bool((grads[0].view(-1)[0] > 0).all())


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    quantizer, x = LearnedRangeQuant(QuantizerConfig()), torch.randn(4, 3)
    value, scale, *_ = quantizer(x)  # features, which need none
    (grad,) = torch.autograd.grad(scale, quantizer.gamma, retain_graph=True)
    assert grad.isfinite() and grad != 0
    (grad,) = torch.autograd.grad(value.square().sum(), quantizer.gamma)
    assert grad.isfinite()
    quantizer.gamma.requires_grad_(False)  # a part that is frozen
    leaf = x.clone().requires_grad_()
    value, scale, *_ = quantizer(leaf)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    assert grad.equal(torch.where(grad != 0, 1.0, 0.0))
    with torch.no_grad():
        assert not quantizer(leaf)[0].requires_grad


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_computed_again_saves_the_same(reentrant: bool) -> None:
    quantizer = LearnedRangeQuant(QuantizerConfig(bits=3))
    x = torch.randn(5, 4, requires_grad=True)
    quantizer(x)
    for _ in range(3):
        out = checkpoint(lambda t: quantizer(t)[0].square(), x, use_reentrant=reentrant)
        out.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


class Reads(TorchDispatchMode):
    """Counts what a host waits for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reading = ("aten.item", "aten._local_scalar_dense", "qlr.observed_quantize.")
        self.count += str(func).startswith(reading)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(map(str, place[:2])))
def test_where_reading_would_stall_the_device_nothing_is_read(place: tuple[str, str, int]) -> None:
    granularity, statistics, groups = place
    config = QuantizerConfig(granularity=granularity, statistics=statistics)
    quantizer, x = LearnedRangeQuant(config, groups), torch.randn(8, 6, requires_grad=True)
    quantizer(x)
    with Reads() as on_cpu:
        quantizer(x)[0].sum().backward()
    with (
        mock.patch.object(Observing, "_may_read", staticmethod(lambda x: False)),
        mock.patch.object(LearnedRangeQuant, "_learns_at_once", lambda self, x: False),
        Reads() as elsewhere,
    ):
        quantizer(x)[0].sum().backward()
    assert on_cpu.count > 0  # is the batch finite?
    assert elsewhere.count == 0
