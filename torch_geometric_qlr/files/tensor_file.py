"""A safetensors file that knows when it is damaged: what all files of this package have in common.

::

    8 bytes     length of the header
    header      JSON, padded with spaces so that what follows begins at a multiple of 64 bytes:
                texts (``__metadata__``), a checksum of the header among them, and of each tensor
                its type, its shape and where it lies
    tensors     one after the other

What follows the header has a CRC-32 for each MiB; who writes the file says where these are.
"""

from __future__ import annotations

import json
import math
import reprlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr._version import __version__
from torch_geometric_qlr.errors import CheckpointError

__all__ = [
    "BLOCK",
    "ITEM_BYTES",
    "Checksums",
    "Frame",
    "Kind",
    "Piece",
    "buffer_of",
    "compact",
    "contents_of",
    "described",
    "format_of",
    "header_bytes",
    "lay_out",
    "read_frame",
]

#: Bytes that share a checksum.
BLOCK = 1 << 20

#: Bytes of a number, by the names that safetensors has for types.
ITEM_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}

_ALIGNMENT = 64
#: What is said of a model takes about 2.5 kB per layer: this is for six thousand of them.
_MOST_HEADER_BYTES = 1 << 24
_NO_CHECKSUM = "00000000"


class Kind(NamedTuple):
    r"""A kind of files.

    Args:
        format (str): Its name.
        first, last (int): The versions that this release reads.
        writer (str): What writes it.
    """

    format: str
    first: int
    last: int
    writer: str


class Piece(NamedTuple):
    r"""A tensor of a file.

    Args:
        name (str): Its name.
        dtype (str): Its type, in the words of safetensors.
        shape (tuple): Its shape.
        start, end (int): Where it lies, in bytes after the header.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def lay_out(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> list[Piece]:
    r"""Tensors one after the other.

    Args:
        tensors (list): Names, types and shapes.

    Example:
        >>> [piece[3:] for piece in lay_out([("scale", "F32", (2, 3)), ("codes", "U8", (5,))])]
        [(0, 24), (24, 29)]
    """
    found, at = [], 0
    for name, dtype, shape in tensors:
        end = at + math.prod(shape) * ITEM_BYTES[dtype]
        found.append(Piece(name, dtype, tuple(shape), at, end))
        at = end
    return found


def buffer_of(t: Tensor) -> Any:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    flat = t.detach().reshape(-1).view(torch.uint8)  # of any type: numpy has no bfloat16
    return flat.numpy().data if flat.numel() else b""


def contents_of(pieces: Sequence[Piece], block: int) -> Iterator[str]:
    r"""What lies in a block that shares a checksum, in words.

    Args:
        pieces (list): The tensors of the file.
        block (int): Which one.
    """
    first, last = block * BLOCK, (block + 1) * BLOCK
    for piece in pieces:
        start, end = max(first, piece.start), min(last, piece.end)
        if start >= end:
            continue
        if not piece.shape or piece.shape[0] <= 1:
            yield piece.name
        else:
            row = (piece.end - piece.start) // piece.shape[0]
            rows = (start - piece.start) // row, (end - 1 - piece.start) // row
            yield f"rows {rows[0]} to {rows[1]} of {piece.name}"


class Checksums:
    r"""The CRC-32 of each block of what is added, piece by piece.

    Example:
        >>> sums = Checksums()
        >>> sums.add(b"some")
        >>> sums.add(b"thing")
        >>> sums.values == [zlib.crc32(b"something")]
        True
    """

    def __init__(self) -> None:
        self.values: list[int] = []
        self._filled = BLOCK

    def add(self, data: Any) -> None:
        """Bytes that follow."""
        left = memoryview(data)
        while len(left):
            if self._filled == BLOCK:
                self.values.append(0)
                self._filled = 0
            part = left[: BLOCK - self._filled]
            self.values[-1] = zlib.crc32(part, self.values[-1])
            self._filled += len(part)
            left = left[len(part) :]


# The header #######################################################################################


def header_bytes(
    metadata: Mapping[str, str], pieces: Sequence[Piece], length: int | None = None
) -> bytes:
    r"""The header of a file, with its length in front and its checksum in it.

    Args:
        metadata (dict): What the file says beside its tensors; without the checksum.
        pieces (list): Its tensors.
        length (int, optional): The bytes that it is to have. By default the least.
    """
    said = {**metadata, "header_crc32": _NO_CHECKSUM}
    text = compact({"__metadata__": said, **described(pieces)}).encode()
    if length is None:
        length = -(-(8 + len(text)) // _ALIGNMENT) * _ALIGNMENT
    padded = (length - 8).to_bytes(8, "little") + text.ljust(length - 8)
    crc = f"{zlib.crc32(padded):08x}"
    return padded.replace(_header_checksum(_NO_CHECKSUM), _header_checksum(crc), 1)


def described(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Tensors as a header has them."""
    return {
        p.name: {"dtype": p.dtype, "shape": list(p.shape), "data_offsets": [p.start, p.end]}
        for p in pieces
    }


def compact(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def _header_checksum(crc: str) -> bytes:
    return f'"header_crc32":"{crc}"'.encode()


class Frame(NamedTuple):
    r"""A header that is whole. What it says has not been checked.

    Args:
        metadata (dict): What the file says beside its tensors.
        tensors (dict): Of each tensor what safetensors says of it.
        version (int): Of the kind of file.
        length (int): Bytes before the first tensor.
        crc (str): The header's own checksum, which tells two files from each other.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Any]
    version: int
    length: int
    crc: str


def format_of(path: str) -> str | None:
    r"""What kind of file something says it is; :obj:`None` if it says nothing.

    Args:
        path (str): The file.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= _MOST_HEADER_BYTES else b""
    try:
        found = json.loads(text)["__metadata__"]["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def read_frame(file: Any, size: int, kind: Kind) -> Frame:
    r"""Reads what stands before the tensors of a file.

    Args:
        file (file): At its beginning.
        size (int): Its bytes.
        kind (Kind): What it is to be.

    Raises:
        CheckpointError: If it is of another kind, damaged, or of a newer version; without the name
            of the file.
    """
    start = file.read(8)
    length = 8 + int.from_bytes(start, "little")
    if len(start) < 8 or not 8 < length <= min(size, _MOST_HEADER_BYTES):
        raise CheckpointError("it is no safetensors file, damaged, or cut short")
    raw = start + file.read(length - 8)
    try:
        content = json.loads(raw[8:])
        metadata = content["__metadata__"]
        found, version = metadata["format"], int(metadata["version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"its header is damaged, or not from {kind.writer} "
            f"({type(error).__name__}: {str(error)[:100]})"
        ) from error
    if found != kind.format:
        raise CheckpointError(f"its format is {reprlib.repr(found)}, not {kind.format!r}")
    if not kind.first <= version <= kind.last:
        known = f"{kind.first}" if kind.first == kind.last else f"{kind.first} to {kind.last}"
        raise CheckpointError(
            f"it has format version {version}, written by release "
            f"{reprlib.repr(metadata.get('release'))}; this release ({__version__}) reads version "
            f"{known}"
        )
    if length % _ALIGNMENT:
        words = f"its header is damaged: {length} bytes are no multiple of {_ALIGNMENT}"
        raise CheckpointError(words)
    crc = metadata.pop("header_crc32", None)
    blank = raw.replace(_header_checksum(str(crc)), _header_checksum(_NO_CHECKSUM), 1)
    if crc != f"{zlib.crc32(blank):08x}":
        raise CheckpointError("its header is damaged: the checksum is wrong")
    del content["__metadata__"]
    return Frame(metadata, content, version, length, crc)
