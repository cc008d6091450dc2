"""Whatever a file holds, it is refused in words or gives the model that was saved."""

from __future__ import annotations

import copy
import io
import json
import random
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_geometric_qlr as qlr
from tests.helpers.io_cases import (
    FLOAT,
    assert_same,
    content_of,
    converted,
    make,
    read,
    refused,
    run,
    stored,
    written,
)

#: What a field of a header may be replaced by.
VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 7, 8, 255, 2**31, 2**63, 2**70, 10**400),
    *(0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "weight", "bt", "tensor", "__class__", "keys", "a.b", "\0", "\ud800", "x" * 10_000),
    *([], {}, [[]], [1], [None], ["x"], {"": 0}, {"bits": 4}, [0, 2**62, 2**62]),
]


def deeply(depth: int = 500) -> Any:
    out: Any = []
    for _ in range(depth):
        out = [out]
    return out


def parts(raw: bytes) -> tuple[dict[str, Any], torch.Tensor]:
    """The header of a file, and the bytes that follow it."""
    content = content_of(raw)
    size, data = content["header_bytes"], content["data"]
    return json.loads(zlib.decompress(data[:size].numpy().tobytes())), data[size:]


def forged(raw: bytes, described: bytes, body: torch.Tensor) -> bytes:
    """A file with another header and a checksum that is right."""
    data = torch.cat([torch.frombuffer(bytearray(described), dtype=torch.uint8), body])
    checksum = zlib.crc32(data.numpy().data, len(described))
    content = {**content_of(raw), "data": data, "header_bytes": len(described)}
    return stored({**content, "checksum": checksum})


def with_header(raw: bytes, header: Any) -> bytes:
    return forged(raw, zlib.compress(json.dumps(header).encode(), 1), parts(raw)[1])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files(data: st.DataObject) -> None:
    model = converted(make("appnp"))
    raw = bytearray(written(model))
    place = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw = raw[:place]
    else:
        raw[place] ^= data.draw(st.integers(1, 255))
    try:
        twin = read(bytes(raw), FLOAT["appnp"]())
    except qlr.errors.CheckpointError as error:
        assert any(word in str(error) for word in ("damaged", "not from qlr.save", "version"))
    else:  # padding of the container
        assert_same(model, twin)


def _damaged(raw: bytes, seed: int) -> bytes:
    """Bytes flipped, cut out, put in, doubled or moved."""
    draw = random.Random(seed)
    out = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        at, length = draw.randrange(len(out)), draw.choice((1, 1, 2, 8, 64, 512))
        kind = draw.randrange(5)
        if kind == 0:
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del out[at : at + length]
        elif kind == 2:
            out[at:at] = draw.randbytes(length)
        elif kind == 3:
            out[at : at + length] = draw.randbytes(min(length, len(out) - at))
        else:
            out[at:at] = out[draw.randrange(len(out)) :][:length]
        out = out or bytearray(b"\0")
    return bytes(out)


def _check_damaged(name: str, seeds: range) -> None:
    model = converted(make(name))
    raw, expected = written(model), run(model)[0]
    for seed in seeds:
        try:
            twin = read(_damaged(raw, seed), FLOAT[name]())
        except qlr.errors.CheckpointError:
            continue
        assert torch.equal(run(twin)[0], expected), seed


def test_damage_of_all_kinds() -> None:
    _check_damaged("gcn", range(300))


def _check_forged_bytes(name: str, convert: bool, seeds: range) -> None:
    """Damage inside of the data, under a checksum that is right: values may be others."""
    model = converted(make(name)) if convert else make(name)
    raw = written(model)
    header, body = parts(raw)
    text = json.dumps(header).encode()
    for seed in seeds:
        part, more = seed % 3, body
        described = zlib.compress(text)
        if part == 0:
            described = zlib.compress(_damaged(text, seed))
        elif part == 1:
            described = _damaged(described, seed)
        else:
            flipped = _damaged(body.numpy().tobytes(), seed)
            more = torch.frombuffer(bytearray(flipped), dtype=torch.uint8)
        try:
            twin = read(forged(raw, described, more), FLOAT[name]())
            run(twin.eval())
        except qlr.errors.QLRError:
            continue


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
def test_damage_under_a_right_checksum(convert: bool) -> None:
    _check_forged_bytes("gcn", convert, range(150))


# Headers, field by field ##########################################################################


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else ()
    for key, one in enumerate(value) if isinstance(value, list) else items:
        yield from _places(one, (*path, key))


def _edits(header: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], Callable[[Any, Any], None]]]:
    def put(value: Any) -> Callable[[Any, Any], None]:
        return lambda parent, key: parent.__setitem__(key, value)

    def rename(parent: Any, key: Any) -> None:
        if isinstance(parent, dict):
            parent["other"] = parent.pop(key)
        else:
            parent.append(parent[key])

    for path in _places(header):
        if path:
            yield path, lambda parent, key: parent.__delitem__(key)
            yield path, rename
            yield from ((path, put(value)) for value in [*VALUES, deeply()])


def _check_edits(name: str, convert: bool, share: float) -> None:
    model = converted(make(name)) if convert else make(name)
    raw, expected = written(model), run(model)[0]
    header, _ = parts(raw)
    draw = random.Random(0)
    for path, edit in _edits(header):
        if draw.random() > share:
            continue
        edited = copy.deepcopy(header)
        parent = edited
        for key in path[:-1]:
            parent = parent[key]
        edit(parent, path[-1])
        try:
            twin = read(with_header(raw, edited), FLOAT[name]())
        except qlr.errors.QLRError as error:
            assert len(str(error)) < 2000, path
            continue
        assert torch.equal(run(twin.eval())[0], expected), path


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
@pytest.mark.parametrize("name", ["gcn", "gat", "appnp"])
def test_every_field_of_a_header_is_checked(name: str, convert: bool) -> None:
    _check_edits(name, convert, share=0.02)


