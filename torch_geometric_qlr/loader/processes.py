"""Packed features between the processes of a loader: through shared memory, as they are.

Elsewhere they are pickled without padding, for files.
"""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from typing import Any

from torch import Tensor

from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["register"]


def register() -> None:
    """Tells the queues between processes how packed features pass."""
    ForkingPickler.register(PackedTensor, _parts)


def _parts(packed: PackedTensor) -> tuple[Any, ...]:
    data, scale, zero_point = map(_own, (packed.data, packed.scale, packed.zero_point))
    return PackedTensor, (data, packed.num_cols, packed.bits, scale, zero_point)


def _own(part: Tensor) -> Tensor:
    """What is shared is the memory behind a tensor, which may be a whole file."""
    is_part = part.untyped_storage().nbytes() > part.nbytes
    return part.clone() if is_part else part
