"""Files: where they go, how large they are, and that nobody ever sees half of one."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Literal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file
from torch import nn
from torch_geometric.nn import GCN

import torch_geometric_qlr as qlr
from tests.helpers.io_cases import (
    EDGES,
    FEATURES,
    FLOAT,
    X,
    assert_same,
    converted,
    make,
    read,
    run,
    written,
)
from tests.helpers.killed import run_alone
from torch_geometric_qlr.io.format import DTYPES as DTYPE_NAMES
from torch_geometric_qlr.io.model_file import ModelFile


def test_paths_and_files(tmp_path: Path) -> None:
    model = converted(make())
    qlr.save(model, tmp_path / "model.pt")
    qlr.save(model, str(tmp_path / "again.pt"))
    for path in (tmp_path / "model.pt", str(tmp_path / "again.pt")):
        assert_same(model, qlr.load(path, FLOAT["gcn"]()))
    with open(tmp_path / "raw", "wb", buffering=0) as file:
        file.write(b"before")
        qlr.save(model, file)
        assert not file.closed
    with open(tmp_path / "raw", "rb", buffering=0) as file:
        file.seek(6)
        assert_same(model, qlr.load(file, FLOAT["gcn"]()))
        assert not file.closed
    with pytest.raises(FileNotFoundError):
        qlr.load(tmp_path / "missing.pt", FLOAT["gcn"]())


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
@pytest.mark.parametrize("name", [*FLOAT])
def test_safetensors_reads_them(name: str, convert: bool, tmp_path: Path) -> None:
    """All numbers are there under the names of the state_dict; what was done to it is text."""
    path = tmp_path / "model.safetensors"
    model = converted(make(name)) if convert else make(name)
    qlr.save(model, path)
    found, state = load_file(path), model.state_dict()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    aliases = json.loads(metadata["aliases"])
    assert {*found, *aliases} == {*state} and not {*found} & {*aliases}
    for key, t in state.items():
        one = found[aliases.get(key, key)]
        assert one.dtype == t.dtype and torch.equal(one, t), key
    assert metadata["format"] == "torch_geometric_qlr.model" and metadata["version"] == "3"
    assert metadata["release"] == qlr.__version__
    layers = json.loads(metadata["layers"])
    assert layers and all({"class", "quantizers"} <= {*layer} for layer in layers.values())
    if name == "gcn" and convert:
        weight = layers["convs.0.lin"]["quantizers"]["weight"]
        assert weight == {"bits": 4, "shape": [6, 8], "matrix": [6, 8]}


DTYPES = [getattr(torch, name) for name in DTYPE_NAMES]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ["little", "big"])
def test_all_types_of_numbers(
    dtype: torch.dtype, order: Literal["little", "big"], monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_buffer(t: torch.Tensor) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4))
        model.register_buffer("table", t)
        return model

    values = torch.tensor([[0, 1, 1], [1, 0, 7]])
    table = (values * (1 - 2j) if dtype.is_complex else values).to(dtype)
    for t in (
        table,
        table.t(),
        table[:0],
        table[0, 0],
        table.conj() if dtype.is_complex else table,
    ):
        model = qlr.quantize(with_buffer(t), bits=4)
        with monkeypatch.context() as patch:  # as on a machine of the other kind, read there
            patch.setattr(sys, "byteorder", order)
            raw = written(model)
            twin = read(raw, with_buffer(torch.zeros_like(t).clone()))
        found = twin.table
        assert isinstance(found, torch.Tensor) and found.dtype == dtype and found.shape == t.shape
        assert torch.equal(found.to(torch.complex128), t.to(torch.complex128))
        one = load(raw)["table"]
        if order == "little" or t.element_size() == 1:
            real = torch.view_as_complex(one) if dtype.is_complex else one
            assert torch.equal(real.to(torch.complex128), t.to(torch.complex128))


def test_it_loads_in_another_process(tmp_path: Path) -> None:
    model = converted(make())
    qlr.save(model, tmp_path / "model.pt")
    torch.save((X, EDGES, run(model)[0]), tmp_path / "data.pt")
    code = f"""
