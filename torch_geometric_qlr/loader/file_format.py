"""What a file of packed features looks like: a safetensors file whose header says all of it.

::

    8 bytes     length of the header
    header      JSON, padded with spaces so that what follows begins at a multiple of 64 bytes
    codes       of each entry, the rows of its PackedTensor, those of wider rows first
    scale,      of each entry, float32
    zero_point
    checksums   CRC-32 of all of the above after the header, in blocks of 1 MiB

The header is a function of the entries and two checksums, so a reader makes it anew and compares.
"""

from __future__ import annotations

import json
import math
import reprlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from torch_geometric_qlr._version import __version__
from torch_geometric_qlr.errors import CheckpointError, ConfigError
from torch_geometric_qlr.ops import PACKED_BITS, row_layout

__all__ = [
    "BLOCK",
    "FORMAT",
    "VERSION",
    "Entry",
    "Header",
    "Piece",
    "blocks_of",
    "by_stride",
    "header_of",
    "pieces_of",
    "read_header",
]

FORMAT = "torch_geometric_qlr.features"
VERSION = 1

#: Bytes that share a checksum.
BLOCK = 1 << 20

_ALIGNMENT = 64
_MOST_HEADER_BYTES = 1 << 24
_MOST_ROWS = 2**31 - 2**16
_CHECKSUMS = "checksums"
_NO_CHECKSUM = "00000000"
#: Parts of a scale's or zero point's shape by what shares one.
_PARAM_SHAPES = {"node": (True, False), "feature": (False, True), "tensor": (False, False)}


@dataclass(frozen=True)
class Entry:
    r"""One matrix of a file.

    Args:
        group (str, optional): The type of nodes, :obj:`None` if there is but one.
        attr (str): The attribute.
        bits (int): Width in storage: 1, 2, 4 or 8.
        granularity (str): What shares a scale: :obj:`"node"`, :obj:`"feature"` or :obj:`"tensor"`.
        num_rows, num_cols (int): The shape of the matrix.
    """

    group: str | None
    attr: str
    bits: int
    granularity: str
    num_rows: int
    num_cols: int

    @property
    def key(self) -> tuple[str | None, str]:
        """Its names."""
        return self.group, self.attr

    @property
    def name(self) -> str:
        """Its names as one."""
        return self.attr if self.group is None else f"{self.group}/{self.attr}"

    @property
    def stride(self) -> int:
        """Bytes from one row of codes to the next."""
        return row_layout(self.num_cols, self.bits).stride

    @property
    def param_shape(self) -> tuple[int, ...]:
        """Shape of its scale and zero point."""
        by_row, by_column = _PARAM_SHAPES[self.granularity]
        if not by_row and not by_column:
            return ()
        return (self.num_rows if by_row else 1, self.num_cols if by_column else 1)


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


