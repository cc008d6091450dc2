"""Rows with a range of their own each, and edges sorted by target: kernels against definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.kernel_cases import ISAS, by_definition
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.ops import use_backend

qlr = torch.ops.qlr
every_isa = pytest.mark.parametrize("isa", ISAS or ("reference",))
FILLS = (0.0, -0.0, 1e-30, -1e-38, 3e38, -3e38, 255.0, 0.5)


@every_isa
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_codes_and_ranges_of_rows(isa: str, data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 140))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    x = torch.randn(rows, cols, generator=generator) * 10 ** data.draw(st.integers(-12, 12))
    if x.numel() and data.draw(st.booleans()):
        x[data.draw(st.integers(0, rows - 1))] = data.draw(st.sampled_from(FILLS))
    x = x.abs() if data.draw(st.booleans()) else x
    x = x.to(data.draw(st.sampled_from((torch.float32, torch.float64, torch.bfloat16))))
    x = x.t().contiguous().t() if data.draw(st.booleans()) else x
    bits, truncate = data.draw(st.integers(1, 8)), data.draw(st.booleans())
    skew = torch.tensor(data.draw(st.floats(-40, 40))) if truncate else None
    multiplier = torch.rand(1, generator=generator) + 0.1
    arguments = (x, multiplier, bits, truncate, data.draw(st.booleans()), skew)
    with use_backend(isa):
        found = qlr.quantize_rows(*arguments)
    for ours, truth in zip(found, by_definition(qlr.quantize_rows, *arguments), strict=True):
        assert ours.shape == truth.shape and ours.dtype == truth.dtype
        assert torch.equal(ours.nan_to_num(7.0), truth.nan_to_num(7.0))


@pytest.mark.cpu
@every_isa
@pytest.mark.parametrize("bad", (torch.nan, torch.inf, -torch.inf))
def test_what_has_no_code_is_named(isa: str, bad: float) -> None:
    x = torch.randn(40, 33)
    x[17, 31] = bad
    with use_backend(isa), pytest.raises(InputError, match=r"x\[17, 31\] is -?(nan|inf)"):
        qlr.quantize_rows(x, torch.ones(()), 4)


@every_isa
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_edges_by_target(isa: str, data: st.DataObject) -> None:
    num_src, num_dst = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    nodes = st.tuples(st.integers(0, num_src - 1), st.integers(0, num_dst - 1))
    edges = torch.tensor(data.draw(st.lists(nodes, max_size=60)), dtype=torch.long).view(-1, 2).t()
    if data.draw(st.booleans()):
        edges = edges[:, edges[1].argsort(stable=True)]
    edges = edges.to(data.draw(st.sampled_from((torch.int32, torch.int64))))
    with use_backend(isa):
        rowptr, col, perm = qlr.csr(edges, num_src, num_dst)
    defined = by_definition(qlr.csr, edges, num_src, num_dst)
    for ours, truth in zip((rowptr, col, perm), defined, strict=True):
        assert torch.equal(ours, truth) and ours.dtype == truth.dtype
    assert torch.equal(edges[0][perm.long()].int(), col)


@every_isa
@pytest.mark.parametrize(
    "edges, words", [([[0, 4], [1, 1]], "source nodes from 0 to 4"), ([[0, 1], [-1, 1]], "from -1")]
)
def test_edges_without_a_node_are_named(isa: str, edges: list[list[int]], words: str) -> None:
    with use_backend(isa), pytest.raises(InputError, match=words):
        qlr.csr(torch.tensor(edges), 4, 3)


@pytest.mark.parametrize("shape", ((3, 4), (4,), (2, 3, 4)))
def test_edges_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\[2, E\]"):
        qlr.csr(torch.zeros(shape, dtype=torch.long), 4, 4)
    with pytest.raises(InputError, match="num_dst must be a number"):
        qlr.csr(torch.zeros(2, 0, dtype=torch.long), 4, -1)
