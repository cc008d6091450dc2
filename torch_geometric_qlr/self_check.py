"""Whether what computes here computes what the reference does: a second, for a fresh install."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr.ops import available_on, use_backend

__all__ = ["Checked", "self_check"]

_OPS = torch.ops.qlr
_BITS = (8, 4, 2, 1)
_NODES, _EDGES, _COLUMNS = 40, 300, 36  # rows that fill no register; a node without edges

#: What a call is compared by: the reference adds floats in another order.
_RTOL, _ATOL = 1e-5, 1e-4


class Checked(NamedTuple):
    """What was found of one back end.

    Args:
        backend (str): Its name, as :func:`~torch_geometric_qlr.ops.use_backend` takes it.
        device (str): Where it computed.
        calls (int): How many results were compared.
        wrong (list): Those that differed, or failed, in words.
    """

    backend: str
    device: str
    calls: int
    wrong: list[str]


def self_check() -> list[Checked]:
    r"""Computes a small graph on every back end that is available, and compares with the reference:
    codes exactly, sums within rounding.

    Returns:
        list: A :class:`Checked` for each.

    Example:
        >>> [found.wrong for found in self_check() if found.wrong]
        []
    """
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [_check(name, device) for device in devices for name in available_on(device)]


def _check(name: str, device: str) -> Checked:
    count, wrong = 0, list[str]()
    try:
        calls = list(_calls(device))
    except Exception as error:  # a device that is found, and does not work
        return Checked(name, device, 0, [f"no tensors on {device} ({type(error).__name__})"])
    for label, call in calls:
        count += 1
        with use_backend("reference"):
            expected = call()
        try:
            with use_backend(name):
                found = call()
        except Exception as error:  # whatever a broken library does, it is to be told
            wrong.append(f"{label} ({type(error).__name__})")
            continue
        if not _same(found, expected):
            wrong.append(label)
    return Checked(name, device, count, wrong)


def _same(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    return torch.allclose(found, expected, rtol=_RTOL, atol=_ATOL)


def _calls(device: str) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Calls by name, at every width of the codes; the same numbers whenever it is called."""
    rng = torch.Generator().manual_seed(0)
    target = torch.randint(_NODES - 1, (_EDGES,), generator=rng).sort().values
    rowptr = torch.searchsorted(target, torch.arange(_NODES + 1))
    col = torch.randint(_NODES, (_EDGES,), generator=rng)
    x = torch.randn(_NODES, _COLUMNS, generator=rng)
    weight, alpha = torch.rand(_EDGES, generator=rng), torch.rand(_EDGES, 2, generator=rng)
    x, weight, alpha, rowptr, col = (t.to(device) for t in (x, weight, alpha, rowptr, col))
    with use_backend("reference"):
        few_bits, step = _OPS.quantize_edges(rowptr, col, weight)
    for bits in _BITS:
        top = 2**bits - 1
        grid = (torch.tensor(6.0 / top, device=device), torch.tensor(top / 2, device=device))
        with use_backend("reference"):
            packed = _OPS.quantize_pack(x, *grid, bits)
        matrix = (packed, _COLUMNS, bits, *grid)
        gather = (rowptr, col, *matrix)
        calls: dict[str, tuple[Any, ...]] = {
            "quantize_pack": (_OPS.quantize_pack, x, *grid, bits),
            "unpack": (_OPS.unpack, packed, _COLUMNS, bits),
            "packed_spmm": (_OPS.packed_spmm, *gather),
            "packed_spmm, weights": (_OPS.packed_spmm, *gather, weight),
            "packed_spmm, weights of 8 bits": (_OPS.packed_spmm, *gather, few_bits, None, step),
            "packed_extremum": (_OPS.packed_extremum, *gather),
            "packed_attention": (_OPS.packed_attention, *gather, alpha),
            "packed_linear": (_OPS.packed_linear, *matrix, packed, bits, *grid),
        }
        for label, (op, *arguments) in calls.items():
            yield f"{label}, {bits} bits", functools.partial(op, *arguments)
