"""Random calls of packed ops, computed by Triton's interpreter and by their definition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.helpers.kernel_cases import Problem
from torch_geometric_qlr.ops import QParams, reference, storage_bits, use_backend

qlr = torch.ops.qlr

#: The share of its scale that a float result may be off.
TOLERANCE = 1e-5


def by_triton(op: Any, *arguments: Any, **options: Any) -> Any:
    """What the kernel gives; it must not leave a call to the definition."""
    with use_backend("triton"):
        return op(*arguments, **options)


def assert_close(ours: Tensor, truth: Tensor, magnitude: float = 0.0) -> None:
    """Within the tolerance of their own scale, or of that of the terms of a sum."""
    assert ours.dtype == truth.dtype and ours.shape == truth.shape
    scale = max(float(truth.abs().max()) if truth.numel() else 0.0, 0.1 * magnitude)
    torch.testing.assert_close(ours, truth, rtol=0, atol=TOLERANCE * scale + 1e-30)


def quantizer(y: Tensor, bits: int, axis: str, rng: torch.Generator, truncate: bool) -> QParams:
    """One that clips a little of a result, with a skew if it truncates."""
    shape = {"tensor": (), "row": (y.size(0), 1), "column": (1, y.size(1))}[axis]
    levels = 255 if truncate else 2**bits - 1
    low, high = (float(end) for end in y.aminmax())
    scale = torch.full(shape, max(high - low, 1e-3) / levels)
    scale = scale * (0.7 + 0.2 * torch.rand(shape, generator=rng))
    skew = torch.tensor(-2.25) if truncate else None
    return QParams(scale, torch.round(-low / scale), bits, truncate, skew)


def assert_codes(packed: Tensor, y: Tensor, how: QParams, magnitude: float = 0.0) -> None:
    """Codes of a result that is within the tolerance of this one, nearly all of them the same, and
    zeros beyond the last column."""
    width, cols = storage_bits(how.bits), y.size(1)
    codes = reference.unpack(packed, cols, width)
    assert torch.equal(reference.pack(codes, width), packed)
    slack = TOLERANCE * max(float(y.abs().max()), 0.1 * magnitude)
    low, high = (reference.quantize(y + d, how) for d in (-slack, slack))
    assert bool(((low <= codes) & (codes <= high)).all())
    assert float((codes != reference.quantize(y, how)).float().mean()) < 0.01


def by_reference(op: Any, *arguments: Any, **options: Any) -> Any:
    """What the op is defined to give."""
    with use_backend("reference"):
        return op(*arguments, **options)


def magnitude_of(p: Problem, options: dict[str, Any]) -> float:
    """How large the terms of sums are, next to which they may cancel."""
    names = ("edge_weight", "source_weight", "row_scale", "addend", "reduce")
    given = {name: options[name] for name in names if name in options}
    sizes = {k: v if isinstance(v, str) else v.double().abs() for k, v in given.items()}
    packed, cols, bits, scale, zero = p.packed
    call = (p.rowptr, p.col, packed, cols, bits, scale, -zero.abs())
    terms = by_reference(qlr.packed_spmm, *call, **sizes)
    return float(terms.abs().max()) if terms.numel() else 0.0