import torch, torch_geometric_qlr as qlr
from torch_geometric.nn import GCN
x, edges, expected = torch.load({str(tmp_path / "data.pt")!r})
model = GCN({FEATURES}, 6, num_layers=2, out_channels=3, norm="batch_norm")
packed = qlr.load({str(tmp_path / "model.pt")!r}, model)
assert torch.equal(packed(x, edges), expected)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("sizes", [(602, 256, 256, 41), (1433, 64, 7)], ids=str)
def test_files_are_small(sizes: tuple[int, ...], bits: int, tmp_path: Path) -> None:
    model = GCN(sizes[0], sizes[1], num_layers=len(sizes) - 1, out_channels=sizes[-1])
    torch.save(model.state_dict(), tmp_path / "float.pt")
    quantized = qlr.quantize(model, bits=bits).eval()
    quantized(torch.rand(3, sizes[0]), EDGES[:, :4] % 3)
    qlr.save(quantized, tmp_path / "quantized.pt")
    qlr.save(qlr.convert(quantized), tmp_path / "packed.pt")
    whole, ranges, packed = (
        (tmp_path / f"{name}.pt").stat().st_size for name in ("float", "quantized", "packed")
    )
    assert bits / 32 < packed / whole < bits / 32 + 0.02
    assert ranges < 1.015 * whole


def test_equal_tensors_are_written_once() -> None:
    class Tied(nn.Module):
        def __init__(self, is_tied: bool) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)
            self.table = nn.Parameter(torch.zeros(500, 50))
            self.same = self.table if is_tied else nn.Parameter(torch.zeros(500, 50))

    tied = qlr.quantize(Tied(True), overrides={"lin": {"bits": 4}})
    raw = written(tied)
    assert len(raw) < 1.2 * tied.table.nbytes
    twin = read(raw, Tied(False))  # an architecture that does not tie them may hold equal values
    assert torch.equal(twin.same, tied.table)


# In one step ######################################################################################

