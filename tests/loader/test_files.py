"""Files of packed features: what is in them, how large they are, and what is refused."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch_geometric.nn import GCN, GraphSAGE

import torch_geometric_qlr as qlr
from tests.helpers.files import closed
from tests.helpers.killed import run_alone
from torch_geometric_qlr.errors import CheckpointError, ConfigError, InputError
from torch_geometric_qlr.loader import PackedFeatureStore, file_format, sources
from torch_geometric_qlr.quantizers.statistics import value_range
from torch_geometric_qlr.tensor import PackedTensor

pytestmark = pytest.mark.cpu
AXES = {"node": 0, "feature": 1, "tensor": -1}


def expected(x: torch.Tensor, bits: int, granularity: str) -> PackedTensor:
    """Said once more, in other words than the package's."""
    lo, hi = value_range(x, AXES[granularity])
    scale = ((hi - lo) / (2**bits - 1)).clamp_min(1e-20)
    zero_point = -lo / scale
    zero_point = zero_point.round() if bits > 1 else zero_point
    return PackedTensor.from_float(x, scale, zero_point, bits)


def stored(path: Path, x: Any, **options: Any) -> PackedTensor:
    PackedFeatureStore.write(path, x, **options)
    found: PackedTensor = PackedFeatureStore(path)[None, "x", None]
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features") / "x.safetensors"


# What is in them ##################################################################################


