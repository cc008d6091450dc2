"""Learned step size: its start, its gradient, its codes, and how a config asks for it."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import brevitas.nn as qnn
import pytest
import torch
from torch import Tensor
from torch_geometric.nn import GCN

import torch_geometric_qlr as qlr
from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import ConfigError, InputError
from torch_geometric_qlr.quantizers import FrozenGrid, QLRActPerTensor, build_quantizer
from torch_geometric_qlr.quantizers.lsq import LearnedStepQuant

# Granularity, statistics, number of steps of an 8 x 6 matrix, and weights or features of each.
PLACES = [
    pytest.param("tensor", "running", 1, 6, id="features"),
    pytest.param("feature", "running", 6, 1, id="per-feature"),
    pytest.param("tensor", "current", 1, 48, id="weight"),
    pytest.param("channel", "current", 8, 6, id="per-channel"),
]


def lsq(num_groups: int = 1, **fields: Any) -> LearnedStepQuant:
    quantizer = build_quantizer(QuantizerConfig(method="lsq", **fields), num_groups=num_groups)
    assert isinstance(quantizer, LearnedStepQuant)
    return quantizer


def data(*shape: int, seed: int = 0, sign: bool = True) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2
    return x if sign else x.abs()


@pytest.mark.parametrize("sign", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_starts_as_in_the_paper(bits: int, sign: bool) -> None:
    quantizer, x = lsq(bits=bits), data(8, 6, sign=sign)
    quantizer(x)
    highest = 2 ** (bits - 1) - 1 if sign else 2**bits - 1
    expected = 2 * x.abs().mean() / math.sqrt(highest)
    torch.testing.assert_close(quantizer.step.detach(), expected)
    assert quantizer.offset == (2 ** (bits - 1) if sign else 0)


def test_weights_have_a_sign_whatever_they_start_with() -> None:
    quantizer = lsq(8, bits=4, granularity="channel", statistics="current")
    value = quantizer(data(8, 6, sign=False))[0]
    assert quantizer.offset.tolist() == [8.0] * 8 and bool((value >= 0).all())


@pytest.mark.parametrize("sign", [True, False])
@pytest.mark.parametrize(("granularity", "statistics", "groups", "size"), PLACES)
def test_gradient_by_finite_differences(
    granularity: str, statistics: str, groups: int, size: int, sign: bool
) -> None:
    """Of the function in which rounding adds what it adds now: the straight-through estimator."""
    quantizer = lsq(groups, bits=3, granularity=granularity, statistics=statistics)
    x, weight = data(8, 6, sign=sign), data(8, 6, seed=1)
    quantizer(x)
    with torch.no_grad():
        quantizer.step.mul_(0.4)  # many values lie at the ends and beyond
    (quantizer(x)[0] * weight).sum().backward()
    assert quantizer.step.grad is not None

    step, offset = (
        quantizer.groups.beside(t.detach().double()) for t in (quantizer.step, quantizer.offset)
    )
    x, highest = x.double(), 7 - offset
    code = torch.round(x / step)
    rounding, inside = code - x / step, (code >= -offset) & (code <= highest)
    assert inside.any() and not inside.all()

    def surrogate(s: Tensor) -> Tensor:
        return s * torch.where(inside, x / s + rounding, code.clamp(-offset, highest)) * weight

    eps = 1e-4
    slope = (surrogate(step + eps) - surrogate(step - eps)) / (2 * eps)
    if quantizer.groups.axis != -1:
        slope = slope.sum(1 - quantizer.groups.axis)
    else:
        slope = slope.sum()
    factor = 1 / (size * highest.reshape(quantizer.shape)).sqrt()
    torch.testing.assert_close(quantizer.step.grad.double(), slope * factor, rtol=1e-4, atol=1e-5)


def test_gradient_of_the_values_passes_in_range() -> None:
    quantizer, x = lsq(bits=2), torch.tensor([-9.0, -0.4, 0.3, 9.0], requires_grad=True)
    quantizer(x)
    with torch.no_grad():
        quantizer.step.fill_(1.0)
    quantizer(x)[0].sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_a_step_that_lost_its_sign_climbs_back() -> None:
    quantizer, x = lsq(bits=4), data(8, 6)
    quantizer(x)
    with torch.no_grad():
        quantizer.step.fill_(-0.1)
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        value = quantizer(x)[0]
        assert bool(value.isfinite().all())
        (value - x).square().mean().backward()
        optimizer.step()
    assert quantizer.step > 0.05


def test_evaluation_batches_count_in_any_order() -> None:
    batches = [data(8, 6, seed=1, sign=False), 3 * data(5, 6, seed=2), data(9, 6, seed=3)]
    found = set()
    for order in itertools.permutations(batches):
        quantizer = lsq(bits=4).eval()
        for batch in (*order, *order):
            quantizer(batch)
        found.add((round(quantizer.step.item(), 5), quantizer.offset.item()))
        before = quantizer.step.item()
        quantizer.train()(10 * batches[0])
        assert quantizer.step.item() == before and quantizer.is_fixed
    assert len(found) == 1


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr", "to_sparse_csc"])
def test_sparse_input_equals_dense(layout: str) -> None:
    x = data(12, 9) * (data(12, 9, seed=1) > 1)
    dense = lsq(bits=4)
    sparse = copy.deepcopy(dense)
    out = sparse.quantize_sparse(getattr(x, layout)())
    torch.testing.assert_close(out.to_dense(), dense(x)[0].detach())


@pytest.mark.parametrize(("granularity", "statistics", "groups", "size"), PLACES)
def test_codes_are_the_same_with_and_without_gradients_and_frozen(
    granularity: str, statistics: str, groups: int, size: int
) -> None:
    quantizer = lsq(groups, bits=4, granularity=granularity, statistics=statistics)
    x = data(8, 6)
    quantizer(x)
    with torch.no_grad():
        quantizer.step.mul_(0.97)
    expected = quantizer(x)[0]
    quantizer.eval()
    assert torch.equal(quantizer(x)[0], expected)
    frozen = quantizer.freeze()
    assert isinstance(frozen, FrozenGrid) and not list(frozen.parameters())
    for one in (quantizer, frozen, copy.deepcopy(frozen), copy.deepcopy(frozen).double()):
        with torch.no_grad():
            assert torch.equal(one(x)[0], expected)
            assert torch.equal(one.pack(x).dequantize(), expected)
    frozen.train()(100 * x)
    assert torch.equal(frozen(x)[0], expected)


def test_what_is_computed_once_follows_the_state() -> None:
    quantizer, x = lsq(bits=4), data(8, 6)
    quantizer(x)
    frozen = quantizer.freeze()
    before = frozen.output()
    frozen.load_state_dict(
        {k: 2 * v if k == "scale" else v for k, v in frozen.state_dict().items()}
    )
    after = frozen.output()
    assert before is not None and after is not None
    assert torch.equal(after.scale, 2 * before.scale) and after.scale is not before.scale
    assert torch.equal(frozen.pack(x).scale, 2 * before.scale)


def test_what_has_no_step_says_so() -> None:
    with pytest.raises(ConfigError, match="has never seen data"):
        lsq(bits=4).freeze().pack(data(8, 6))


@pytest.mark.cpu
def test_refuses_to_start_on_what_is_no_number() -> None:
    x = data(8, 6)
    x[2, 3] = torch.nan
    with pytest.raises(InputError, match="NaN or Inf"):
        lsq(bits=4)(x)


def test_transforms_of_functions() -> None:
    quantizer, x = lsq(bits=4), data(8, 6)

    def loss(x: Tensor) -> Tensor:
        return quantizer(x)[0].square().sum()

    with pytest.raises(InputError, match="vmap"):
        torch.func.vmap(loss)(x)
    started = torch.func.grad(loss)(x)
    assert quantizer.has_range
    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    assert torch.equal(started, leaf.grad)
    assert torch.func.vmap(loss)(x).shape == (8,)


def test_works_in_brevitas_layers() -> None:
    act = qnn.QuantIdentity(act_quant=QLRActPerTensor.let(method="lsq"), bit_width=4)
    x = data(8, 6)
    own = lsq(bits=4)
    assert torch.equal(act(x), own(x)[0])


# How a config asks for it #########################################################################


def test_a_config_keeps_the_method() -> None:
    config = qlr.QLRConfig(bits=4, method="lsq")
    assert qlr.QLRConfig.from_dict(config.to_dict()) == config
    assert config.quantizer("weight").method == "lsq"
    # Written before there was a choice, and read by what knows of none.
    old = qlr.QLRConfig.from_dict({"version": 1, "bits": 4})
    assert old.method == "learned_range" and "method" not in old.to_dict()
    assert "method" not in old.quantizer("weight").to_dict()


def test_an_override_chooses_a_method() -> None:
    model = GCN(8, 16, num_layers=2, out_channels=4)
    plan = qlr.plan(model, bits=4, overrides={"convs.1": {"method": "lsq"}})
    told = {e.name for e in plan.entries if "method 'lsq'" in e.note}
    assert told == {"convs.1", "convs.1.lin"}
    assert "method" not in str(qlr.plan(model, bits=4))
    qmodel = qlr.quantize(model, bits=4, overrides={"convs.1": {"method": "lsq"}})
    kinds = [type(m).__name__ for m in qmodel.modules() if isinstance(m, qlr.quantizers.Quantizer)]
    assert kinds.count("LearnedStepQuant") == kinds.count("LearnedRangeQuant") == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "lsp"}, r"convs.0.* method='lsp' is unknown; choose one of 'learned_range'"),
        ({"method": "lsq"}, r"convs.0.lin.input: method 'lsq' .* none per node. Use preset='lsq'"),
        ({"preset": "lsq", "bits": 1}, r"method 'lsq' needs 2 bits or more"),
        ({"preset": "lsq", "bits": 2, "truncation": "bt"}, r"method 'lsq' does not truncate"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(
    fields: dict[str, Any], message: str
) -> None:
    model = GCN(8, 16, num_layers=2, out_channels=4)
    with pytest.raises(ConfigError, match=message):
        qlr.quantize_(model, **fields)
    assert type(model.convs[0]).__name__ == "GCNConv"


def test_a_method_is_a_name() -> None:
    with pytest.raises(ConfigError, match="method=3 is no name"):
        qlr.QLRConfig(method=3)  # type: ignore[arg-type]
