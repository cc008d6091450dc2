"""What is not a number stays none: it never becomes a code."""

from __future__ import annotations

import pytest
import torch

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.quantizers import FrozenRange, LearnedRangeQuant

NAN, INF = float("nan"), float("inf")


def make(granularity: str, statistics: str, groups: int, **fields: object) -> LearnedRangeQuant:
    fields = {"bits": 4, "granularity": granularity, "statistics": statistics, **fields}
    return LearnedRangeQuant(QuantizerConfig(**fields), groups)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("truncation", [None, "bt*"])
@pytest.mark.parametrize(("granularity", "groups"), [("node", 1), ("channel", 8), ("tensor", 1)])
def test_a_group_that_brings_its_own_range_has_none(
    granularity: str, groups: int, truncation: str | None, bad: float
) -> None:
    q = make(granularity, "current", groups, truncation=truncation)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    q(x)
    expected, y = q.eval()(x)[0].detach(), x.clone()
    y[2, 3] = bad
    for quantizer in (q, FrozenRange.of(q)):
        out = quantizer(y)[0].detach()
        assert not bool(out[2].isfinite().any())
        if granularity != "tensor" and truncation is None:
            assert torch.equal(out[[0, 1, 3, 4, 5, 6, 7]], expected[[0, 1, 3, 4, 5, 6, 7]])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("truncation", [None, "bt*"])
@pytest.mark.parametrize(("granularity", "groups"), [("tensor", 1), ("feature", 6)])
def test_with_a_fixed_range_it_comes_out_as_it_is(
    granularity: str, groups: int, truncation: str | None, bad: float
) -> None:
    q = make(granularity, "running", groups, truncation=truncation)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    q(x)
    expected, y = q.eval()(x)[0].detach(), x.clone()
    y[2, 3] = expected[2, 3] = bad
    leaf = y.requires_grad_()
    for quantizer in (q, FrozenRange.of(q)):
        out = quantizer(leaf)[0]
        assert torch.equal(out.nan_to_num(), expected.nan_to_num())
    if granularity == "tensor":
        sparse = q.quantize_sparse(y.detach().to_sparse_csr()).to_dense()
        assert not bool(sparse[2, 3].isfinite()) and int(sparse.isfinite().sum()) == 47


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_sparse_row_without_a_range(bad: float) -> None:
    q = make("node", "current", 1)
    x = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    q.quantize_sparse(x.to_sparse_csr())
    x[4, 1] = bad
    out = q.eval().quantize_sparse(x.to_sparse_csr()).to_dense().detach()
    stored = x[4] != 0
    assert not bool(out[4][stored].isfinite().any()) and bool(out[:4].isfinite().all())


@pytest.mark.cpu
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_weights_are_refused_by_their_name_while_they_are_observed(granularity: str) -> None:
    for training in (True, False):
        q = make(granularity, "current", 4 if granularity == "channel" else 1).train(training)
        q.path = "lin.weight"
        with pytest.raises(InputError, match=r"lin\.weight: .*NaN or Inf"):
            q(torch.tensor([[1.0], [NAN], [2.0], [3.0]]))


@pytest.mark.cpu
@pytest.mark.parametrize(("granularity", "groups"), [("tensor", 1), ("feature", 6)])
def test_in_training_such_a_batch_leaves_the_range_as_it_is(granularity: str, groups: int) -> None:
    q = make(granularity, "running", groups, truncation="bt*")
    q(torch.randn(8, 6))
    before = {k: v.clone() for k, v in q.state_dict().items()}
    with pytest.raises(InputError, match="NaN or Inf"):
        q(torch.full((8, 6), INF))
    assert all(torch.equal(v, before[k]) for k, v in q.state_dict().items())
