"""Sums along a graph by torch's embedding bags: the strongest peers a user of torch has.

A bag of embeddings is a row of a sparse matrix times a dense one. No library of graph networks
calls it for that, and yet it is the fastest float32 sum in torch on a CPU, and torch has bags of
8-, 4- and 2-bit rows as well, each with a scale and an offset of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["BAG", "bag_of", "packed_bag_of"]

#: What the float32 bag is called in tables.
BAG = "embedding_bag"

_PACKED = {8: "byte", 4: "4bit", 2: "2bit"}
_SUM = 0


def bag_of(rowptr: Tensor, col: Tensor, weight: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Sums of the rows of a float matrix."""
    offsets, index = rowptr.to(col.dtype), col

    def run(x: Tensor) -> Tensor:
        per_sample = None if weight is None else weight.to(x.dtype)
        return torch.nn.functional.embedding_bag(
            index, x, offsets, mode="sum", per_sample_weights=per_sample, include_last_offset=True
        )

    return run


def packed_bag_of(
    rowptr: Tensor, col: Tensor, weight: Tensor | None, x: Tensor, bits: int
) -> Callable[[], Tensor]:
    """Sums of the rows of a matrix that torch has packed before."""
    ops, kind = torch.ops.quantized, _PACKED[bits]
    table = getattr(ops, f"embedding_bag_{kind}_prepack")(x)
    sums = getattr(ops, f"embedding_bag_{kind}_rowwise_offsets")
    offsets = rowptr.to(col.dtype)
    return lambda: sums(table, col, offsets, False, _SUM, False, weight, None, True)
