"""Codes as one dense stream of bits, for files."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.errors import CheckpointError
from torch_geometric_qlr.ops import PACKED_BITS

__all__ = ["dense_bits", "from_dense_bits", "read_state"]


def dense_bits(codes: Tensor, bits: int) -> Tensor:
    r"""Codes in row-major order, the first in the lowest bits of the first byte.

    Example:
        >>> dense_bits(torch.tensor([[1, 2, 3]], dtype=torch.uint8), bits=4)
        tensor([33,  3], dtype=torch.uint8)
    """
    fields = 8 // bits
    flat = codes.reshape(-1)
    padding = -flat.numel() % fields
    grouped = torch.nn.functional.pad(flat, (0, padding)).view(-1, fields)
    dense = grouped[:, 0].clone()
    for k in range(1, fields):
        dense |= grouped[:, k] << (bits * k)
    return dense


def from_dense_bits(dense: Tensor, bits: int, rows: int, cols: int) -> Tensor:
    r"""The inverse of :func:`dense_bits`.

    Example:
        >>> from_dense_bits(torch.tensor([33, 3], dtype=torch.uint8), 4, rows=1, cols=3)
        tensor([[1, 2, 3]], dtype=torch.uint8)
    """
    mask = 2**bits - 1
    planes = [(dense >> (bits * k)) & mask for k in range(8 // bits)]
    return torch.stack(planes, dim=1).view(-1)[: rows * cols].view(rows, cols)


def read_state(state: dict[str, Any], version: int) -> tuple[int, int, int, dict[str, Tensor]]:
    """Bits, rows, columns and tensors of a saved packed tensor, or what is wrong with it."""
    names = ("header", "codes", "scale", "zero_point")
    missing = [n for n in names if not isinstance(state, dict) or n not in state]
    if missing:
        raise CheckpointError(f"packed tensor: {', '.join(missing)} missing; the file is damaged")
    entries = {n: state[n] for n in names}
    for name, entry in entries.items():
        if not isinstance(entry, Tensor):
            raise CheckpointError(f"packed tensor: {name} is {type(entry).__name__}, not a tensor")
    header = entries["header"]
    if header.dtype != torch.int64 or header.shape != (4,):
        raise CheckpointError("packed tensor: the header is damaged")
    found, bits, rows, cols = header.tolist()
    if found != version:
        raise CheckpointError(
            f"packed tensor: written as version {found}, this package reads version {version}"
        )
    if bits not in PACKED_BITS or not 0 <= rows <= _most_rows(cols) or not 0 <= cols <= _MOST:
        raise CheckpointError(f"packed tensor: the header says [{rows}, {cols}] at {bits} bits")
    _check_payload(entries, bits, rows, cols)
    return bits, rows, cols, entries


_MOST = 2**31 - 2**16


def _most_rows(cols: int) -> int:
    """Sizes that need no payload, where there are no columns, are not taken at their word: also an
    empty row takes 16 bytes."""
    return _MOST if cols else 2**20


def _check_payload(entries: dict[str, Tensor], bits: int, rows: int, cols: int) -> None:
    codes = entries["codes"]
    expected = -(-rows * cols * bits // 8)
    if codes.dtype != torch.uint8 or codes.shape != (expected,):
        raise CheckpointError(
            f"packed tensor: [{rows}, {cols}] at {bits} bits are {expected} bytes, found "
            f"{codes.dtype} of shape {list(codes.shape)}; the file is damaged"
        )
    used = rows * cols * bits % 8
    if used and int(codes[-1]) >> used:
        raise CheckpointError("packed tensor: bits are set past the last code; it is damaged")
    shapes = {(), (1, 1), (rows, 1), (1, cols)}
    for name in ("scale", "zero_point"):
        param = entries[name]
        if not param.is_floating_point() or tuple(param.shape) not in shapes:
            raise CheckpointError(
                f"packed tensor: {name} is {param.dtype} of shape {list(param.shape)}, which does "
                f"not fit [{rows}, {cols}] codes"
            )
        if not bool(torch.isfinite(param).all()):
            raise CheckpointError(f"packed tensor: {name} has NaN or Inf; the file is damaged")
