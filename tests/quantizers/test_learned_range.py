"""The values, the codes and the gradients, against the formulas written out once more."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import ConfigError, InputError
from torch_geometric_qlr.quantizers import LearnedRangeQuant
from torch_geometric_qlr.quantizers.statistics import skewness

TRUNCATIONS = (None, "bt", "bt*")


def quantizer(num_groups: int = 1, **fields: object) -> LearnedRangeQuant:
    return LearnedRangeQuant(QuantizerConfig(**{"search": False, **fields}), num_groups)  # type: ignore[arg-type]


def by_hand(x: np.ndarray, gamma: float, bits: int, truncation: str | None) -> np.ndarray:
    """Section by section as the paper states it, in float64."""
    lo, hi = min(0.0, x.min()), max(0.0, x.max())
    code_bits = bits if truncation is None else 8
    s0 = (hi - lo) / (2**code_bits - 1)
    z = -lo / s0 if code_bits == 1 else np.round(-lo / s0)
    q = np.clip(np.round(x / (gamma * s0) + z), 0, 2**code_bits - 1)
    if truncation is None:
        return gamma * s0 * (q - z)
    t = 255 / (2**bits - 1)
    centered = x - x.mean()
    skew = (centered**3).mean() / (centered**2).mean() ** 1.5 if truncation == "bt*" else 0.0
    c = np.clip(np.round((q + skew) / t), 0, 2**bits - 1)
    return gamma * s0 * (t * c - z)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@given(
    bits=st.integers(1, 8),
    gamma=st.sampled_from([0.3, 0.7, 1.0, 1.3]),
    shift=st.sampled_from([-2.0, 0.0, 0.5, 5.0]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_values_are_those_of_the_paper(
    truncation: str | None, bits: int, gamma: float, shift: float, seed: int
) -> None:
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(seed)) + shift
    q = quantizer(bits=bits, truncation=truncation if bits < 8 else None)
    q.gamma.data.fill_(gamma)
    value, scale, zero_point, width = q(x)
    expected = by_hand(x.double().cpu().numpy(), gamma, bits, truncation if bits < 8 else None)
    # A value within float32 rounding of a threshold may fall on its other side.
    wrong = (value.detach().double().cpu() - torch.from_numpy(expected)).abs() > 1e-4
    assert wrong.float().mean() <= 0.02
    codes = value.detach() / scale.detach() + zero_point
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert codes.min() > -0.5 and codes.max() < 2**bits - 0.5 and width == bits


def surrogate(q: LearnedRangeQuant, x: Tensor) -> Tensor:
    """What the straight-through estimator differentiates: rounding residuals and clamps frozen."""
    with torch.no_grad():
        scale, z, k = q.code_params(x)
        bits, truncates = q.bits, q.config.truncates
        t = 255 / (2**bits - 1) if truncates else 1.0
        u = x / scale + z
        r = u.round()
        inside = (r >= 0) & (r <= (255 if truncates else 2**bits - 1))
        c = r
        if truncates:
            raw = ((r.clamp(0, 255) + (0 if k is None else k)) / t).round()
            inside &= (raw >= 0) & (raw <= 2**bits - 1)
            c = raw
        c = c.clamp(0, 2**bits - 1)
        residual = t * c - u
        clipped = t * c - z

    def evaluate(gamma_scale: Tensor) -> Tensor:
        return torch.where(inside, x + gamma_scale * residual, gamma_scale * clipped)

    return evaluate  # type: ignore[return-value]


@pytest.mark.parametrize("granularity", ["tensor", "channel", "feature", "node"])
@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradient_of_gamma_equals_finite_differences(
    bits: int, truncation: str | None, granularity: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 6)
    statistics = "running" if granularity in ("tensor", "feature") else "current"
    groups = {"channel": 30, "feature": 6}.get(granularity, 1)
    q = quantizer(
        groups, bits=bits, truncation=truncation, granularity=granularity, statistics=statistics
    )
    q(x)
    q.gamma.data.mul_(0.6)  # some values are clipped
    upstream = torch.randn_like(x)
    (q(x)[0] * upstream).sum().backward()
    assert q.gamma.grad is not None and bool((q.gamma.grad != 0).any())

    q.eval()
    frozen = surrogate(q, x)
    with torch.no_grad():
        scale0 = q.code_params(x)[0] / q.groups.beside(q.gamma)
        eps = 1e-2

        def loss(gamma: Tensor) -> Tensor:
            return frozen(q.groups.beside(gamma) * scale0).double() * upstream  # type: ignore[operator]

        for index in np.ndindex(tuple(q.gamma.shape)):
            up, down = q.gamma.clone(), q.gamma.clone()
            up[index] += eps
            down[index] -= eps
            expected = (loss(up) - loss(down)).sum() / (2 * eps)
            torch.testing.assert_close(q.gamma.grad[index].double(), expected, rtol=2e-3, atol=2e-3)


def test_clipped_values_follow_true_finite_differences() -> None:
    # Where every value is clipped nothing is rounded, so no estimator is needed at all.
    x = torch.tensor([-1.0, 3.0, 3.0])
    q = quantizer(bits=2)
    q(x)
    q.eval()
    q.gamma.data.fill_(0.3)
    x = torch.tensor([-1.0, 3.0, 2.5])
    q(x)[0].sum().backward()
    with torch.no_grad():
        values = []
        for gamma in (0.29, 0.31):
            q.gamma.fill_(gamma)
            values.append(q(x)[0].sum())
    torch.testing.assert_close(q.gamma.grad, (values[1] - values[0]) / 0.02, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_gradient_of_values_is_one_in_range_and_zero_outside(truncation: str | None) -> None:
    x = torch.linspace(-1, 1, 201)
    q = quantizer(bits=2, truncation=truncation)
    q(x)
    q.eval()
    wide = torch.linspace(-3, 3, 201, requires_grad=True)
    q(wide)[0].sum().backward()
    assert wide.grad is not None
    assert set(wide.grad.unique().tolist()) == {0.0, 1.0}
    assert bool((wide.grad[wide.abs() > 2] == 0).all())
    assert bool((wide.grad[wide.abs() < 0.5] == 1).all())


def test_gamma_moves_in_training_and_not_by_decay() -> None:
    torch.manual_seed(0)
    x, target = torch.randn(256, 8), torch.randn(256, 8).clamp(-0.5, 0.5)
    q = quantizer(bits=2)
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (q(x)[0] - target).square().mean().backward()
        optimizer.step()
    assert q.gamma < 0.8
    decayed = torch.nn.Parameter(torch.ones(()))
    sgd = torch.optim.SGD([decayed], lr=1e-2, weight_decay=5e-4)
    for _ in range(60):
        decayed.grad = torch.zeros(())
        sgd.step()
    assert (1 - q.gamma.item()) > 100 * (1 - decayed.item())


def test_lsq_gradient_scale() -> None:
    x = torch.randn(50, 10)
    plain, scaled = quantizer(bits=2), quantizer(bits=2, gradient_scaling=True)
    for q in (plain, scaled):
        q(x)[0].square().sum().backward()
    torch.testing.assert_close(scaled.gamma.grad, plain.gamma.grad / (500 * 3) ** 0.5)


def test_row_normalized_bags_of_words_are_exact_per_node() -> None:
    torch.manual_seed(0)
    words = (torch.rand(50, 40) < 0.2).float()
    words[3] = 0
    x = words / words.sum(1, keepdim=True).clamp_min(1)
    for bits in (1, 2):
        q = quantizer(bits=bits, granularity="node", statistics="current", search=True)
        torch.testing.assert_close(q(x)[0], x, rtol=1e-6, atol=0)
        assert q.gamma == 1


def test_one_bit_keeps_both_signs() -> None:
    value, *_ = quantizer(bits=1)(torch.tensor([-1.0, -0.4, 0.4, 1.0]))
    assert value.tolist() == [-1.0, -1.0, 1.0, 1.0]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_zero_aligned_truncation_keeps_zero(bits: int) -> None:
    x = torch.tensor([-0.7, 0.0, 0.3, 2.0])
    aligned = quantizer(bits=bits, truncation="bt", zero_aligned=True)
    assert aligned(x)[0][1].abs() < 1e-6
    free = quantizer(bits=2, truncation="bt")
    assert free(x)[0][1] != 0


def test_skewness_shifts_the_thresholds() -> None:
    x = torch.distributions.LogNormal(0.0, 1.0).sample((4000,))
    torch.manual_seed(0)
    code = quantizer(bits=2, truncation="bt*")
    step = quantizer(bits=2, truncation="bt*", skewness_unit="step")
    whole = quantizer(bits=2, truncation="bt*", skewness_rounding=True)
    plain = quantizer(bits=2, truncation="bt")
    shifts = [q.code_params(x)[2] for q in (code, step, whole) if q(x)]
    assert shifts[0] is not None and shifts[1] is not None and shifts[2] is not None
    torch.testing.assert_close(shifts[1], shifts[0] * 85)
    assert shifts[2] == shifts[0].round()
    assert code(x)[0].mean() > plain(x)[0].mean()


def test_running_statistics_in_training_only() -> None:
    q = quantizer(bits=4, momentum=0.25)
    q(torch.tensor([0.0, 1.0]))
    q(torch.tensor([0.0, 5.0]))
    assert q.hi == 2.0 and q.lo == 0.0
    q.eval()
    q(torch.tensor([0.0, 100.0]))
    assert q.hi == 2.0


def test_evaluation_before_training_observes_every_batch() -> None:
    q = quantizer(bits=8).eval()
    x = torch.linspace(0, 410, 256)
    torch.testing.assert_close(q(x)[0], x, atol=1.0, rtol=0)
    q(10 * x)
    assert q.hi == 4100


def test_grid_start_beats_the_full_range() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000).pow(3)
    searched, full = quantizer(bits=2, search=True), quantizer(bits=2)
    assert (searched(x)[0] - x).abs().mean() < 0.8 * (full(x)[0] - x).abs().mean()
    grid = torch.arange(1, 11) / 10
    start = searched.gamma.detach()
    assert bool(torch.isclose(grid, start, rtol=1e-3).any())
    # Off the grid itself, where sums of codes fall between two codes; a tensor's own range is not
    # observed on such sums before, and starts on it.
    assert not bool(torch.isclose(grid, start, rtol=1e-4).any())
    current = quantizer(bits=2, search=True, statistics="current")
    current(x)
    assert bool((grid == current.gamma.detach()).any())


def test_means_of_codes_do_not_fall_between_two_codes() -> None:
    codes = torch.randint(0, 16, (5000, 12), generator=torch.Generator().manual_seed(0)).float()
    means = torch.stack([codes[:, :d].mean(dim=1) for d in range(1, 13)])
    for bits in (1, 2, 4, 8):
        q = quantizer(bits=bits, search=True)
        q(means)
        scale, zero_point, _ = q.code_params(means)
        at = (means.double() / scale + zero_point).detach()
        assert float((at - at.floor() - 0.5).abs().min()) > 1e-5


def test_empty_constant_and_single_inputs() -> None:
    q = quantizer(bits=2)
    assert q(torch.empty(0, 5))[0].shape == (0, 5) and not q.calibrated
    assert q(torch.zeros(3, 5))[0].abs().sum() == 0
    per_node = quantizer(bits=2, granularity="node", statistics="current")
    assert per_node(torch.empty(0, 5))[0].shape == (0, 5)
    assert per_node(torch.full((1, 1), 3.0))[0].item() == 3.0


@pytest.mark.cpu
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_values_without_a_range(bad: float) -> None:
    q = quantizer(bits=4)
    q.path = "convs.0.input"
    q(torch.ones(3))
    with pytest.raises(InputError, match=r"convs\.0\.input: .* NaN or Inf.*nan_to_num"):
        q(torch.tensor([1.0, bad]))
    assert q.hi == 1.0


def test_refuses_integers() -> None:
    with pytest.raises(InputError, match=r"torch\.int64.*x\.float\(\)"):
        quantizer(bits=4)(torch.arange(3))


@pytest.mark.parametrize(
    "fields",
    [{"bits": 0}, {"bits": 9}, {"bits": 2.0}, {"bits": True}, {"truncation": "b"}, {"momentum": 0}],
)
def test_refuses_configs_that_mean_nothing(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        quantizer(**fields)


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr", "to_sparse_csc"])
@pytest.mark.parametrize("granularity", ["tensor", "node"])
def test_sparse_input_equals_dense(layout: str, granularity: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 9) * (torch.rand(12, 9) < 0.3)
    statistics = "running" if granularity == "tensor" else "current"
    dense = quantizer(bits=4, granularity=granularity, statistics=statistics)
    sparse = copy.deepcopy(dense)
    out = sparse.quantize_sparse(getattr(x, layout)())
    torch.testing.assert_close(out.to_dense(), dense(x)[0].detach())


@pytest.mark.parametrize("granularity", ["tensor", "node"])
@pytest.mark.parametrize("truncation", ["bt", "bt*"])
def test_sparse_input_keeps_zero_under_truncation(truncation: str, granularity: str) -> None:
    torch.manual_seed(0)
    words = torch.rand(12, 9) * (torch.rand(12, 9) < 0.3)
    statistics = "running" if granularity == "tensor" else "current"
    fields = {"bits": 2, "granularity": granularity, "statistics": statistics}
    bt, dense = quantizer(truncation="bt", **fields), quantizer(truncation="bt", **fields)
    # Nothing is negative, so 0 is a level and the form makes no difference.
    torch.testing.assert_close(
        bt.quantize_sparse(words.to_sparse_csr()).to_dense(), dense(words)[0]
    )
    signed = (words - 0.4 * (words > 0)).to_sparse_csr()
    out = quantizer(truncation=truncation, **fields).quantize_sparse(signed)
    levels = out.values().detach().unique()
    assert out._nnz() == signed._nnz() and bool(out.values().isfinite().all())
    if granularity == "tensor":
        assert levels.numel() <= 4 and bool((levels.abs() < 1e-6).any())


@pytest.mark.parametrize("granularity", ["tensor", "node"])
def test_skewness_counts_the_zeros_that_are_not_stored(granularity: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(12, 9) * (torch.rand(12, 9) < 0.3)
    torch.testing.assert_close(skewness(x[x != 0], numel=x.numel()), skewness(x))
    statistics = "running" if granularity == "tensor" else "current"
    # In steps, so that the shift is large enough to move values.
    fields = {"truncation": "bt*", "skewness_unit": "step", "search": False}
    dense = quantizer(bits=4, granularity=granularity, statistics=statistics, **fields)
    values = copy.deepcopy(dense).quantize_stored(x.to_sparse_csr())
    torch.testing.assert_close(values, dense(x)[0][x != 0])


def test_sparse_input_refuses_ranges_per_feature() -> None:
    q = quantizer(9, bits=2, granularity="feature")
    with pytest.raises(InputError, match="sparse.*granularity={'input': 'node'}"):
        q.quantize_sparse(torch.eye(9).to_sparse_csr())


def test_gamma_climbs_back_from_below_its_floor() -> None:
    q = quantizer(bits=4)
    x = torch.linspace(0, 1, 50)
    q(x)
    q.gamma.data.fill_(-0.5)
    optimizer = torch.optim.SGD(q.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (q(x)[0] - x).square().sum().backward()
        optimizer.step()
    assert q.gamma > 0.5


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
def test_state_stays_float32(dtype: torch.dtype) -> None:
    q = quantizer(bits=4)
    x = torch.randn(20, 3)
    expected = q(x)[0]
    q = q.to(dtype)
    assert all(t.dtype in (torch.float32, torch.int64) for t in q.state_dict().values())
    out = q.eval()(x.to(dtype))[0]
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)
