"""From rows of floats to a file of packed ones, without ever holding all of either."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from torch_geometric_qlr.errors import ConfigError, InputError
from torch_geometric_qlr.files.atomic import replace_file
from torch_geometric_qlr.files.tensor_file import BLOCK, Checksums, buffer_of
from torch_geometric_qlr.loader.file_format import Entry, by_stride, header_of
from torch_geometric_qlr.loader.sources import Source, source_of
from torch_geometric_qlr.ops import storage_bits
from torch_geometric_qlr.ops.checks import place_not_finite
from torch_geometric_qlr.quantizers import MinMax, Quantizer
from torch_geometric_qlr.tensor import PackedTensor
from torch_geometric_qlr.transforms.pack_features import input_quantizers, pack_features

__all__ = ["Ends", "write_features"]

#: The ends of ranges: numbers, or one for each column.
Ends = tuple[Any, Any]
Key = tuple[str | None, str]

#: Scales of rows are kept in memory up to so many bytes, and then beside the file.
_SPOOLED_BYTES = 1 << 24


@dataclass(frozen=True)
class _Job:
    """One matrix to be written: where from, and how its rows become codes."""

    key: Key
    source: Source
    bits: int
    granularity: str
    pack: Callable[[Tensor], PackedTensor]

    def entry(self, num_rows: int) -> Entry:
        return Entry(*self.key, self.bits, self.granularity, num_rows, self.source.num_cols)


def write_features(
    path: str,
    sources: Mapping[Key, Any],
    bits: int,
    granularity: str,
    *,
    ranges: Ends | None = None,
    model: nn.Module | None = None,
    progress: bool = False,
) -> None:
    r"""Writes a file of packed features, see
    :meth:`~torch_geometric_qlr.loader.PackedFeatureStore.write`.

    Args:
        path (str): The file.
        sources (dict): What holds the rows, by group and attribute.
        bits, granularity, ranges, model, progress: As there.
    """
    if not sources:
        raise InputError("PackedFeatureStore.write: there are no features")
    _check_names(list(sources))
    for x in sources.values():
        is_path = isinstance(x, (str, os.PathLike))
        if is_path and os.path.exists(path) and os.path.samefile(x, path):
            raise InputError(f"PackedFeatureStore.write: {path} would take the place of its source")
    if model is not None and ((bits, granularity) != (8, "node") or ranges is not None):
        raise ConfigError(
            "PackedFeatureStore.write: bits, granularity and ranges are those of the model; leave "
            "them out"
        )
    opened = {key: source_of(x) for key, x in sources.items()}
    if model is not None:
        jobs = [_model_job(key, source, model) for key, source in opened.items()]
    else:
        method = MinMax(bits, granularity)
        jobs = [_min_max_job(key, s, method, ranges, progress) for key, s in opened.items()]
    folder = os.path.dirname(os.path.realpath(path))
    replace_file(path, lambda file: _write(file, jobs, folder, progress))


def _check_names(keys: list[Key]) -> None:
    for group, attr in keys:
        if not isinstance(attr, str) or not isinstance(group, (str, type(None))):
            raise ConfigError(
                f"PackedFeatureStore.write: features of {group!r} as {attr!r}: the type of nodes "
                f"is text or None, and the attribute text"
            )


# How rows become codes ############################################################################


def _min_max_job(
    key: Key, source: Source, method: MinMax, ranges: Ends | None, progress: bool
) -> _Job:
    ends = None if ranges is None else _given_ends(ranges, method, source.num_cols)
    if ends is None and method.is_static:
        if not source.repeats:
            raise InputError(
                f"PackedFeatureStore.write: ranges per {method.granularity} need a first pass over "
                f"the rows, and an iterator can be read only once. Pass the ranges, an iterable "
                f"that starts anew such as a list or a loader, or granularity='node'."
            )
        ends = _ends_of(source, method, progress)
    width = storage_bits(method.bits)
    return _Job(key, source, width, method.granularity, lambda x: method.pack(x, ends))


def _given_ends(ranges: Ends, method: MinMax, num_cols: int) -> tuple[Tensor, Tensor]:
    if not method.is_static:
        raise ConfigError(
            "PackedFeatureStore.write: ranges are given per 'feature' or 'tensor'; with "
            "granularity='node' each row has its own"
        )
    try:
        lo, hi = (torch.as_tensor(end, dtype=torch.float32).cpu().reshape(-1) for end in ranges)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"PackedFeatureStore.write: ranges is {ranges!r}; it is a pair (lo, hi) of numbers or "
            f"of tensors with one for each column"
        ) from error
    size = num_cols if method.granularity == "feature" else 1
    for end in (lo, hi):
        if end.numel() not in (1, size) or not bool(torch.isfinite(end).all()):
            raise InputError(
                f"PackedFeatureStore.write: an end of the ranges has {end.numel()} numbers; it "
                f"takes {size} finite ones"
            )
    if bool((lo > hi).any()):
        raise InputError("PackedFeatureStore.write: ranges=(lo, hi) has lower ends above upper")
    shape = (1, size) if method.granularity == "feature" else ()
    ends = lo.clamp_max(0.0), hi.clamp_min(0.0)
    return ends[0].expand(size).reshape(shape), ends[1].expand(size).reshape(shape)


def _ends_of(source: Source, method: MinMax, progress: bool) -> tuple[Tensor, Tensor]:
    """The ranges of all rows."""
    ends = method.range_of(torch.zeros(1, source.num_cols))
    for row, batch in _numbered(source, "ranges", progress):
        lo, hi = method.range_of(batch)
        if not bool((torch.isfinite(lo) & torch.isfinite(hi)).all()):
            raise InputError(f"features: {_shifted(batch, row)}")
        ends = torch.minimum(ends[0], lo), torch.maximum(ends[1], hi)
    return ends


def _model_job(key: Key, source: Source, model: nn.Module) -> _Job:
    quantizer: Quantizer = next(iter(input_quantizers(model).values()))
    granularity = quantizer.config.granularity
    if quantizer.follows_skewness and not quantizer.is_static:
        raise ConfigError(
            f"PackedFeatureStore.write: {quantizer.path}: with truncation 'bt*' per node the codes "
            f"of a row depend on all others, which are not in memory. Use pack_features, or "
            f"truncation=None or 'bt' for the input."
        )
    device = next(chain(quantizer.parameters(), quantizer.buffers())).device
    return _Job(
        *(key, source, storage_bits(quantizer.bits), granularity),
        lambda x: pack_features(model, x.to(device)).to("cpu"),
    )


# The file #########################################################################################


def _write(file: IO[bytes], jobs: list[_Job], folder: str, progress: bool) -> None:
    if not file.seekable():
        raise InputError("PackedFeatureStore.write: the path is no ordinary file")
    unknown = header_of([job.entry(0) for job in jobs], 0)
    file.write(unknown)
    checksums = Checksums()

    def write(data: Any) -> None:
        checksums.add(data)
        file.write(data)

    rows: dict[Key, int] = {}
    params: dict[Key, tuple[IO[bytes], IO[bytes]]] = {}
    order = [entry.key for entry in by_stride([job.entry(0) for job in jobs])]
    by_key = {job.key: job for job in jobs}
    try:
        for key in order:
            params[key] = (_spooled(folder), _spooled(folder))
            rows[key] = _write_codes(write, by_key[key], params[key], progress)
        for key in order:
            for spooled in params[key]:
                spooled.seek(0)
                while data := spooled.read(BLOCK):
                    write(data)
    finally:
        for pair in params.values():
            for spooled in pair:
                spooled.close()
    table = np.array(checksums.values, dtype="<u4").tobytes()
    file.write(table)
    file.seek(0)
    entries = [job.entry(rows[job.key]) for job in jobs]
    file.write(header_of(entries, zlib.crc32(table), len(unknown)))


def _spooled(folder: str) -> Any:
    return tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES, dir=folder)


def _write_codes(
    write: Callable[[Any], None], job: _Job, params: tuple[IO[bytes], IO[bytes]], progress: bool
) -> int:
    """Writes the codes of all rows, and keeps their scales and zero points; how many they are."""
    by_row = job.granularity == "node"
    packed, rows = job.pack(torch.zeros(0, job.source.num_cols)), 0
    for rows, batch in _numbered(job.source, "packed", progress):
        try:
            packed = job.pack(batch)
        except InputError:
            if bool(torch.isfinite(batch).all()):
                raise
            raise InputError(f"features: {_shifted(batch, rows)}") from None
        write(buffer_of(packed.data))
        if by_row:
            _keep(packed, params, (len(batch), 1))
        rows += len(batch)
    if not by_row:
        _keep(packed, params, job.entry(rows).param_shape)
    return rows


def _keep(
    packed: PackedTensor, params: tuple[IO[bytes], IO[bytes]], shape: tuple[int, ...]
) -> None:
    for param, file in zip((packed.scale, packed.zero_point), params, strict=True):
        file.write(param.detach().cpu().expand(shape).numpy().astype("<f4").tobytes())


def _numbered(source: Source, what: str, progress: bool) -> Iterator[tuple[int, Tensor]]:
    """The batches of rows, each with the number of its first one."""
    row = 0
    with tqdm(total=source.num_rows, desc=what, unit=" rows", disable=not progress) as bar:
        for batch in source.batches():
            yield row, batch
            row += len(batch)
            bar.update(len(batch))


def _shifted(batch: Tensor, row: int) -> str:
    """Where a batch that begins at a row is not finite."""
    bad = int(torch.isfinite(batch).all(dim=1).logical_not().nonzero()[0])
    found = place_not_finite(batch[bad : bad + 1])
    return found.replace("x[0,", f"x[{row + bad},", 1)
