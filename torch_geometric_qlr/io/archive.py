"""Files of versions 1 and 2: what ``torch.save`` writes, a dictionary of values and one tensor.

The tensor is a compressed header and all tensors one after the other. Only values and tensors are
read, never other objects.
"""

from __future__ import annotations

import json
import os
import reprlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from torch_geometric_qlr._version import __version__
from torch_geometric_qlr.errors import CheckpointError
from torch_geometric_qlr.io.format import DTYPES, VERSION
from torch_geometric_qlr.io.header import Damage, check_header
from torch_geometric_qlr.io.state import state_of, tensor_of
from torch_geometric_qlr.io.versions import renamed_state

__all__ = ["ARCHIVE", "read_archive"]

#: How an archive begins. As the length of a header of safetensors it would be over 64 MB.
ARCHIVE = b"PK\3\4"

_FORMAT = "torch_geometric_qlr"
_VERSIONS = (1, 2)
#: A header takes about 1.5 kB per layer before it is compressed: this is for ten thousand.
_MOST_HEADER_BYTES = 1 << 24


def read_archive(file: IO[bytes], name: str) -> tuple[int, dict[str, Any], Any]:
    r"""The version, the header and the state dict of a file, checked.

    Args:
        file (file): A binary file with places, at the beginning of the archive.
        name (str): What messages call it.

    Raises:
        CheckpointError: If it is not from :func:`save`, or of a newer version.
        Damage: If it is damaged.
    """
    content = _content(file, name)
    version: int = content["version"]
    data, size = _data(content)
    header = _header(data[:size].numpy().tobytes())
    check_header(header, data.numel() - size, version)
    state = state_of(_tensors(data[size:], header), header)
    if version == 1:
        state = renamed_state(state, header["layers"])
    return version, header, state


def _content(file: IO[bytes], name: str) -> dict[str, Any]:
    try:
        _check_container(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise  # said best by the system
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise CheckpointError(
            f"{name} cannot be read: it is damaged, cut short, or not from qlr.save "
            f"({type(error).__name__}: {lines[0][:200]})."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        state = isinstance(content, dict) and any(isinstance(v, Tensor) for v in content.values())
        hint = " It looks like a state_dict: model.load_state_dict(torch.load(path))."
        raise CheckpointError(f"{name} is not from qlr.save.{hint if state else ''}")
    version = content.get("version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{name} is damaged: its version is {reprlib.repr(version)}.")
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{name} has format version {version}, written by release "
            f"{reprlib.repr(content.get('release'))}; this release ({__version__}) reads version "
            f"1 to {VERSION}. Upgrade torch_geometric_qlr."
        )
    return content


def _check_container(file: IO[bytes]) -> None:
    """Refuses an archive whose parts would take more memory than the file has bytes."""
    start = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
        size = file.seek(0, os.SEEK_END) - start
    except OSError as error:  # an offset that cannot be: nothing that the system has to say
        raise Damage(f"no archive: {error}") from error
    finally:
        file.seek(start)
    if sum(part.file_size for part in parts) > size:
        raise Damage("its parts are larger than the file")


def _data(content: Mapping[str, Any]) -> tuple[Tensor, int]:
    """The bytes of a file, and how many of them are the header."""
    data: Any = content.get("data")
    size: Any = content.get("header_bytes")
    found: Any = content.get("checksum")
    is_data = type(data) is Tensor and data.dtype == torch.uint8 and data.dim() == 1
    if not is_data or data.layout != torch.strided or data.is_meta or not data.is_contiguous():
        raise Damage("its bytes are missing")
    if type(size) is not int or not 0 < size <= data.numel():
        raise Damage(f"its header is to have {reprlib.repr(size)} of {data.numel()} bytes")
    # Of all bytes, and of where the header ends.
    if type(found) is not int or found != zlib.crc32(data.numpy().data, size):
        raise Damage("its checksum is wrong")
    return data, size


def _header(described: bytes) -> Any:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(described, _MOST_HEADER_BYTES)
    except zlib.error as error:
        raise Damage(f"its header cannot be inflated ({error})") from error
    if not stream.eof:
        cut = not stream.unconsumed_tail
        reason = "is cut short" if cut else f"inflates to more than {_MOST_HEADER_BYTES:,} bytes"
        raise Damage(f"its header {reason}")
    if stream.unused_data:
        raise Damage("something follows its header")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damage(f"its header cannot be read ({type(error).__name__}: {error})") from error


def _tensors(stream: Tensor, header: Mapping[str, Any]) -> dict[str, Tensor]:
    out, at = {}, 0
    for name, dtype, shape in header["tensors"]:
        end = at + torch.Size(shape).numel() * DTYPES[dtype].itemsize
        # A tensor of its own: aligned, and it does not keep the whole stream alive.
        out[name] = tensor_of(stream[at:end].clone(), name, DTYPES[dtype], shape)
        at = end
    return out
