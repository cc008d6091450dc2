"""The check that a fresh install runs: it passes here, and says what is wrong where it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from torch_geometric_qlr import __main__, self_check
from torch_geometric_qlr.ops import available_on, use_backend


def test_every_back_end_is_checked_and_passes() -> None:
    found = self_check.self_check()
    assert [one.backend for one in found if one.device == "cpu"] == available_on("cpu")
    assert all(one.calls >= 32 and not one.wrong for one in found), found


def test_calls_reach_the_kernels_that_a_model_uses() -> None:
    used = {label.split(",")[0] for label, _ in self_check._calls("cpu")}
    assert used >= {"quantize_pack", "packed_spmm", "packed_linear", "packed_attention"}


@pytest.mark.parametrize("fault", ["values", "codes", "error"])
def test_a_fault_is_named_and_is_the_exit_status(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turn = itertools.count()

    def broken() -> torch.Tensor:
        if next(turn) % 2 == 0:  # the reference, which is asked first
            return torch.ones(3) if fault == "values" else torch.ones(3, dtype=torch.uint8)
        if fault == "error":
            raise RuntimeError("illegal instruction")
        return torch.full((3,), 1.001) if fault == "values" else torch.zeros(3, dtype=torch.uint8)

    def calls(device: str) -> Iterator[tuple[str, Any]]:
        yield "packed_spmm, 4 bits", broken

    monkeypatch.setattr(self_check, "_calls", calls)
    monkeypatch.setattr(self_check, "available_on", lambda device: ["portable"])
    monkeypatch.setattr(self_check, "use_backend", lambda name: use_backend("reference"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == 1
    said = capsys.readouterr().out
    assert "check of portable" in said and "WRONG: packed_spmm, 4 bits" in said
    assert ("RuntimeError" in said) is (fault == "error")


def test_a_device_that_does_not_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def calls(device: str) -> Iterator[tuple[str, Any]]:
        raise RuntimeError("Found no NVIDIA driver on your system.")
        yield

    monkeypatch.setattr(self_check, "_calls", calls)
    found = self_check._check("portable", "cuda")
    assert found.calls == 0 and found.wrong == ["no tensors on cuda (RuntimeError)"]
