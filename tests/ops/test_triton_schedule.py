"""How the Triton back end divides a graph, on any machine."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_geometric_qlr.ops.triton import tuning
from torch_geometric_qlr.ops.triton.configurations import tiles
from torch_geometric_qlr.ops.triton.forms import Sums, Tile
from torch_geometric_qlr.ops.triton.launch import rows_of
from torch_geometric_qlr.ops.triton.memo import Memo
from torch_geometric_qlr.ops.triton.schedule import PIECE, schedule_of
from torch_geometric_qlr.ops.triton.tuning import Choices


@settings(max_examples=60)
@given(st.lists(st.integers(0, 40) | st.integers(0, 9000), max_size=20), st.booleans())
def test_every_edge_is_in_one_place(degrees: list[int], narrow: bool) -> None:
    rowptr = torch.tensor([0, *torch.tensor(degrees, dtype=torch.long).cumsum(0).tolist()])
    schedule = schedule_of(rowptr.int() if narrow else rowptr)
    rows, edges = [], torch.zeros(int(rowptr[-1]), dtype=torch.long)
    for part in schedule.bins:
        rows += part.row.tolist()
        assert bool((part.stop - part.start <= part.most).all())
        for start, stop in zip(part.start, part.stop, strict=True):
            edges[start:stop] += 1
    if schedule.long is not None:
        long = schedule.long
        rows += long.row.tolist()
        bounds = long.first_piece.tolist()
        for i, (start, stop) in enumerate(zip(long.start, long.stop, strict=True)):
            own = slice(bounds[i], bounds[i + 1])
            begins, ends = long.pieces.start[own], long.pieces.stop[own]
            assert begins[0] == start and ends[-1] == stop
            assert torch.equal(begins[1:], ends[:-1]) and int((ends - begins).max()) <= PIECE
            edges[start:stop] += 1
    assert sorted(rows) == list(range(len(degrees)))
    assert bool((edges == 1).all())


def test_a_schedule_is_made_once_and_again_after_a_change() -> None:
    rowptr = torch.tensor([0, 2, 3])
    first = schedule_of(rowptr)
    assert schedule_of(rowptr) is first
    rowptr[1] = 1
    assert schedule_of(rowptr) is not first
    assert schedule_of(rowptr).bins[0].stop.tolist() == [1, 3]


def test_a_memo_is_bounded_and_forgets() -> None:
    memo: Memo[int] = Memo(most=3)
    kept = [torch.ones(1) for _ in range(5)]
    for i, tensor in enumerate(kept):
        assert memo.get(tensor, "", lambda i=i: i) == i
    assert len(memo) == 3
    assert memo.get(kept[4], "", lambda: -1) == 4 and memo.get(kept[0], "", lambda: -1) == -1
    del kept, tensor
    gc.collect()
    assert len(memo) == 0


def test_nothing_is_remembered_of_inference_tensors() -> None:
    memo: Memo[int] = Memo(most=3)
    with torch.inference_mode():
        x = torch.ones(1)
    assert memo.get(x, "", lambda: 1) == 1 and memo.get(x, "", lambda: 2) == 2


@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_counters_hold_the_longest_row(bits: int) -> None:
    modes = ("count", "whole", "real", "heads", "max")
    for mode in modes:
        for cols in (1, 7, 40, 128, 602):
            for most in (32, 128, 512, 2048):
                for items in (1, 300_000):
                    for tile in tiles(Sums(mode), rows_of(9, cols, bits), most, items):
                        edges = -(-most // tile.groups)
                        assert edges < 2**tile.planes and tile.unroll % 4 == 0
                        if mode == "count":  # and what they are added up in, 16 bits
                            whole = edges if bits == 8 else most
                            assert whole * (2**bits - 1) < 2**16
                            assert tile.planes <= (10 if bits <= 2 else 8)


def test_tiles_of_float_sums_add_up_in_one_order() -> None:
    for mode in ("real", "heads"):
        for most in (32, 2048):
            choice = tiles(Sums(mode), rows_of(9, 40, 2), most, 1000)
            assert len({(tile.groups, tile.warps, tile.words, tile.rows) for tile in choice}) == 1


def test_choices_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "choices.json"
    first, second = Choices(path), Choices(path)
    assert first.of("a") is None
    first.keep("a", 2)
    second.keep("b", 1)
    assert [Choices(path).of(what) for what in "ab"] == [2, 1]
    assert [p.name for p in path.parent.iterdir()] == ["choices.json"]
    for damaged in ("{", "[1]", '{"a": "x"}'):
        path.write_text(damaged)
        assert Choices(path).of("a") is None
    nowhere = Choices(path / "below")
    nowhere.keep("a", 1)
    assert nowhere.of("a") == 1


def test_the_fastest_is_chosen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    choice = tiles(Sums("count"), rows_of(9, 128, 2), 128, 100_000)
    device, timed = torch.device("cuda"), []

    def seconds(_run: Any, tile: Tile) -> float:
        timed.append(tile)
        return 1.0 if tile == choice[1] else 2.0

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU / 80 GB")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "_timed", seconds)
    tuning._choices_for.cache_clear()
    call = (("sums",), choice, lambda tile: None)
    assert tuning.chosen(*call, device) == choice[0] and not timed
    monkeypatch.setenv("QLR_TRITON_TUNE", "1")
    assert tuning.chosen(*call, torch.device("cpu")) == choice[0] and not timed
    assert tuning.chosen(*call, device) == choice[1] and timed == list(choice)
    monkeypatch.delenv("QLR_TRITON_TUNE")
    tuning._choices_for.cache_clear()
    assert tuning.chosen(*call, device) == choice[1] and len(timed) == len(choice)
    tuning._choices_for.cache_clear()


def test_nothing_is_timed_while_a_cuda_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    choice = tiles(Sums("count"), rows_of(9, 128, 2), 128, 100_000)
    monkeypatch.setenv("QLR_TRITON_TUNE", "1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "another")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    found = tuning.chosen(("sums",), choice, lambda tile: None, torch.device("cuda"))
    assert found == choice[0]
    tuning._choices_for.cache_clear()