_KILLED = """
import sys, torch, torch_geometric_qlr as qlr
from tests.helpers.killed import kill_writers
from torch_geometric.nn import GCN

torch.set_num_threads(1)
x, edges = torch.rand(20, 300), torch.randint(0, 20, (2, 60))
float_model = GCN(300, 512, num_layers=3, out_channels=512)
model = qlr.quantize(float_model, bits=8).eval()
model(x, edges)
write = lambda path: qlr.save(model, path)
read = lambda path: qlr.load(path, float_model)
kill_writers(sys.argv[1], "model.pt", int(sys.argv[2]), write, read)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork")
@pytest.mark.parametrize("times", [4, pytest.param(100, marks=pytest.mark.heavy)])
def test_killed_at_any_moment(times: int, tmp_path: Path) -> None:
    run_alone(_KILLED, str(tmp_path), str(times))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError, MemoryError])
@pytest.mark.parametrize("exists", [False, True])
def test_a_save_that_fails_changes_nothing(
    error: type[BaseException], exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = make(), tmp_path / "model.pt"
    if exists:
        path.write_bytes(b"old")

    def fails(content: object, file: IO[bytes]) -> None:
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(ModelFile, "write", fails)
    with pytest.raises(error):
        qlr.save(model, path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"] * exists


def test_permissions_links_and_folders(tmp_path: Path) -> None:
    model, path = make(), tmp_path / "model.pt"
    mask = os.umask(0o027)
    try:
        qlr.save(model, path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    qlr.save(model, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604

    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "link.pt").symlink_to(Path("..") / "model.pt")
    path.write_bytes(b"")
    qlr.save(model, tmp_path / "deep" / "link.pt")
    assert (tmp_path / "deep" / "link.pt").is_symlink() and not path.is_symlink()
    assert_same(model, qlr.load(path, FLOAT["gcn"]()))
    (tmp_path / "dangling.pt").symlink_to(tmp_path / "deep" / "new.pt")
    qlr.save(model, tmp_path / "dangling.pt")
    assert_same(model, qlr.load(tmp_path / "deep" / "new.pt", FLOAT["gcn"]()))
    assert sorted(p.name for p in tmp_path.rglob("*.pt")) == [
        *("dangling.pt", "link.pt", "model.pt", "new.pt")
    ]
    long = tmp_path / ("x" * 250)
    qlr.save(model, long)
    assert_same(model, qlr.load(long, FLOAT["gcn"]()))


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    qlr.save(make(), path)
    with pytest.raises(qlr.errors.CheckpointError, match=r"model\.pt: .*norms\.0"):
        qlr.load(path, GCN(FEATURES, 6, num_layers=2, out_channels=3))
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(qlr.errors.CheckpointError, match=r"model\.pt is damaged: its tensors are"):
        qlr.load(path, FLOAT["gcn"]())


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    qlr.save(make(), "model.pt")
    assert os.listdir(tmp_path) == ["model.pt"]


def test_leftovers_go_and_those_in_use_stay(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    prefix = f".qlr-save-{zlib.crc32(b'model.pt'):08x}-"
    dead, alive, other = (tmp_path / n for n in (f"{prefix}1", f"{prefix}2", ".qlr-save-0-1"))
    for path in (dead, alive, other):
        path.write_bytes(b"half")
    with alive.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        qlr.save(make(), tmp_path / "model.pt")
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt", alive.name, other.name}


def test_threads_that_save_to_one_path(tmp_path: Path) -> None:
    model, path = converted(make()), tmp_path / "model.pt"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: qlr.save(model, path), range(40)))
    assert_same(model, qlr.load(path, FLOAT["gcn"]()))
    assert os.listdir(tmp_path) == ["model.pt"]


def test_what_is_no_ordinary_file_is_written_to(tmp_path: Path) -> None:
    model, fifo = make(), tmp_path / "pipe"
    qlr.save(model, os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    os.mkfifo(fifo)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(fifo.read_bytes)
        qlr.save(model, fifo)
        assert_same(model, read(found.result(), FLOAT["gcn"]()))


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    model, fresh = make(), FLOAT["gcn"]()
    (tmp_path / "file").write_bytes(b"")
    for path, kind in (
        (tmp_path, IsADirectoryError),
        (f"{tmp_path}/new/", IsADirectoryError),
        (tmp_path / "missing" / "model.pt", FileNotFoundError),
        (tmp_path / "file" / "model.pt", NotADirectoryError),
        (tmp_path / ("x" * 300), OSError),
        ("", FileNotFoundError),
    ):
        with pytest.raises(kind) as caught:
            qlr.save(model, path)
        assert ".qlr-save" not in str(caught.value)
        if path != f"{tmp_path}/new/":
            with pytest.raises(kind):
                qlr.load(path, fresh)
    order = r"The order is qlr\.save\(model, path\)"
    for wrong in (None, 3, b"model.pt", ["model.pt"], model, {}):
        with pytest.raises(qlr.errors.InputError, match=f"a path or a binary file.*{order}"):
            qlr.save(model, wrong)  # type: ignore[arg-type]
        with pytest.raises(qlr.errors.InputError, match=f"a path or a binary file.*{order}"):
            qlr.load(wrong, fresh)  # type: ignore[arg-type]
    for call in (lambda p: qlr.save(model, p), lambda p: qlr.load(p, fresh)):
        with pytest.raises(qlr.errors.InputError, match="null characters"):
            call("model\0.pt")
        with pytest.raises(qlr.errors.InputError, match="a text file: open it with open.path"):
            call(io.StringIO())
        closed = io.BytesIO()
        closed.close()
        with pytest.raises(qlr.errors.InputError, match="is closed: open it"):
            call(closed)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_file_that_may_not_be_written_stays(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"old")
    (tmp_path / "model.pt").chmod(0o400)
    with pytest.raises(PermissionError):
        qlr.save(make(), tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == b"old"


def test_a_full_disk_is_the_systems_error(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError):
            qlr.save(make(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
