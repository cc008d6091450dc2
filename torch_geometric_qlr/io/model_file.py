"""Files of version 3: the tensors of a ``state_dict``, and what was done to the model as texts.

Each field of the header is a text of JSON in the metadata of the safetensors file. Complex numbers,
for which safetensors has no words, are pairs of real ones.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from torch_geometric_qlr._version import __version__
from torch_geometric_qlr.errors import CheckpointError, InputError
from torch_geometric_qlr.files.tensor_file import (
    Checksums,
    Frame,
    Kind,
    Piece,
    buffer_of,
    compact,
    contents_of,
    described,
    header_bytes,
    lay_out,
    read_frame,
)
from torch_geometric_qlr.io.format import VERSION, dtype_name
from torch_geometric_qlr.io.header import Damage, check_header
from torch_geometric_qlr.io.state import state_of, tensor_of

__all__ = ["KIND", "ModelFile", "read_model"]

KIND = Kind("torch_geometric_qlr.model", 3, VERSION, "qlr.save")

_CHECKSUMS = "checksums_crc32"
#: Entries of the metadata that are no fields of the header.
_FRAME = ("format", "version", "release", _CHECKSUMS)

_TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BOOL": torch.bool,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
}
_WORDS = {dtype: word for word, dtype in _TYPES.items()}


# Writing ##########################################################################################


class ModelFile:
    r"""What a file will hold, before anything is written.

    Args:
        header (dict): What was done to the model.
        tensors (dict): Dense tensors by name, those of the widest type first.

    Raises:
        InputError: If it could not be read again.
    """

    def __init__(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        plain = {name: _real(t) for name, t in tensors.items()}
        pieces = lay_out((name, _WORDS[t.dtype], t.shape) for name, t in plain.items())
        self._parts = [_little_endian(t) for t in plain.values()]
        checksums = Checksums()
        for part in self._parts:
            checksums.add(buffer_of(part))
        fields = {**header, "complex": [n for n, t in tensors.items() if t.is_complex()]}
        metadata = {
            "format": KIND.format,
            "version": str(VERSION),
            "release": __version__,
            **{key: compact(value) for key, value in fields.items()},
            _CHECKSUMS: _joined(checksums),
        }
        self._header = header_bytes(metadata, pieces)
        try:
            size = len(self._header) + sum(part.numel() for part in self._parts)
            frame = read_frame(io.BytesIO(self._header), size, KIND)
            _checked(frame, size - frame.length)
        except (CheckpointError, Damage) as error:
            raise InputError(
                f"The model has more layers, or other names, than a file can describe: {error}. "
                f"Save parts of the model in files of their own, or its state_dict with torch.save."
            ) from error

    def write(self, file: IO[bytes]) -> None:
        """Writes it all, from end to end."""
        # A raw file may write less than it is given.
        whole = io.BufferedWriter(file) if isinstance(file, io.RawIOBase) else file
        whole.write(self._header)
        for part in self._parts:
            whole.write(buffer_of(part))
        if isinstance(whole, io.BufferedWriter) and whole is not file:
            whole.detach()


def _real(t: Tensor) -> Tensor:
    plain = t.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return torch.view_as_real(plain) if plain.is_complex() else plain


def _little_endian(t: Tensor) -> Tensor:
    """The bytes of a tensor as they are in a file, or as they are here: the same turn."""
    raw = t.reshape(-1).view(torch.uint8)
    if sys.byteorder == "little" or not raw.numel():
        return raw
    return raw.view(-1, t.element_size()).flip(1).reshape(-1)


def _joined(checksums: Checksums) -> str:
    return "".join(f"{value:08x}" for value in checksums.values)


# Reading ##########################################################################################


def read_model(file: IO[bytes], size: int, name: str) -> tuple[int, dict[str, Any], Any]:
    r"""The version, the header and the state dict of a file, checked.

    Args:
        file (file): A binary file, at its beginning.
        size (int): Its bytes.
        name (str): What messages call it.

    Raises:
        CheckpointError: If it is not from :func:`save`, damaged, or of a newer version.
        Damage: If it is damaged.
    """
    try:
        frame = read_frame(file, size, KIND)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name} cannot be read: {error}. Write it with qlr.save, and read it with the release "
            f"that wrote it or a newer one."
        ) from error
    header, pieces = _checked(frame, size - frame.length)
    body = file.read(size - frame.length)
    _check_bytes(body, frame, pieces)
    names = set(header["complex"])
    tensors = {p.name: _tensor(body, p, p.name in names) for p in pieces}
    return frame.version, header, state_of(tensors, header)


def _checked(frame: Frame, num_bytes: int) -> tuple[dict[str, Any], list[Piece]]:
    """What a file says, and where its tensors lie."""
    try:
        fields = {k: json.loads(v) for k, v in frame.metadata.items() if k not in _FRAME}
        tensors = [(n, t["dtype"], t["shape"]) for n, t in frame.tensors.items()]
        types = [[n, dtype_name(_TYPES[word]), shape] for n, word, shape in tensors]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damage(
            f"its header has no meaning ({type(error).__name__}: {str(error)[:100]})"
        ) from error
    header = {**fields, "tensors": types}
    check_header(header, num_bytes, frame.version)
    pieces = lay_out(tensors)
    if described(pieces) != frame.tensors:
        raise Damage("its tensors do not follow one another")
    for name in header["complex"]:
        shape = next((p.shape for p in pieces if p.name == name and p.dtype[0] == "F"), ())
        if shape[-1:] != (2,):
            raise Damage(f"{name!r} holds no complex numbers")
    return header, pieces


def _check_bytes(body: bytes, frame: Frame, pieces: list[Piece]) -> None:
    checksums = Checksums()
    checksums.add(body)
    expected = frame.metadata.get(_CHECKSUMS)
    found = _joined(checksums)
    if expected == found:
        return
    if not isinstance(expected, str) or len(expected) != len(found):
        raise Damage("its list of checksums is incomplete")
    bad = [i for i in range(len(found) // 8) if found[8 * i :][:8] != expected[8 * i :][:8]]
    where = "; ".join(", ".join(contents_of(pieces, i)) for i in bad[:1])
    raise Damage(
        f"the checksum of {len(bad)} of {len(checksums.values)} blocks is wrong, the first of "
        f"which holds {where[:300]}"
    )


def _tensor(body: bytes, piece: Piece, is_complex: bool) -> Tensor:
    raw = torch.empty(piece.end - piece.start, dtype=torch.uint8)  # aligned, and its own
    if raw.numel():
        raw.numpy().data[:] = memoryview(body)[piece.start : piece.end]
    dtype = _TYPES[piece.dtype]
    out = tensor_of(_little_endian(raw.view(dtype)), piece.name, dtype, piece.shape)
    return torch.view_as_complex(out) if is_complex else out
