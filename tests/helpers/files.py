"""Files of models, taken apart and put together again with checksums that are right."""

from __future__ import annotations

import io
import json
import sys
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import torch_geometric_qlr as qlr

BLOCK = 1 << 20
#: Texts of the metadata that are no JSON.
PLAIN = ("format", "version", "release", "checksums_crc32", "header_crc32")
TYPES = {"F32": "float32", "I64": "int64", "U8": "uint8", "F64": "float64", "BOOL": "bool"}


def written(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    qlr.save(model, buffer)
    return buffer.getvalue()


def closed(header: bytes, data: bytes) -> bytes:
    """A file with a header, padded, whose checksum is put where it belongs."""
    header = header.rstrip(b" ")
    header += b" " * (-(8 + len(header)) % 64)
    length = len(header).to_bytes(8, "little")
    start, word, rest = header.partition(b'"header_crc32":"')
    if word:
        header = start + word + b"00000000" + rest[8:]
        crc = f"{zlib.crc32(length + header):08x}".encode()
        header = start + word + crc + rest[8:]
    return length + header + data


# Files of today ###################################################################################


def parts(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a file, its texts read, and the bytes that follow it."""
    size = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:size])
    said = header["__metadata__"]
    header["__metadata__"] = {k: v if k in PLAIN else json.loads(v) for k, v in said.items()}
    return header, raw[size:]


def text_of(header: dict[str, Any], body: bytes) -> bytes:
    """A header as it is in a file, with the checksums of a body."""
    header = dict(header)
    said = header.get("__metadata__")
    if isinstance(said, dict):
        texts = {k: v if k in PLAIN else json.dumps(v) for k, v in said.items()}
        if "checksums_crc32" in texts and isinstance(texts["checksums_crc32"], str):
            blocks = (body[i : i + BLOCK] for i in range(0, len(body), BLOCK))
            texts["checksums_crc32"] = "".join(f"{zlib.crc32(b):08x}" for b in blocks)
        header["__metadata__"] = texts
    return json.dumps(header, separators=(",", ":")).encode()


def built(header: dict[str, Any], body: bytes) -> bytes:
    return closed(text_of(header, body), body)


def edited(raw: bytes, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """A file with something else in what it says of the model."""
    header, body = parts(raw)
    edit(header["__metadata__"])
    return built(header, body)


# Files of version 2 ###############################################################################


def content_of(raw: bytes) -> dict[str, Any]:
    out: dict[str, Any] = torch.load(io.BytesIO(raw), weights_only=True)
    return out


def stored(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def old_written(model: nn.Module) -> bytes:
    """What earlier releases wrote."""
    tensors, body = parts(written(model))
    header = tensors.pop("__metadata__")
    header = {k: v for k, v in header.items() if k not in (*PLAIN, "complex", "constructor")}
    header["byteorder"] = sys.byteorder
    header["tensors"] = [[n, TYPES[t["dtype"]], t["shape"]] for n, t in tensors.items()]
    return old_built(header, body)


def old_parts(raw: bytes) -> tuple[dict[str, Any], bytes]:
    content = content_of(raw)
    size, data = content["header_bytes"], content["data"].numpy().tobytes()
    return json.loads(zlib.decompress(data[:size])), data[size:]


def old_built(header: dict[str, Any], body: bytes) -> bytes:
    return old_closed(zlib.compress(json.dumps(header).encode(), 1), body)


def old_closed(described: bytes, body: bytes) -> bytes:
    data = torch.frombuffer(bytearray(described + body), dtype=torch.uint8)
    size = len(described)
    checksum = zlib.crc32(data.numpy().data, size)
    said = {"format": "torch_geometric_qlr", "version": 2, "release": "0.2"}
    return stored({**said, "header_bytes": size, "checksum": checksum, "data": data})


#: How files of a version are written, taken apart, and put together from a header and bytes.
FORMATS = {
    "safetensors": SimpleNamespace(
        written=written,
        parts=parts,
        text=text_of,
        closed=closed,
        built=built,
    ),
    "archive": SimpleNamespace(
        written=old_written,
        parts=old_parts,
        text=lambda header, body: json.dumps(header).encode(),
        closed=lambda text, body: old_closed(zlib.compress(text), body),
        built=old_built,
    ),
}
