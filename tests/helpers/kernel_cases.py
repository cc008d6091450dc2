"""Random packed problems, and the error a float32 result may have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from torch import Tensor

from torch_geometric_qlr.errors import QLRError
from torch_geometric_qlr.ops import QParams, available_on, reference, use_backend
from torch_geometric_qlr.ops.groups import CodeMatrix, Graph

#: What an overload of an op raises, and compiled code: a kernel's error is one of torch's kind, in
#: the words of this package; where Python answers it is the error itself.
REFUSED = (RuntimeError, QLRError)
#: What computes where tests make their tensors: instruction sets of a CPU, or other back ends.
ISAS = available_on(torch.get_default_device().type)
WIDTHS = (1, 7, 16, 17, 32, 33, 64, 65, 100, 128, 129, 255, 256, 257, 602)

bits_strategy = st.sampled_from((1, 2, 4, 8))
width_strategy = st.sampled_from(WIDTHS) | st.integers(1, 300)
axis_strategy = st.sampled_from(("tensor", "row", "column"))
seed_strategy = st.integers(0, 2**31)


@dataclass
class Problem:
    """A graph, packed sources and everything an op may take."""

    rowptr: Tensor
    col: Tensor
    codes: Tensor
    bits: int
    scale: Tensor
    zero_point: Tensor

    @property
    def packed(self) -> tuple[Tensor, int, int, Tensor, Tensor]:
        data = reference.pack(self.codes, self.bits)
        return data, self.codes.size(1), self.bits, self.scale, self.zero_point

    @property
    def graph(self) -> Graph:
        return Graph(self.rowptr, self.col)

    @property
    def matrix(self) -> CodeMatrix:
        return CodeMatrix(self.codes, self.scale, self.zero_point)

    @property
    def values(self) -> Tensor:
        return reference.dequantize(self.codes, self.scale, self.zero_point)


def parameters(rows: int, cols: int, axis: str, bits: int, rng: torch.Generator):  # type: ignore[no-untyped-def]
    """A scale and a fractional zero point near the middle of the codes."""
    shape = {"tensor": (), "row": (rows, 1), "column": (1, cols)}[axis]
    middle = (2**bits - 1) / 2
    spread = torch.rand(shape, generator=rng) - 0.5
    return torch.rand(shape, generator=rng) * 0.5 + 0.1, middle + spread * min(middle, 3.0)


def problem(
    seed: int,
    *,
    targets: int = 9,
    sources: int = 12,
    mean_degree: float = 4.0,
    hub: int = 0,
    cols: int = 33,
    bits: int = 2,
    axis: str = "tensor",
) -> Problem:
    """Isolated rows and duplicate edges come by themselves; `hub` neighbours of row 0 do not."""
    rng = torch.Generator().manual_seed(seed)
    degree = torch.poisson(torch.full((targets,), mean_degree), generator=rng).long()
    degree[::3] = 0
    if hub and targets:
        degree[0] = hub
    rowptr = torch.zeros(targets + 1, dtype=torch.long)
    rowptr[1:] = degree.cumsum(0)
    col = torch.randint(max(sources, 1), (int(rowptr[-1]),), generator=rng, dtype=torch.int32)
    codes = torch.randint(2**bits, (sources, cols), generator=rng, dtype=torch.uint8)
    return Problem(rowptr, col, codes, bits, *parameters(sources, cols, axis, bits, rng))


@contextmanager
def nearest_tie() -> Iterator[list[float]]:
    """How near to the middle between two codes each quantization of the reference came."""
    distances: list[float] = []
    quantize = reference.quantize

    def recording(x: Tensor, how: QParams) -> Tensor:
        quotient = x.double() / how.scale.double() + how.zero_point.double()
        distances.append(float(((quotient - quotient.floor()) - 0.5).abs().min()))
        return quantize(x, how)

    with patch.object(reference, "quantize", recording):
        yield distances


def by_definition(op: Callable[..., Any], *arguments: Any) -> Any:
    """What an op is defined to give."""
    with use_backend("reference"):
        return op(*arguments)


def assert_float32_close(ours: Tensor, truth: Tensor, magnitude: Tensor | None = None) -> None:
    """Within 1e-5 of the scale of the output, or of a tenth of its `magnitude`: sums of |terms|."""
    scale = truth.abs().max() if truth.numel() else torch.zeros(())
    if magnitude is not None and magnitude.numel():
        scale = torch.maximum(scale, 0.1 * magnitude.abs().max())
    torch.testing.assert_close(ours, truth, rtol=0, atol=float(1e-5 * scale + 1e-7))