@pytest.mark.heavy
@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
@pytest.mark.parametrize("name", ["gcn", "gat", "appnp", "sage", "smp"])
def test_many_damaged_files(name: str, convert: bool) -> None:
    _check_edits(name, convert, share=1.0)
    _check_forged_bytes(name, convert, range(6000))
    if convert:
        _check_damaged(name, range(10_000))


@pytest.mark.parametrize(
    "name", ["header_bytes", "checksum", "data", "version", "release", "format"]
)
def test_every_field_of_a_file_is_checked(name: str) -> None:
    model = converted(make("appnp"))
    content = content_of(written(model))
    wide = torch.zeros(1, dtype=torch.uint8).expand(1 << 45)
    tensors = [torch.zeros(3), torch.zeros(2, 2), wide, torch.zeros(0, dtype=torch.uint8)]
    values = [v for v in [*VALUES, deeply(50)] if v != "\ud800"]
    for value in (*values, *tensors, {"x": torch.zeros(1)}):
        try:
            twin = read(stored({**content, name: value}), FLOAT["appnp"]())
        except qlr.errors.CheckpointError as error:
            assert len(str(error)) < 2000
        else:
            assert name in ("release", "version") and torch.equal(run(twin)[0], run(model)[0])
    if name != "release":  # which is there for people
        with pytest.raises(qlr.errors.CheckpointError):
            read(stored({k: v for k, v in content.items() if k != name}), FLOAT["appnp"]())


# Bombs ############################################################################################

_MEASURED = """
import resource, sys, torch, torch_geometric_qlr as qlr
from torch_geometric.nn import GCN
model = GCN(8, 6, num_layers=2, out_channels=3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        qlr.load(path, model)
    except qlr.errors.CheckpointError as error:
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, error)
"""


def _bomb(kind: str) -> bytes:
    raw = written(converted(make()))
    if kind == "container":
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
            for part in old.infolist():
                data = old.read(part) if "/data/" not in part.filename else bytes(1 << 28)
                new.writestr(part.filename, data, zipfile.ZIP_DEFLATED)
        return out.getvalue()
    header, body = parts(raw)
    squeeze = zlib.compressobj(9)
    blocks = {"spaces": b" " * (1 << 20), "lists": b"[]," * (1 << 18), "nested": b"[" * (1 << 20)}
    start = b"[" if kind == "lists" else b""
    text = [start, *[blocks[kind]] * (1024 if kind == "spaces" else 15)]
    described = b"".join(map(squeeze.compress, text)) + squeeze.flush()
    assert len(described) < 1.1 * (1 << 20)
    return forged(raw, described, body)


# The second pair is a gigabyte of text, and millions of lists.
@pytest.mark.parametrize(
    ("kinds", "most"),
    [
        (("nested", "container"), 200),
        pytest.param(("spaces", "lists"), 700, marks=pytest.mark.heavy),
    ],
)
def test_small_files_that_inflate(kinds: tuple[str, str], most: int, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    for kind in kinds:
        (tmp_path / kind).write_bytes(_bomb(kind))
    command = [sys.executable, "-W", "ignore", "-c", _MEASURED, *(tmp_path / k for k in kinds)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    sizes = [int(line.partition(" ")[0]) for line in done.stdout.splitlines()]
    assert len(sizes) == len(kinds) and sizes[0] < 200 and sizes[1] < most, done.stdout


def test_sizes_that_the_file_does_not_have() -> None:
    raw = written(converted(make()))
    header, _ = parts(raw)

    def edited(edit: Callable[[dict[str, Any]], None]) -> bytes:
        out = copy.deepcopy(header)
        edit(out)
        return with_header(raw, out)

    def quantizers(h: dict[str, Any]) -> Any:
        return h["layers"]["convs.0.lin"]["quantizers"]

    fresh = FLOAT["gcn"]()
    large = edited(lambda h: h["tensors"][0].__setitem__(2, [10**12]))
    refused(large, fresh, r"damaged: its tensors are 8,000,000,\d+,?\d* bytes by the header")
    groups = edited(lambda h: quantizers(h)["input"].__setitem__("groups", 10**12))
    refused(groups, fresh, r"convs\.0\.lin\.input' needs more bytes than the file has")
    shape = edited(lambda h: quantizers(h)["weight"].update(shape=[10**6] * 2, matrix=[10**6] * 2))
    refused(shape, fresh, r"convs\.0\.lin\.weight' needs more bytes than the file has")
    matrix = edited(lambda h: quantizers(h)["weight"].update(matrix=[3, 16]))
    refused(matrix, fresh, r"weight of shape \[6, 8\] and codes of shape \[3, 16\]")
    family = edited(lambda h: h["layers"]["convs.0"].update(family="os"))
    refused(family, fresh, r"header\['layers'\]\['convs\.0'\]\['family'\] is 'os', not one of")
    linear = edited(lambda h: h["layers"]["convs.0"].update(family="linear"))
    refused(linear, fresh, r"convs\.0: .*GCNConv is damaged.*cannot be quantized as 'linear'")
    refused(forged(raw, b"abc", parts(raw)[1]), fresh, "damaged: its header cannot be inflated")