@given(
    rows=st.integers(0, 40),
    cols=st.sampled_from((0, 1, 2, 7, 16, 33, 64, 129, 257)),
    bits=st.integers(1, 8),
    granularity=st.sampled_from(tuple(AXES)),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_it_is_a_packed_tensor(path, rows, cols, bits, granularity, batch, seed):
    x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    truth = expected(x, bits, granularity)
    whole = stored(path, x, bits=bits, granularity=granularity)
    assert whole.equal(truth)
    raw = path.read_bytes()
    parts = list(x.split(batch)) or [x]
    assert stored(path, parts, bits=bits, granularity=granularity).equal(truth)
    assert path.read_bytes() == raw
    PackedFeatureStore(path).verify()


def test_it_is_written_in_batches(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Batches, and the blocks that share a checksum, end where they end."""
    x = torch.randn(1000, 70)
    whole = stored(path, x, bits=4)
    raw = path.read_bytes()
    monkeypatch.setattr(sources, "_BATCH_BYTES", 4 * 70 * 37)
    assert len(list(sources.source_of(x).batches())) == 28
    assert stored(path, x, bits=4).equal(whole)
    assert path.read_bytes() == raw
    np.save(tmp_path / "x.npy", x.numpy())
    assert stored(path, tmp_path / "x.npy", bits=4).equal(whole)
    assert path.read_bytes() == raw


@pytest.mark.parametrize("granularity", AXES)
def test_safetensors_reads_it(path: Path, granularity: str) -> None:
    x = {"paper": torch.randn(50, 300), "author": torch.randn(3, 10), "term": torch.randn(9, 64)}
    PackedFeatureStore.write(path, x, bits=2, granularity=granularity)
    store, tensors = PackedFeatureStore(path), load_file(path)
    for name, values in x.items():
        packed = store[name, "x", None]
        assert packed.equal(expected(values, 2, granularity))
        for part in ("data", "scale", "zero_point"):
            key = f"{name}/x.{'codes' if part == 'data' else part}"
            assert torch.equal(tensors.pop(key), getattr(packed, part))
        # Rows begin where the kernels want them.
        assert packed.data.data_ptr() % (32 if packed.stride >= 32 else 16) == 0
    assert list(tensors) == ["checksums"]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "torch_geometric_qlr.features"
    entries = json.loads(metadata["entries"])
    assert entries[0] == {
        "group": "paper",
        "attr": "x",
        "bits": 2,
        "granularity": granularity,
        "num_rows": 50,
        "num_cols": 300,
    }


@pytest.mark.parametrize("bits", (8, 4, 2, 1))
@pytest.mark.parametrize("granularity", AXES)
def test_files_are_small(path: Path, bits: int, granularity: str) -> None:
    x = torch.randn(4000, 256)
    stored(path, x, bits=bits, granularity=granularity)
    # A row has its own scale and zero point, of 4 bytes each; all else is at most 3 percent.
    own = 8 * len(x) if granularity == "node" else 0
    assert 1.0 <= path.stat().st_size / (x.nbytes * bits / 32 + own) < 1.03


def test_rows_are_not_copied(path: Path) -> None:
    PackedFeatureStore.write(path, torch.randn(50, 300), bits=4)
    packed = PackedFeatureStore(path)[None, "x", None]
    part = PackedFeatureStore(path)[None, "x", slice(10, 20)]
    assert part.equal(packed[10:20])
    store = PackedFeatureStore(path)
    first, again = store[None, "x", slice(10, 20)], store[None, "x", None]
    assert first.data.data_ptr() == again.data.data_ptr() + 10 * packed.stride
    assert first.scale.data_ptr() == again.scale.data_ptr() + 10 * 4


def test_writing_to_what_is_mapped_does_not_change_the_file(path: Path) -> None:
    packed = stored(path, torch.randn(50, 300), bits=4)
    raw = path.read_bytes()
    packed.data.zero_()
    assert path.read_bytes() == raw
    assert PackedFeatureStore(path)[None, "x", None].data.any()


def test_a_file_that_is_replaced_stays_as_it_was_opened(path: Path) -> None:
    x, other = torch.randn(2, 50, 300)
    packed = stored(path, x, bits=4)
    PackedFeatureStore.write(path, other, bits=4)
    assert packed.equal(expected(x, 4, "node"))
    assert PackedFeatureStore(path)[None, "x", None].equal(expected(other, 4, "node"))


def test_a_file_may_be_larger_than_the_memory(tmp_path: Path) -> None:
    """Of half a terabyte, all of it zeros that take no room on disk."""
    path = tmp_path / "x.safetensors"
    entry = file_format.Entry(None, "x", 8, "tensor", 2_000_000_000, 256)
    checksums = file_format.pieces_of([entry])[-1]
    header = file_format.header_of([entry], zlib.crc32(bytes(checksums.end - checksums.start)))
    try:
        with open(path, "wb") as file:
            file.write(header)
            file.truncate(len(header) + checksums.end)
    except OSError as error:
        pytest.skip(f"the file system does not hold it: {error}")
    store = PackedFeatureStore(path)
    rows = store[None, "x", torch.tensor([0, 1_999_999_999])]
    assert rows.shape == (2, 256) and not rows.data.any()


def test_it_has_the_codes_of_a_model(path: Path) -> None:
    x, edges = torch.rand(30, 20), torch.randint(30, (2, 90))
    for options in ({}, {"truncation": "bt"}, {"granularity": "tensor"}, {"preset": "lsq"}):
        model = qlr.quantize(GCN(20, 8, 2, 3), **{"bits": 4, **options})
        for _ in range(3):  # its ranges move
            model(x, edges).sum().backward()
            with torch.no_grad():
                for p in qlr.quant_parameters(model):
                    p.mul_(0.9)
        model.eval()(x, edges)
        packed = qlr.convert(model)
        PackedFeatureStore.write(path, x.split(7), model=packed)
        features = PackedFeatureStore(path)[None, "x", None]
        assert torch.equal(packed(features, edges), packed(x, edges))
        assert features.equal(qlr.pack_features(packed, x))
    skewed = qlr.quantize(GCN(20, 8, 2, 3), bits=4, truncation="bt*").eval()
    skewed(x, edges)
    with pytest.raises(ConfigError, match=r"convs.0.*bt\*.*depend on all others"):
        PackedFeatureStore.write(path, x, model=qlr.convert(skewed))
    for own in ({"bits": 4}, {"granularity": "tensor"}, {"ranges": (0, 1)}):
        with pytest.raises(ConfigError, match="those of the model; leave them out"):
            PackedFeatureStore.write(path, x, model=packed, **own)
    with pytest.raises(qlr.errors.NothingToQuantizeError):
        PackedFeatureStore.write(path, x, model=GCN(20, 8, 2, 3))
    two = qlr.quantize(GraphSAGE(20, 8, 2, 3), bits=4).eval()
    two(x, edges)
    with torch.no_grad():
        two.convs[0].lin_l._qlr["input"].gamma.mul_(0.5)
    with pytest.warns(qlr.errors.QLRWarning, match=r"convs.0.source_x does; convs.0.lin_l.input"):
        PackedFeatureStore.write(path, x, model=qlr.convert(two))


def test_given_ranges(path: Path) -> None:
    x = torch.randn(30, 5)
    ends = torch.full((5,), -1.0), torch.arange(1.0, 6.0)
    scale = ((ends[1] + 1) / 15).view(1, 5)
    truth = PackedTensor.from_float(x, scale, (1 / scale).round(), 4)
    found = stored(path, iter(x.split(8)), bits=4, granularity="feature", ranges=ends)
    assert found.equal(truth)
    found = stored(path, iter([x]), bits=4, granularity="tensor", ranges=(-1, 2.0))
    assert found.equal(PackedTensor.from_float(x, torch.tensor(0.2), torch.tensor(5.0), 4))


# One step #########################################################################################

_KILLED = """
import sys, torch
from tests.helpers.files import closed
from tests.helpers.killed import kill_writers
from torch_geometric_qlr.loader import PackedFeatureStore, sources

torch.set_num_threads(1)
sources._BATCH_BYTES = 1 << 16
x = torch.rand(20000, 64)
write = lambda path: PackedFeatureStore.write(path, x, bits=8)
read = lambda path: PackedFeatureStore(path).verify()
kill_writers(sys.argv[1], "x.safetensors", int(sys.argv[2]), write, read)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork")
@pytest.mark.parametrize("times", [4, pytest.param(100, marks=pytest.mark.heavy)])
def test_killed_at_any_moment(times: int, tmp_path: Path) -> None:
    run_alone(_KILLED, str(tmp_path), str(times))


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
def test_a_source_that_fails_changes_nothing(
    error: type[BaseException], exists: bool, tmp_path: Path
) -> None:
    def batches() -> Any:
        yield torch.rand(5, 3)
        raise error

    path = tmp_path / "x.safetensors"
    if exists:
        PackedFeatureStore.write(path, torch.rand(5, 3))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(error):
        PackedFeatureStore.write(path, batches())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_scales_that_do_not_fit_into_memory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_geometric_qlr.loader.writing._SPOOLED_BYTES", 16)
    x = torch.randn(100, 5)
    assert stored(tmp_path / "x", x.split(3), bits=4).equal(expected(x, 4, "node"))
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.heavy
@pytest.mark.cpu
@pytest.mark.parametrize("granularity", ["node", "feature"])
def test_memory_does_not_grow_with_the_file(granularity: str, tmp_path: Path) -> None:
    """Of a file of 200 MB that takes no room on disk; memory that only maps it is not counted."""
    script = """
import sys, numpy as np, torch
from torch_geometric_qlr.loader import PackedFeatureStore

torch.set_num_threads(1)
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith("RssAnon"))

small = np.zeros((10, 128), np.float32)
path, granularity = sys.argv[1], sys.argv[2]
PackedFeatureStore.write(path, small, granularity=granularity)
before, most = anonymous(), 0
mapped = np.memmap(path + ".raw", np.float32, "w+", shape=(400_000, 128))
class Watched(torch.utils.data.IterableDataset):
    def __iter__(self):
        global most
        for start in range(0, len(mapped), 5000):
            most = max(most, anonymous())
            yield mapped[start : start + 5000]
PackedFeatureStore.write(path, Watched(), granularity=granularity)
assert mapped.nbytes > 200e6
assert most - before < 40_000, (most, before)  # kB
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads /proc")
    run_alone(script, str(tmp_path / "x"), granularity)


# What is refused ##################################################################################


@pytest.mark.parametrize("granularity", ["node", "feature"])
def test_every_damaged_byte_is_found(path: Path, granularity: str) -> None:
    PackedFeatureStore.write(path, torch.rand(11, 20), bits=4, granularity=granularity)
    raw = path.read_bytes()
    for at in range(len(raw)):
        broken = bytearray(raw)
        broken[at] ^= 1 + at * 37 % 255
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=str(path)):
            PackedFeatureStore(path).verify()


def test_every_length_but_the_right_one_is_refused(path: Path) -> None:
    PackedFeatureStore.write(path, torch.rand(3, 20), bits=4)
    raw = path.read_bytes()
    for end in range(len(raw)):
        path.write_bytes(raw[:end])
        with pytest.raises(CheckpointError):
            PackedFeatureStore(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(CheckpointError, match=f"{len(raw) + 1:,} bytes.*{len(raw):,}"):
        PackedFeatureStore(path)


def test_damaged_blocks_are_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("files.tensor_file", "loader.file_format", "loader.writing"):
        monkeypatch.setattr(f"torch_geometric_qlr.{module}.BLOCK", 256)
    monkeypatch.setattr("torch_geometric_qlr.loader.mapped.BLOCK", 256)
    PackedFeatureStore.write(path, {"paper": torch.rand(30, 64), "tag": torch.rand(2, 1)}, bits=8)
    store = PackedFeatureStore(path)
    start = len(path.read_bytes()) - file_format.pieces_of(store._file.entries)[-1].end
    broken = bytearray(path.read_bytes())
    for at in (300, 1919, 2000):  # rows of 64 bytes
        broken[start + at] ^= 1
    path.write_bytes(broken)
    words = r"2 of 9 blocks.*block 1 \(rows 4 to 7 of paper/x.codes\).*block 7 \(rows 28 to 29 of "
    with pytest.raises(CheckpointError, match=words + "paper/x.codes, rows 0 to 1 of tag/x.codes"):
        PackedFeatureStore(path).verify()


def rewritten(raw: bytes, old: str, new: str) -> bytes:
    """With another word in its header, whose length and checksum are right again."""
    size = 8 + int.from_bytes(raw[:8], "little")
    assert raw.count(old.encode(), 8, size) >= 1
    return closed(raw[8:size].replace(old.encode(), new.encode()), raw[size:])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"version":"1"', '"version":"7"', "version 7, written by release '0.*reads version 1"),
        ('"format":"torch', '"format":"ordinary', "its format is 'ordinary_geo"),
        ('\\"num_rows\\":3', '\\"num_rows\\":4', "other tensors"),
        ('\\"num_rows\\":3', '\\"num_rows\\":-3', "no matrix"),
        ('\\"num_rows\\":3', '\\"num_rows\\":3e9', "no matrix"),
        ('\\"num_cols\\":20', '\\"num_cols\\":99999999999', "no matrix"),
        ('\\"num_cols\\":20', '\\"num_cols\\":[20]', "no matrix"),
        ('\\"bits\\":4', '\\"bits\\":3', "no matrix"),
        ('\\"bits\\":4', '\\"bits\\":true', "no matrix"),
        ('\\"attr\\":\\"x\\"', '\\"attr\\":null', "no matrix"),
        ('\\"granularity\\":\\"node', '\\"granularity\\":\\"edge', "no matrix"),
        ('\\"group\\":null', '\\"group\\":[]', "no matrix"),
        ('\\"group\\":null,', "", "an entry has group"),
        ('"layout":"planar"', '"layout":"linear"', "other tensors"),
        ('"block_bytes":"1048576"', '"block_bytes":"1"', "other tensors"),
        ('"dtype":"F32"', '"dtype":"I32"', "other tensors"),
        ('"data_offsets":[0,48]', '"data_offsets":[0,47]', "other tensors"),
        ('"entries":', '"contents":', "no meaning: 'entries'"),
        ('"__metadata__"', '"metadata"', None),
    ],
)
def test_headers_that_say_something_else(path: Path, old: str, new: str, words: str | None) -> None:
    PackedFeatureStore.write(path, torch.rand(3, 20), bits=4)
    raw = path.read_bytes()
    path.write_bytes(rewritten(raw, old, old))
    PackedFeatureStore(path).verify()
    if words is None:
        path.write_bytes(raw.replace(old.encode(), new.encode().ljust(len(old))))
    else:
        path.write_bytes(rewritten(raw, old, new))
    with pytest.raises(CheckpointError, match=words or "not from PackedFeatureStore.write"):
        PackedFeatureStore(path)


@given(st.data())
def test_whatever_a_header_says_it_is_refused_or_fits(path: Path, data: st.DataObject) -> None:
    x = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    PackedFeatureStore.write(path, x, bits=4)
    truth, raw = expected(x, 4, "node"), path.read_bytes()
    size = 8 + int.from_bytes(raw[:8], "little")
    old = raw[8:size]
    start = data.draw(st.integers(0, len(old.rstrip())))
    gone, new = (
        data.draw(st.integers(0, 3)),
        data.draw(st.text("0123456789[]{}:,ntx-e. ", max_size=3)),
    )
    path.write_bytes(closed(old[:start] + new.encode() + old[start + gone :], raw[size:]))
    try:
        found = PackedFeatureStore(path)
    except CheckpointError:
        return
    # It may be called otherwise, and have another number of columns in as many bytes.
    (name,) = found.get_all_tensor_attrs()
    features = found[name.group_name, name.attr_name, None]
    assert torch.equal(features.data, truth.data) and torch.equal(features.scale, truth.scale)
    assert torch.isfinite(features.dequantize()).all()


def test_what_is_no_such_file(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.rand(3)}, path)
    with pytest.raises(CheckpointError, match="not from PackedFeatureStore.write"):
        PackedFeatureStore(path)
    save_file({"x": torch.rand(3)}, path, {"format": "pt", "version": "1"})
    with pytest.raises(CheckpointError, match="its format is 'pt'"):
        PackedFeatureStore(path)
    torch.save(torch.rand(3), path)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        PackedFeatureStore(path)
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        PackedFeatureStore(path)
    with pytest.raises(FileNotFoundError):
        PackedFeatureStore(path.with_name("missing"))
    with pytest.raises(IsADirectoryError):
        PackedFeatureStore(path.parent)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("granularity", AXES)
def test_what_is_not_finite_is_refused_with_its_place(
    path: Path, bad: float, granularity: str
) -> None:
    x = torch.rand(30, 5)
    x[17, 3] = bad
    path.unlink(missing_ok=True)
    with pytest.raises(InputError, match=rf"x\[17, 3\] is {bad}"):
        PackedFeatureStore.write(path, x.split(4), granularity=granularity)
    assert not path.exists()


def test_arguments_that_cannot_be(path: Path, tmp_path: Path) -> None:
    x = torch.rand(4, 3)
    write = PackedFeatureStore.write
    with pytest.raises(ConfigError, match="bits must be an integer from 1 to 8"):
        write(path, x, bits=16)
    with pytest.raises(ConfigError, match="granularity='row' is unknown"):
        write(path, x, granularity="row")
    with pytest.raises(InputError, match="can be read only once.*granularity='node'"):
        write(path, iter([x]), granularity="feature")
    with pytest.raises(ConfigError, match="each row has its own"):
        write(path, x, ranges=(0, 1))
    with pytest.raises(InputError, match="2 numbers; it takes 3"):
        write(path, x, granularity="feature", ranges=(torch.zeros(2), 1))
    with pytest.raises(InputError, match="lower ends above upper"):
        write(path, x, granularity="tensor", ranges=(1, 0))
    with pytest.raises(InputError, match="takes 1 finite"):
        write(path, x, granularity="tensor", ranges=(0, float("inf")))
    with pytest.raises(InputError, match="there are no features"):
        write(path, {})
    with pytest.raises(ConfigError, match="of 3 as 'x'"):
        write(path, {3: x})
    for name in ("", "a\0b"):
        with pytest.raises(InputError, match="no path"):
            write(name, x)
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "missing" / "x", x)
    np.save(tmp_path / "x.npy", x.numpy())
    with pytest.raises(InputError, match="take the place of its source"):
        write(tmp_path / "x.npy", tmp_path / "x.npy")
