"""Packed codes are those that the fake quantizer stands for, of learning and of frozen ranges."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import ConfigError, InputError
from torch_geometric_qlr.quantizers import (
    FrozenRange,
    LearnedRangeQuant,
    RangeQuantizer,
    RangeState,
    freeze_ranges,
)

KINDS = [("tensor", "running"), ("feature", "running"), ("node", "current"), ("channel", "current")]
every_kind = pytest.mark.parametrize(("granularity", "statistics"), KINDS)


def make(granularity: str, statistics: str, rows: int = 4, **fields: object) -> LearnedRangeQuant:
    fields = {"bits": 3, "granularity": granularity, "statistics": statistics, **fields}
    groups = {"feature": 6, "channel": rows}.get(granularity, 1)
    return LearnedRangeQuant(QuantizerConfig(**fields), groups)  # type: ignore[arg-type]


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@every_kind
@pytest.mark.parametrize("truncation", [None, "bt", "bt*"])
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6), (4, 2, 3, 6), (1, 6), (4, 1, 6)])
def test_codes_are_identical_in_any_number_of_dimensions(
    granularity: str, statistics: str, truncation: str | None, shape: tuple[int, ...]
) -> None:
    q = make(granularity, statistics, shape[0], truncation=truncation)
    first, x = data(*shape), data(*shape, seed=1).exp() - 1
    q(first)
    q.eval()
    for quantizer in (q, FrozenRange.of(q)):
        packed = quantizer.pack(x)
        rows = (shape[0], -1) if granularity == "channel" else (-1, shape[-1])
        value = quantizer(x)[0].detach()
        assert torch.equal(packed.dequantize(), value.reshape(rows))
        assert torch.equal(packed.dequantize().view(shape), q(x)[0].detach())
    if granularity == "node":
        assert packed.granularity == ("row" if len(packed) > 1 else "tensor")


@pytest.mark.parametrize("granularity", ["tensor", "node"])
def test_views_and_other_dtypes(granularity: str) -> None:
    q = make(granularity, "running" if granularity == "tensor" else "current")
    x = data(3, 5, 6)
    q(x)
    q.eval()
    turned = x.transpose(0, 1)
    packed = q.pack(turned)
    assert torch.equal(packed.dequantize().view(5, 3, 6), q(turned)[0].detach())
    with pytest.raises(InputError, match=r"torch\.int64.*x\.float\(\)"):
        q.pack(x.long())


@pytest.mark.parametrize("granularity", ["tensor", "node"])
def test_packing_observes_as_the_forward_does(granularity: str) -> None:
    statistics = "running" if granularity == "tensor" else "current"
    left, right = (make(granularity, statistics).eval() for _ in range(2))
    for seed, scale in enumerate((1.0, 3.0)):
        x = scale * data(4, 6, seed=seed)
        value, packed = left(x)[0].detach(), right.pack(x)
        assert torch.equal(packed.dequantize(), value)
    for key, number in left.state_dict().items():
        assert torch.equal(number, right.state_dict()[key])


@every_kind
def test_a_kernel_may_write_codes_once_the_range_is_fixed(
    granularity: str, statistics: str
) -> None:
    q = make(granularity, statistics).eval()
    assert q.output() is None
    q(data(4, 6))
    assert q.output() is None  # the next batch counts, too
    q.fix()
    out = q.output()
    assert q.is_static == (out is not None)
    if out is not None:
        for given, own in zip(out[:2], q.code_params(q.gamma)[:2], strict=True):
            assert torch.equal(given, own) and not given.requires_grad
        frozen = FrozenRange.of(q)
        assert frozen.output() is frozen.output()


@every_kind
def test_frozen_state_is_that_of_the_quantizer(granularity: str, statistics: str) -> None:
    q = make(granularity, statistics, truncation="bt*")
    q(data(4, 6))
    frozen = FrozenRange.of(q)
    assert not isinstance(frozen, LearnedRangeQuant) and not list(frozen.parameters())
    assert list(frozen.state_dict()) == list(q.state_dict())
    assert all(torch.equal(v, q.state_dict()[k]) for k, v in frozen.state_dict().items())
    assert frozen.half().gamma.dtype == torch.float32
    twin = FrozenRange.of(make(granularity, statistics, truncation="bt*"))
    with pytest.raises(ConfigError, match="never seen data"):
        twin(data(4, 6))
    twin.load_state_dict(q.state_dict())
    for copied in (twin, copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert torch.equal(copied.train()(data(4, 6))[0], q.eval()(data(4, 6))[0].detach())
    before = frozen.pack(data(4, 6))
    q.train()(100 * data(4, 6))  # they share nothing
    assert frozen.pack(data(4, 6)).equal(before)


@pytest.mark.parametrize("name", ["gamma", "lo", "hi"])
@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_what_is_computed_once_follows_its_numbers(name: str, how: str) -> None:
    q = make("tensor", "running", bits=8)
    q(data(4, 6))
    frozen = FrozenRange.of(q)
    before, out = frozen.pack(data(4, 6)).scale, frozen.output()
    number = frozen.get_buffer(name)
    if how == "in place":
        number.mul_(2)
    else:
        setattr(frozen, name, 2 * number)
    after = frozen.pack(data(4, 6)).scale
    assert after > before and frozen.output() is not out
    torch.testing.assert_close(frozen.output().scale, after)  # type: ignore[union-attr]


def test_freezing_what_is_inside_of_a_module() -> None:
    inner = nn.ModuleList([make("tensor", "running"), make("node", "current")])
    quantizers = nn.ModuleDict({"weight": make("channel", "current"), "source_x": inner})
    for q in quantizers.modules():
        if isinstance(q, LearnedRangeQuant):
            q(data(4, 6))
    names = list(quantizers.state_dict())
    freeze_ranges(quantizers)
    found = [q for q in quantizers.modules() if isinstance(q, RangeQuantizer)]
    assert len(found) == 3 and all(isinstance(q, FrozenRange) for q in found)
    assert list(quantizers.state_dict()) == names
    assert all(q.range_state == RangeState.FIXED for q in found)