def pieces_of(entries: Sequence[Entry]) -> list[Piece]:
    r"""The tensors of a file, in their order.

    Args:
        entries (list): What it holds.
    """
    parts = [(e, "codes") for e in by_stride(entries)]
    parts += [(e, kind) for e in by_stride(entries) for kind in ("scale", "zero_point")]
    found, at = [], 0
    for entry, kind in parts:
        is_codes = kind == "codes"
        shape = (entry.num_rows, entry.stride) if is_codes else entry.param_shape
        end = at + math.prod(shape) * (1 if is_codes else 4)
        found.append(Piece(f"{entry.name}.{kind}", "U8" if is_codes else "F32", shape, at, end))
        at = end
    blocks = -(-at // BLOCK)
    return [*found, Piece(_CHECKSUMS, "U32", (blocks,), at, at + 4 * blocks)]


def by_stride(entries: Sequence[Entry]) -> list[Entry]:
    """In the order of a file: so rows that are multiples of 32 bytes begin at such a multiple."""
    return sorted(entries, key=lambda entry: -entry.stride)


def header_of(entries: Sequence[Entry], checksums: int, length: int | None = None) -> bytes:
    r"""The header of a file, with its length in front.

    Args:
        entries (list): What the file holds.
        checksums (int): The checksum of the checksums.
        length (int, optional): The bytes that it is to have. By default it has as many as it would
            with any numbers of rows, which need not be known yet.
    """
    if length is None:
        most = [Entry(**{**asdict(e), "num_rows": 10**18}) for e in entries]
        length = -(-len(_header(most, 0)) // _ALIGNMENT) * _ALIGNMENT
    text = _header(entries, checksums)
    padded = (length - 8).to_bytes(8, "little") + text[8:].ljust(length - 8)
    crc = f"{zlib.crc32(padded):08x}"
    return padded.replace(_header_checksum(_NO_CHECKSUM), _header_checksum(crc), 1)


def _header(entries: Sequence[Entry], checksums: int) -> bytes:
    described = {
        "format": FORMAT,
        "version": str(VERSION),
        "release": __version__,
        "layout": "planar",
        "block_bytes": str(BLOCK),
        "entries": _compact([asdict(entry) for entry in entries]),
        "checksums_crc32": f"{checksums:08x}",
        "header_crc32": _NO_CHECKSUM,
    }
    return b"\0" * 8 + _compact({"__metadata__": described, **_tensors(entries)}).encode()


def _tensors(entries: Sequence[Entry]) -> dict[str, Any]:
    return {
        p.name: {"dtype": p.dtype, "shape": list(p.shape), "data_offsets": [p.start, p.end]}
        for p in pieces_of(entries)
    }


def _header_checksum(crc: str) -> bytes:
    return f'"header_crc32":"{crc}"'.encode()


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


# Reading ##########################################################################################


class Header(NamedTuple):
    r"""What the header of a file says.

    Args:
        entries (list): What the file holds.
        checksums (int): The checksum of the checksums.
        length (int): Bytes before the first tensor.
        release (str): The release that wrote it.
        crc (str): The header's own checksum, which tells two files from each other.
    """

    entries: list[Entry]
    checksums: int
    length: int
    release: str
    crc: str


def read_header(file: Any, size: int) -> Header:
    r"""Reads and checks what stands before the tensors of a file.

    Args:
        file (file): At its beginning.
        size (int): Its bytes.

    Raises:
        CheckpointError: If it is no file of packed features, damaged, or of a newer version.
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
            f"its header is damaged, or not from PackedFeatureStore.write "
            f"({type(error).__name__}: {str(error)[:100]})"
        ) from error
    if found != FORMAT:
        raise CheckpointError(f"its format is {reprlib.repr(found)}, not {FORMAT!r}")
    if version != VERSION:
        raise CheckpointError(
            f"it has format version {version}, written by release "
            f"{reprlib.repr(metadata.get('release'))}; this release ({__version__}) reads version "
            f"{VERSION}"
        )
    if length % _ALIGNMENT:
        raise CheckpointError(f"its header has {length} bytes, no multiple of {_ALIGNMENT}")
    return _checked(raw, content, size)


def _checked(raw: bytes, content: dict[str, Any], size: int) -> Header:
    metadata = content.pop("__metadata__")
    crc = metadata.get("header_crc32")
    blank = raw.replace(_header_checksum(str(crc)), _header_checksum(_NO_CHECKSUM), 1)
    if crc != f"{zlib.crc32(blank):08x}":
        raise CheckpointError("its header is damaged: the checksum is wrong")
    try:
        entries = [_entry(values) for values in json.loads(metadata["entries"])]
        checksums = int(metadata["checksums_crc32"], 16)
        described = _tensors(entries)
    except (ValueError, KeyError, TypeError, ConfigError, RecursionError) as error:
        raise CheckpointError(f"its header has no meaning: {str(error)[:200]}") from error
    same = metadata.get("layout") == "planar" and metadata.get("block_bytes") == str(BLOCK)
    if not same or content != described or len(described) != 1 + 3 * len(entries):
        raise CheckpointError("its header describes other tensors than its entries have")
    expected = len(raw) + pieces_of(entries)[-1].end
    if size != expected:
        raise CheckpointError(f"it has {size:,} bytes, its header says {expected:,}")
    return Header(entries, checksums, len(raw), str(metadata.get("release")), crc)


def _entry(values: Any) -> Entry:
    names = [field.name for field in fields(Entry)]
    if not isinstance(values, dict) or list(values) != names:
        raise ValueError(f"an entry has {', '.join(names)}, found {reprlib.repr(values)}")
    entry = Entry(**values)
    is_named = isinstance(entry.group, (str, type(None))) and isinstance(entry.attr, str)
    sizes = (entry.num_rows, entry.num_cols)
    fits = all(type(size) is int and 0 <= size <= _MOST_ROWS for size in sizes)
    is_known = entry.bits in PACKED_BITS and type(entry.bits) is int
    if not (is_named and fits and is_known and entry.granularity in list(_PARAM_SHAPES)):
        raise ValueError(f"no matrix is {reprlib.repr(values)}")
    return entry


def blocks_of(entries: Sequence[Entry], block: int) -> Iterator[str]:
    r"""What lies in a block that shares a checksum, in words.

    Args:
        entries (list): What the file holds.
        block (int): Which one.
    """
    first, last = block * BLOCK, (block + 1) * BLOCK
    for piece in pieces_of(entries)[:-1]:
        start, end = max(first, piece.start), min(last, piece.end)
        if start >= end:
            continue
        if not piece.shape or piece.shape[0] <= 1:
            yield piece.name
        else:
            row = (piece.end - piece.start) // piece.shape[0]
            rows = (start - piece.start) // row, (end - 1 - piece.start) // row
            yield f"rows {rows[0]} to {rows[1]} of {piece.name}"
