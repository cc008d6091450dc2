"""Ranges made of evaluation batches: every batch counts, in any order, until the range is fixed."""

from __future__ import annotations

import copy
import itertools
import logging
import pickle
import threading

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.quantizers import FrozenRange, LearnedRangeQuant, RangeState
from torch_geometric_qlr.quantizers import learned_range as module

KINDS = [("tensor", "running"), ("feature", "running"), ("node", "current"), ("tensor", "current")]
every_kind = pytest.mark.parametrize(("granularity", "statistics"), KINDS)


def make(**fields: object) -> LearnedRangeQuant:
    groups = 5 if fields.get("granularity") == "feature" else 1
    return LearnedRangeQuant(QuantizerConfig(**fields), groups).eval()  # type: ignore[arg-type]


def state(q: LearnedRangeQuant) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in q.state_dict().items()}


def batches() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    scales, shifts = (0.2, 1.0, 0.5), (0.3, 0.0, -0.8)
    return [
        (s * torch.randn(50, 5, generator=rng)).pow(3) + t
        for s, t in zip(scales, shifts, strict=True)
    ]


@every_kind
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("truncation", [None, "bt*"])
def test_the_order_makes_no_difference(
    granularity: str, statistics: str, bits: int, truncation: str | None
) -> None:
    fields = {"granularity": granularity, "statistics": statistics, "bits": bits}
    fields["truncation"] = truncation if bits < 8 else None
    states = []
    for order in itertools.permutations(batches()):
        q = make(**fields)
        for x in order:
            q(x)
        states.append(state(q))
    for other in states[1:]:
        for key, value in states[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_the_range_is_the_union_and_nothing_is_clipped_more_than_alone() -> None:
    alone = []
    for x in batches():
        one = make(bits=2)
        one(x)
        alone.append((one.lo, one.hi, one.gamma.detach()))
    q = make(bits=2)
    for x in batches():
        q(x)
    assert q.lo == min(lo for lo, _, _ in alone) and q.hi == max(hi for _, hi, _ in alone)
    low = min(g * lo for lo, _, g in alone)
    high = max(g * hi for _, hi, g in alone)
    assert q.gamma * q.lo <= low * (1 - 1e-5) and q.gamma * q.hi >= high * (1 - 1e-5)
    # One multiplier for both ends: one of them is tight.
    torch.testing.assert_close(q.gamma.detach(), torch.maximum(low / q.lo, high / q.hi))


def test_of_one_sign_the_clipped_range_is_exactly_the_union() -> None:
    q, ends = make(bits=2), []
    for x in batches():
        one = make(bits=2)
        one(x.abs())
        q(x.abs())
        ends.append(one.gamma * one.hi)
    torch.testing.assert_close(q.gamma * q.hi, torch.stack(ends).max())


def test_rows_get_the_largest_multiplier() -> None:
    fields = {"bits": 2, "granularity": "node", "statistics": "current"}
    alone = []
    for x in batches():
        one = make(**fields)
        one(x)
        alone.append(one.gamma.detach())
    q = make(**fields)
    for x in batches():
        q(x)
    assert q.gamma == max(alone)


@every_kind
def test_a_counted_batch_writes_nothing(granularity: str, statistics: str) -> None:
    q = make(granularity=granularity, statistics=statistics, bits=2, truncation="bt*")
    for x in batches():
        q(x)
    before, tensors = state(q), [*q.parameters(), *q.buffers()]
    versions = [t._version for t in tensors]
    for twin in (q, copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        for x in batches():
            twin(x)
        assert all(torch.equal(v, before[k]) for k, v in state(twin).items())
    assert versions == [t._version for t in tensors]


def test_a_narrow_batch_changes_nothing_but_is_counted() -> None:
    q = make(bits=8)
    wide = torch.linspace(-1, 1, 100)
    q(wide)
    before = state(q)
    q(0.1 * wide)
    assert all(torch.equal(v, before[k]) for k, v in state(q).items())


def test_empty_faint_and_constant_batches() -> None:
    x = batches()[1]
    expected = make(bits=4)
    expected(x)
    for order in ([torch.zeros(3, 5), x], [x, torch.zeros(3, 5)], [x[:0], x, x[:0]]):
        q = make(bits=4)
        for batch in order:
            q(batch)
        for key, value in state(expected).items():
            torch.testing.assert_close(state(q)[key], value, rtol=1e-6, atol=0, msg=key)


def test_without_a_search_the_multiplier_stays() -> None:
    q = make(bits=4, search=False)
    for x in batches():
        q(x)
    assert q.gamma == 1 and q.hi == max(x.max() for x in batches())


def test_training_goes_on_from_there_and_evaluation_moves_nothing_then() -> None:
    q = make(bits=4, momentum=0.25)
    for x in batches():
        q(x)
    hi, gamma = q.hi.clone(), q.gamma.detach().clone()
    x = torch.full((4, 5), 7.0)
    q.train()(x)
    torch.testing.assert_close(q.hi, hi.lerp(torch.tensor(7.0), 0.25))
    assert q.gamma == gamma and q.range_state == RangeState.FIXED
    before = state(q)
    q.eval()(100 * x)
    assert all(torch.equal(v, before[k]) for k, v in state(q).items())


@pytest.mark.parametrize("how", ["fix", "load", "freeze"])
def test_what_ends_growing(how: str) -> None:
    q, x = make(bits=4), torch.linspace(0, 1, 20)
    q(x)
    assert q.range_state == RangeState.GROWING and "growing" in repr(q)
    if how == "fix":
        q.fix()
        done: LearnedRangeQuant | FrozenRange = q
    elif how == "load":
        done = make(bits=4)
        done.load_state_dict(q.state_dict())
    else:
        done = FrozenRange.of(q)
    assert done.range_state == RangeState.FIXED and "fixed" in repr(done)
    expected = done(x)[0]
    done(5 * x)
    assert done.hi == 1 and torch.equal(done(x)[0], expected)
    assert "missing" in repr(make(bits=4))


def test_fix_does_not_invent_a_range() -> None:
    q = make(bits=4)
    q.fix()
    assert q.range_state == RangeState.MISSING


def test_a_multiplier_that_is_learned_in_eval_is_not_taken_back() -> None:
    q, x = make(bits=2), batches()[0]
    optimizer = torch.optim.SGD(q.parameters(), lr=0.1)
    q(x)[0].square().sum().backward()
    optimizer.step()
    learned = q.gamma.detach().clone()
    q(5 * x)
    assert q.gamma == learned and q.range_state == RangeState.FIXED


def test_it_is_told_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOLD", set())
    with caplog.at_level(logging.INFO, logger="torch_geometric_qlr"):
        for _ in range(2):
            q = make(bits=4)
            q.path = "convs.0.input"
            q(torch.ones(3))
            q.train()(torch.ones(3))
    assert len(caplog.records) == 1
    assert "convs.0.input" in caplog.text and "fix()" in caplog.text


def test_threads_on_one_graph_agree() -> None:
    x = batches()[0]
    expected = make(bits=2)
    value = expected(x)[0].detach()
    q = make(bits=2)
    answers: list[Tensor] = []

    def run() -> None:
        for _ in range(20):
            answers.append(q(x)[0].detach())

    threads = [threading.Thread(target=run) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(answers) == 120 and all(torch.equal(a, value) for a in answers)
    assert all(torch.equal(v, state(expected)[k]) for k, v in state(q).items())


@pytest.mark.cpu
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@every_kind
def test_a_batch_without_a_range_is_refused_while_it_counts(
    granularity: str, statistics: str, bad: float
) -> None:
    q = make(granularity=granularity, statistics=statistics, bits=4)
    q.path = "convs.1.input"
    x = batches()[0]
    q(x)
    before = state(q)
    x[3, 2] = bad
    with pytest.raises(InputError, match=r"convs\.1\.input: .*NaN or Inf"):
        q(x)
    assert all(torch.equal(v, before[k]) for k, v in state(q).items())


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("shape", ["as it was", "matrix"])
def test_state_of_older_versions(flag: bool, shape: str) -> None:
    source = make(bits=4, granularity="feature")
    source(batches()[0])
    saved = source.state_dict() | {"calibrated": torch.tensor(flag)}
    if shape == "matrix":
        saved |= {k: saved[k].view(1, 5) for k in ("gamma", "lo", "hi")}
    q = make(bits=4, granularity="feature")
    q.load_state_dict(saved)
    assert q.range_state == (RangeState.FIXED if flag else RangeState.MISSING)
    assert q.gamma.shape == (5,) and torch.equal(q.gamma, source.gamma)


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_averages_of_equal_models_are_that_model(ema: bool, train: bool) -> None:
    q, x = make(bits=4).train(train), batches()[0]
    q(x)
    how = {"multi_avg_fn": get_ema_multi_avg_fn(0.9)} if ema else {}
    average = AveragedModel(q, use_buffers=True, **how)
    for _ in range(3):
        average.update_parameters(q)
    for key, value in state(q).items():
        torch.testing.assert_close(average.module.state_dict()[key], value, rtol=1e-6, atol=0)
    torch.testing.assert_close(average.eval()(x)[0], q.eval()(x)[0])


def test_initializers_for_matrices_leave_multipliers_alone() -> None:
    for granularity, groups in (("channel", 5), ("feature", 5), ("node", 1), ("tensor", 1)):
        statistics = "current" if granularity in ("channel", "node") else "running"
        config = QuantizerConfig(bits=4, granularity=granularity, statistics=statistics)
        q = LearnedRangeQuant(config, groups)
        assert all(t.dim() < 2 for t in [*q.parameters(), *q.buffers()])
