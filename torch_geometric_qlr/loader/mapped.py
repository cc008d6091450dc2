"""A file of packed features as the tensors of this process, read when they are touched."""

from __future__ import annotations

import mmap
import os
import platform
import sys
import zlib
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from torch_geometric_qlr.errors import CheckpointError
from torch_geometric_qlr.files.tensor_file import BLOCK, buffer_of, contents_of
from torch_geometric_qlr.loader.file_format import Entry, Header, pieces_of, read_header
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["MappedFile"]

_DTYPES = {"U8": torch.uint8, "F32": torch.float32, "U32": torch.uint32}

# Pages that somebody writes to become this process's own, and none are set aside for that before:
# a file may be larger than the memory. Python has no name for it before 3.13.
_USUAL = platform.machine() in ("x86_64", "aarch64") and sys.platform == "linux"
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if _USUAL else 0)


class MappedFile:
    r"""What :meth:`~torch_geometric_qlr.loader.PackedFeatureStore.write` wrote.

    The header and the size are checked at once, and so is the list of checksums; :meth:`verify`
    reads all.

    Args:
        path (str): The file.

    Attributes:
        entries (list): What it holds.
        release (str): The release that wrote it.
        crc (str): What tells it from another file.

    Raises:
        CheckpointError: If it is damaged, of a newer version, or something else.
        OSError: If it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                header: Header = read_header(file, size)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{path}: {error}. Write it with PackedFeatureStore.write."
                ) from error
            self._bytes = _map(file)[header.length :]
        self.entries: list[Entry] = header.entries
        self.release, self.crc = header.release, header.crc
        self._pieces = {piece.name: piece for piece in pieces_of(self.entries)}
        checksums = self._tensor("checksums")
        self._checksums: list[int] = checksums.tolist()
        if zlib.crc32(buffer_of(checksums)) != header.checksums:
            raise CheckpointError(f"{path}: its list of checksums is damaged. Write it again.")

    def features(self) -> dict[tuple[str | None, str], PackedTensor]:
        """Its matrices, which share the memory of the map."""
        return {entry.key: self._features(entry) for entry in self.entries}

    def _features(self, entry: Entry) -> PackedTensor:
        codes, *params = (
            self._tensor(f"{entry.name}.{kind}") for kind in ("codes", "scale", "zero_point")
        )
        if entry.granularity != "node":  # every selection of rows has them: not as a part of a file
            params = [param.clone() for param in params]
        return PackedTensor(codes, entry.num_cols, entry.bits, *params)

    def _tensor(self, name: str) -> Tensor:
        piece = self._pieces[name]
        dtype = _DTYPES[piece.dtype]
        if piece.start == piece.end:
            return torch.empty(piece.shape, dtype=dtype)
        return self._bytes[piece.start : piece.end].view(dtype).view(piece.shape)

    def verify(self, progress: bool = False) -> None:
        r"""Reads the whole file and compares every block with its checksum.

        Args:
            progress (bool): Show a progress bar. (default: :obj:`False`)

        Raises:
            CheckpointError: If a block is damaged; it names what lies there.
        """
        damaged = []
        *tensors, last = self._pieces.values()
        bar = tqdm(self._checksums, desc="verify", unit=" MiB", disable=not progress)
        for block, expected in enumerate(bar):
            data = self._bytes[block * BLOCK : min(last.start, (block + 1) * BLOCK)]
            if zlib.crc32(buffer_of(data)) != expected:
                damaged.append(f"block {block} ({', '.join(contents_of(tensors, block))})")
        if damaged:
            more = f"; and {len(damaged) - 8} more" if len(damaged) > 8 else ""
            raise CheckpointError(
                f"{self.path}: {len(damaged)} of {len(self._checksums)} blocks are damaged: "
                f"{'; '.join(damaged[:8])}{more}. Write the file again."
            )


def _map(file: Any) -> Tensor:
    if hasattr(mmap, "MAP_PRIVATE"):
        flags, prot = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=prot)
    else:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(mapped, dtype=torch.uint8)
