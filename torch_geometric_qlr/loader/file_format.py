"""What a file of packed features looks like: a safetensors file whose header says all of it.

::

    header      as of all files of this package, see ``files/tensor_file.py``
    codes       of each entry, the rows of its PackedTensor, those of wider rows first
    scale,      of each entry, float32
    zero_point
    checksums   CRC-32 of all of the above after the header, in blocks of 1 MiB

The header is a function of the entries and two checksums, so a reader makes it anew and compares.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from torch_geometric_qlr._version import __version__
from torch_geometric_qlr.errors import CheckpointError, ConfigError
from torch_geometric_qlr.files.tensor_file import (
    BLOCK,
    Kind,
    Piece,
    compact,
    described,
    header_bytes,
    lay_out,
    read_frame,
)
from torch_geometric_qlr.ops import PACKED_BITS, row_layout

__all__ = [
    "FORMAT",
    "VERSION",
    "Entry",
    "Header",
    "by_stride",
    "header_of",
    "pieces_of",
    "read_header",
]

FORMAT = "torch_geometric_qlr.features"
VERSION = 1

_KIND = Kind(FORMAT, VERSION, VERSION, "PackedFeatureStore.write")

_MOST_ROWS = 2**31 - 2**16
_CHECKSUMS = "checksums"
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


def pieces_of(entries: Sequence[Entry]) -> list[Piece]:
    r"""The tensors of a file, in their order.

    Args:
        entries (list): What it holds.
    """
    tensors: list[tuple[str, str, tuple[int, ...]]] = [
        (f"{e.name}.codes", "U8", (e.num_rows, e.stride)) for e in by_stride(entries)
    ]
    for entry in by_stride(entries):
        for kind in ("scale", "zero_point"):
            tensors.append((f"{entry.name}.{kind}", "F32", entry.param_shape))
    blocks = -(-lay_out(tensors)[-1].end // BLOCK) if tensors else 0
    return lay_out([*tensors, (_CHECKSUMS, "U32", (blocks,))])


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
        length = len(header_bytes(_metadata(most, 0), pieces_of(most)))
    return header_bytes(_metadata(entries, checksums), pieces_of(entries), length)


def _metadata(entries: Sequence[Entry], checksums: int) -> dict[str, str]:
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "release": __version__,
        "layout": "planar",
        "block_bytes": str(BLOCK),
        "entries": compact([asdict(entry) for entry in entries]),
        "checksums_crc32": f"{checksums:08x}",
    }


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
    frame = read_frame(file, size, _KIND)
    metadata = frame.metadata
    try:
        entries = [_entry(values) for values in json.loads(metadata["entries"])]
        checksums = int(metadata["checksums_crc32"], 16)
        pieces = pieces_of(entries)
    except (ValueError, KeyError, TypeError, ConfigError, RecursionError) as error:
        raise CheckpointError(f"its header has no meaning: {str(error)[:200]}") from error
    same = metadata.get("layout") == "planar" and metadata.get("block_bytes") == str(BLOCK)
    expected = described(pieces)
    if not same or frame.tensors != expected or len(expected) != 1 + 3 * len(entries):
        raise CheckpointError("its header describes other tensors than its entries have")
    end = frame.length + pieces[-1].end
    if size != end:
        raise CheckpointError(f"it has {size:,} bytes, its header says {end:,}")
    return Header(entries, checksums, frame.length, str(metadata.get("release")), frame.crc)


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
