"""Every operation on a GPU against its definition on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.kernel_cases import Problem, by_definition, problem
from tests.helpers.op_samples import samples
from torch_geometric_qlr.ops import reference
from torch_geometric_qlr.ops.schemas import NAMES

qlr = torch.ops.qlr
CPU = torch.device("cpu")


def moved(values: Any, device: torch.device) -> list[Any]:
    return [v.detach().to(device) if isinstance(v, Tensor) else v for v in values]


def assert_agree(found: Any, truth: Any, device: torch.device) -> None:
    """Numbers to 1e-5 of their scale, codes but for one step at a tie."""
    pairs = zip(*((r if isinstance(r, tuple) else (r,)) for r in (found, truth)), strict=True)
    for ours, theirs in pairs:
        assert ours.device.type == device.type
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        ours = ours.cpu()
        if theirs.is_floating_point():
            scale = float(theirs.abs().max()) if theirs.numel() else 0.0
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * scale + 1e-7)
        else:
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_every_op(name: str, gpu: torch.device) -> None:
    for arguments in samples()[name]:
        there, here = moved(arguments, gpu), moved(arguments, CPU)
        op = getattr(qlr, name)
        assert_agree(op(*there), by_definition(op, *here), gpu)


def cases() -> list[tuple[str, Problem]]:
    """Graphs with empty rows, duplicates, nodes without edges and hubs, of rows of all widths."""
    found = []
    for bits in (1, 2, 4, 8):
        for cols in (7, 40, 128, 602):
            for axis in ("tensor", "row", "column"):
                case = problem(cols + bits, targets=60, hub=5000, cols=cols, bits=bits, axis=axis)
                found.append((f"{bits} bits, {cols} columns, {axis}", case))
    return found


def there_and_here(case: Problem, device: torch.device) -> tuple[list[Any], list[Any]]:
    arguments = (case.rowptr, case.col, *case.packed)
    return moved(arguments, device), moved(arguments, CPU)


@pytest.mark.parametrize(("name", "case"), cases(), ids=lambda case: str(case)[:30])
def test_sums_and_extrema(name: str, case: Problem, gpu: torch.device) -> None:
    there, here = there_and_here(case, gpu)
    edges, targets = case.col.numel(), case.rowptr.numel() - 1
    rng = torch.Generator().manual_seed(0)
    weight = torch.rand(edges, generator=rng).cpu()
    codes = torch.randint(-128, 128, (edges,), generator=rng, dtype=torch.int8).cpu()
    row = torch.rand(targets, generator=rng).cpu()
    for extra in ((), (weight,), (codes, None, row), (None, None, row, None, None, 1.0, "mean")):
        found = qlr.packed_spmm(*there, *moved(extra, gpu))
        assert_agree(found, by_definition(qlr.packed_spmm, *here, *extra), gpu)
    for largest in (True, False):
        found = qlr.packed_extremum(*there, largest)
        assert torch.equal(found.cpu(), by_definition(qlr.packed_extremum, *here, largest))


@pytest.mark.parametrize(("name", "case"), cases()[::3], ids=lambda case: str(case)[:30])
def test_results_in_codes(name: str, case: Problem, gpu: torch.device) -> None:
    there, here = there_and_here(case, gpu)
    sums = by_definition(qlr.packed_spmm, *here)
    scale = sums.abs().max() / 100
    after = (None, None, None, None, None, 1.0, "sum", True, scale, torch.tensor(0.0), 4)
    found = qlr.packed_spmm(*there, *moved(after, gpu))
    truth = by_definition(qlr.packed_spmm, *here, *moved(after, CPU))
    assert found.shape == truth.shape
    ours, theirs = (reference.unpack(p, case.codes.size(1), 4).int() for p in (found.cpu(), truth))
    differ = (ours - theirs).abs()
    assert differ.max() <= 1 and differ.float().mean() <= 1e-3  # at ties


def test_sums_are_the_same_every_time(gpu: torch.device) -> None:
    there, _ = there_and_here(problem(3, targets=60, hub=5000, cols=128, bits=2), gpu)
    weight = torch.rand(there[1].numel(), device=gpu)
    first = qlr.packed_spmm(*there, weight)
    assert all(torch.equal(qlr.packed_spmm(*there, weight), first) for _ in range(5))
