"""Whatever a file holds, it is refused in words or gives the model that was saved."""

from __future__ import annotations

import copy
import io
import os
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
from tests.helpers.files import (
    FORMATS,
    built,
    content_of,
    old_built,
    old_closed,
    old_parts,
    old_written,
    parts,
    stored,
)
from tests.helpers.io_cases import (
    FLOAT,
    assert_same,
    converted,
    make,
    read,
    refused,
    run,
    written,
)
from torch_geometric_qlr.files import tensor_file
from torch_geometric_qlr.io.reading import read_file

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


# Damage ###########################################################################################


def _refuses(raw: bytes) -> None:
    with pytest.raises(qlr.errors.CheckpointError):
        read_file(io.BytesIO(raw))


def test_every_byte_of_a_file_is_checked() -> None:
    """Whatever byte is another one, and wherever the file ends."""
    raw = written(qlr.quantize(torch.nn.Linear(3, 2), bits=4))
    read_file(io.BytesIO(raw))
    draw = random.Random(0)
    for at in range(len(raw)):
        _refuses(raw[:at])
        for flip in (1, 1 << draw.randrange(1, 8), draw.randrange(1, 256)):
            _refuses(raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :])
    for more in (b"\0", b" ", raw):
        _refuses(raw + more)


def test_every_block_of_a_file_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that were lost, written twice, or elsewhere; the message says what lay there."""
    monkeypatch.setattr(tensor_file, "BLOCK", 256)
    raw = written(converted(make()))
    size, step = len(raw), 64
    blocks = [raw[i : i + step] for i in range(0, size, step)]
    for i, block in enumerate(blocks):
        for other in (bytes(len(block)), blocks[i - 1][: len(block)], os.urandom(len(block))):
            if other != block:
                _refuses(b"".join([*blocks[:i], other, *blocks[i + 1 :]]))
        _refuses(b"".join(blocks[:i] + blocks[i + 1 :]))
    broken = bytearray(raw)
    broken[-1] ^= 1
    place = r"checksum of 1 of \d+ blocks is wrong, the first of which holds .*weight\.codes"
    refused(bytes(broken), FLOAT["gcn"](), f"damaged: the {place}")


@pytest.mark.parametrize("bit", range(8))
def test_a_length_of_the_header_that_is_wrong_is_damage(bit: int) -> None:
    raw = bytearray(FORMATS["safetensors"].written(converted(make("appnp"))))
    raw[0] ^= 1 << bit
    refused(bytes(raw), FLOAT["appnp"](), "damaged")


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files(form: str, data: st.DataObject) -> None:
    model = converted(make("appnp"))
    raw = bytearray(FORMATS[form].written(model))
    place = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw = raw[:place]
    else:
        raw[place] ^= data.draw(st.integers(1, 255))
    try:
        twin = read(bytes(raw), FLOAT["appnp"]())
    except qlr.errors.CheckpointError as error:
        words = ("damaged", "not from qlr.save", "version", "its format is")
        assert any(word in str(error) for word in words)
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


def _check_damaged(form: str, name: str, seeds: range) -> None:
    model = converted(make(name))
    raw, expected = FORMATS[form].written(model), run(model)[0]
    for seed in seeds:
        try:
            twin = read(_damaged(raw, seed), FLOAT[name]())
        except qlr.errors.CheckpointError:
            continue
        assert torch.equal(run(twin)[0], expected), seed


@pytest.mark.parametrize("form", FORMATS)
def test_damage_of_all_kinds(form: str) -> None:
    _check_damaged(form, "gcn", range(200))


def _check_forged_bytes(form: str, name: str, convert: bool, seeds: range) -> None:
    """Damage inside of the data, under a checksum that is right: values may be others."""
    model = converted(make(name)) if convert else make(name)
    files = FORMATS[form]
    header, body = files.parts(files.written(model))
    for seed in seeds:
        text, more = files.text(header, body), body
        if seed % 2:
            text = _damaged(text, seed)
        else:
            more = _damaged(body, seed)
            text = files.text(header, more)
        try:
            twin = read(files.closed(text, more), FLOAT[name]())
            run(twin.eval())
        except qlr.errors.QLRError:
            continue


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
def test_damage_under_a_right_checksum(convert: bool, form: str) -> None:
    _check_forged_bytes(form, "gcn", convert, range(100))


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


def _check_edits(form: str, name: str, convert: bool, share: float) -> None:
    model = converted(make(name)) if convert else make(name)
    files, expected = FORMATS[form], run(model)[0]
    header, body = files.parts(files.written(model))
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
            twin = read(files.built(edited, body), FLOAT[name]())
        except qlr.errors.QLRError as error:
            assert len(str(error)) < 2000, path
            continue
        assert torch.equal(run(twin.eval())[0], expected), path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
@pytest.mark.parametrize("name", ["gcn", "gat", "appnp"])
def test_every_field_of_a_header_is_checked(name: str, convert: bool, form: str) -> None:
    _check_edits(form, name, convert, share=0.01)


@pytest.mark.heavy
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
@pytest.mark.parametrize("name", ["gcn", "gat", "appnp", "sage", "smp"])
def test_many_damaged_files(name: str, convert: bool, form: str) -> None:
    _check_edits(form, name, convert, share=1.0)
    _check_forged_bytes(form, name, convert, range(6000))
    if convert:
        _check_damaged(form, name, range(10_000))


@pytest.mark.parametrize(
    "name", ["header_bytes", "checksum", "data", "version", "release", "format"]
)
def test_every_field_of_an_archive_is_checked(name: str) -> None:
    model = converted(make("appnp"))
    content = content_of(old_written(model))
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
    raw = old_written(converted(make()))
    if kind == "container":
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
            for part in old.infolist():
                data = old.read(part) if "/data/" not in part.filename else bytes(1 << 28)
                new.writestr(part.filename, data, zipfile.ZIP_DEFLATED)
        return out.getvalue()
    _, body = old_parts(raw)
    squeeze = zlib.compressobj(9)
    blocks = {"spaces": b" " * (1 << 20), "lists": b"[]," * (1 << 18), "nested": b"[" * (1 << 20)}
    start = b"[" if kind == "lists" else b""
    text = [start, *[blocks[kind]] * (1024 if kind == "spaces" else 15)]
    described = b"".join(map(squeeze.compress, text)) + squeeze.flush()
    assert len(described) < 1.1 * (1 << 20)
    return old_closed(described, body)


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


@pytest.mark.parametrize("form", FORMATS)
def test_sizes_that_the_file_does_not_have(form: str) -> None:
    files = FORMATS[form]
    header, body = files.parts(files.written(converted(make())))
    fresh = FLOAT["gcn"]()

    def edited(edit: Callable[[Any], None]) -> bytes:
        out = copy.deepcopy(header)
        edit(out if "layers" in out else out["__metadata__"])
        return bytes(files.built(out, body))

    def quantizers(h: dict[str, Any]) -> Any:
        return h["layers"]["convs.0.lin"]["quantizers"]

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


def test_tensors_that_the_file_does_not_have() -> None:
    fresh, model = FLOAT["gcn"](), converted(make())
    old, body = old_parts(old_written(model))
    old["tensors"][0][2] = [10**12]
    large = r"damaged: its tensors are 8,000,000,\d+,?\d* bytes by the header"
    refused(old_built(old, body), fresh, large)
    refused(old_closed(b"abc", body), fresh, "damaged: its header cannot be inflated")
    header, body = parts(written(model))
    first, second = [name for name, t in header.items() if t.get("dtype") == "I64"][:2]
    for name, values, words in (
        (first, {"shape": [10**12]}, large),
        (first, {"data_offsets": [0, 16]}, "do not follow one another"),
        (first, {"data_offsets": header[second]["data_offsets"]}, "do not follow one another"),
        (first, {"dtype": "Q8"}, "no meaning .KeyError: 'Q8'"),
        ("other", {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "its tensors are"),
    ):
        edited = {**header, name: {**header.get(name, {}), **values}}
        refused(built(edited, body), fresh, words)
