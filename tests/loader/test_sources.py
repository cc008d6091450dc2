"""Where features may come from, and what is said of what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.loader import PackedFeatureStore
from torch_geometric_qlr.loader.sources import source_of
from torch_geometric_qlr.quantizers import MinMax

pytestmark = pytest.mark.cpu
X = torch.randn(31, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ARRAY = X.numpy()


def rows_of(x: Any) -> torch.Tensor:
    source = source_of(x)
    batches = list(source.batches())
    assert all(b.dtype == torch.float32 and b.shape[1] == source.num_cols for b in batches)
    rows = torch.cat([torch.empty(0, source.num_cols), *batches])
    assert source.num_rows in (None, len(rows))
    if source.repeats:
        assert torch.equal(torch.cat([rows[:0], *source.batches()]), rows)
    return rows


@pytest.mark.parametrize(
    "x",
    [
        X,
        X.float(),
        X.requires_grad_(False).t().contiguous().t(),
        ARRAY,
        np.asfortranarray(ARRAY),
        ARRAY.astype(">f8"),
        ARRAY[::-1][::-1],
        list(X.split(7)),
        [ARRAY[:5], X[5:]],
        DataLoader(X, batch_size=4),
        iter(X.split(30)),
        (part for part in (X[:0], X)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_rows(x: Any) -> None:
    assert torch.equal(rows_of(x), X.float())


def test_half_precision() -> None:
    for half in (X.half(), X.bfloat16(), ARRAY.astype(np.float16)):
        assert torch.equal(rows_of(half), torch.as_tensor(half).float())


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rows", [0, 31])
def test_npy(order: Any, rows: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array(ARRAY[:rows], order=order))
    for path in (tmp_path / "x.npy", str(tmp_path / "x.npy")):
        assert torch.equal(rows_of(path), X[:rows].float())


def test_memmap_is_read_only(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ARRAY)
    assert torch.equal(rows_of(np.load(tmp_path / "x.npy", mmap_mode="r")), X.float())


def test_arrow() -> None:
    pa = pytest.importorskip("pyarrow")
    columns = {name: ARRAY[:, i] for i, name in enumerate("abcdef")}
    table = pa.table(columns)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(ARRAY.ravel()), 6)
    for x in (
        table,
        pa.RecordBatch.from_pydict(columns),
        pa.concat_tables([table.slice(0, 9), table.slice(9)]),
        pa.chunked_array([lists.slice(0, 3), lists.slice(3)]),
        pa.table({"x": lists}),
        pa.table(
            {"x": pa.FixedSizeListArray.from_arrays(ARRAY[:, :5].ravel(), 5), "y": table["f"]}
        ),
    ):
        assert torch.equal(rows_of(x), X.float())
    assert rows_of(table.slice(0, 0)).shape == (0, 6)
    assert torch.equal(rows_of(lists.slice(4)), X[4:].float())
    with pytest.raises(InputError, match="null"):
        rows_of(pa.array([1.0, None]))
    for wrong in (pa.array([1, 2]), pa.array(["a"]), pa.array([[1.0], [1.0, 2.0]])):
        with pytest.raises(InputError, match="not of floating point numbers"):
            rows_of(wrong)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (X[0], r"matrix \[N, F\], got shape \[6\]"),
        (X.long(), "torch.int64, not floating point"),
        (ARRAY.astype(int), "int64, not floating point"),
        (X.to_sparse(), "to_dense"),
        (3, "int holds no rows"),
        ([], "there is no batch"),
        ([X, X[:, :3]], r"from 31 on have shape \[5, 3\], the ones before 6"),
        ([X, None], "a batch is NoneType"),
        ("x.txt", "no .npy file"),
    ],
    ids=str,
)
def test_what_is_refused(x: Any, words: str) -> None:
    if isinstance(x, list) and len(x) == 2 and x[1] is not None:
        x = [X, X[:5, :3]]
    with pytest.raises(InputError, match=words):
        rows_of(x)


def test_files_that_are_no_npy(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"something else")
    with pytest.raises(InputError, match="cannot be read as .npy"):
        rows_of(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object))
    with pytest.raises(InputError, match="cannot be read as .npy"):
        rows_of(tmp_path / "x.npy")
    with pytest.raises(FileNotFoundError):
        rows_of(tmp_path / "missing.npy")


@pytest.mark.parametrize("granularity", ["node", "feature"])
def test_a_progress_bar(granularity: str, tmp_path: Path, capsys: Any) -> None:
    PackedFeatureStore.write(tmp_path / "x", X, granularity=granularity)
    assert capsys.readouterr().err == ""
    PackedFeatureStore.write(tmp_path / "x", X, granularity=granularity, progress=True)
    shown = capsys.readouterr().err
    assert "packed: 100%" in shown and "31/31" in shown
    assert ("ranges: 100%" in shown) == (granularity == "feature")
    store = PackedFeatureStore(tmp_path / "x")
    store.verify(progress=True)
    assert "verify: 100%" in capsys.readouterr().err
    assert store[None, "x", None].equal(MinMax(8, granularity).pack(X))
