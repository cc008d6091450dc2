"""Groups for an optimizer, and what a float twin teaches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.nn import GAT, GCN

import torch_geometric_qlr as qlr
from torch_geometric_qlr.errors import ConfigError, InputError, QLRWarning


@pytest.mark.parametrize("cls", [GCN, GAT])
def test_every_parameter_is_in_one_group(cls: Any) -> None:
    model = qlr.quantize(cls(8, 16, 2, 4), bits=2)
    weights, ranges = qlr.parameter_groups(model, lr=0.02, weight_decay=1e-4)
    found = [id(p) for group in (weights, ranges) for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in ranges["params"]} == {id(p) for p in qlr.quant_parameters(model)}
    assert (weights["lr"], weights["weight_decay"]) == (0.02, 1e-4)
    assert (ranges["lr"], ranges["weight_decay"]) == (0.002, 0.0)
    assert qlr.parameter_groups(model, lr=0.02, range_lr=0.0)[1]["lr"] == 0.0


def test_a_float_model_has_one_group() -> None:
    model = GCN(8, 16, 2, 4)
    (group,) = qlr.parameter_groups(model, lr=0.01)
    assert len(group["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"weight_decay": -1.0}, {"range_lr": -1.0}])
def test_rates_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}=-1.0 is out of range"):
        qlr.parameter_groups(GCN(8, 16, 2, 4), **{"lr": 0.01, **wrong})


def test_decay_of_ranges_is_warned_of_once() -> None:
    model = qlr.quantize(GCN(8, 16, 2, 4), bits=2)
    x, edges = torch.rand(5, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])

    def step(optimizer: torch.optim.Optimizer) -> None:
        model(x, edges).sum().backward()
        optimizer.step()

    step(torch.optim.Adam(qlr.parameter_groups(model, lr=0.01, weight_decay=5e-4)))
    step(torch.optim.Adam(model.parameters()))
    step(torch.optim.AdamW(model.parameters()))  # by a hundred-thousandth in a step
    wrong = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=5e-4)
    with pytest.warns(QLRWarning, match=r"SGD decays 6 learned ranges of a GCN.*parameter_groups"):
        step(wrong)
    step(wrong)
    other = torch.nn.Linear(2, 2)
    other(x[:, :2]).sum().backward()
    torch.optim.Adam(other.parameters(), weight_decay=5e-4).step()


@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    temperature=st.floats(0.25, 8.0),
    seed=st.integers(0, 99),
)
def test_it_is_the_divergence(shape: list[int], temperature: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    out, teacher = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
    p, q = (F.softmax(t / temperature, dim=-1) for t in (teacher, out))
    expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
    found = qlr.distill(out, teacher, temperature)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_only_the_student_learns() -> None:
    out, teacher = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    qlr.distill(out, teacher).backward()
    assert out.grad is not None and bool(out.grad.ne(0).any()) and teacher.grad is None
    assert qlr.distill(out[:0], teacher[:0]).item() == 0.0
    half = qlr.distill(out.half(), teacher.half())
    assert half.dtype == torch.float32


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match=r"shape \[4, 3\], those of the teacher \[5, 3\]"):
        qlr.distill(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(InputError, match="temperature=0.0"):
        qlr.distill(torch.zeros(4, 3), torch.zeros(4, 3), 0.0)
