"""What ``python -m torch_geometric_qlr`` does with arguments."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.nn import GCN

import torch_geometric_qlr as qlr
from torch_geometric_qlr.commands import run_command
from torch_geometric_qlr.loader import PackedFeatureStore
from torch_geometric_qlr.quantizers import MinMax

pytestmark = pytest.mark.cpu
X = torch.rand(200, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X.numpy())
    return tmp_path


def test_pack_and_inspect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "pack x.npy --bits 4 out.safetensors --granularity feature"
    monkeypatch.setattr(sys, "argv", ["torch_geometric_qlr", *command.split()])
    runpy.run_module("torch_geometric_qlr", run_name="__main__")
    found = PackedFeatureStore("out.safetensors")
    assert found[None, "x", None].equal(MinMax(4, "feature").pack(X))
    said = capsys.readouterr()
    size = Path("out.safetensors").stat().st_size
    assert said.out == f"out.safetensors: {size:,} bytes, of 51,328\n"
    assert "200/200" in said.err
    run_command(["inspect", "out.safetensors"])
    said = capsys.readouterr()
    assert f"{size:,} bytes, written by release {qlr.__version__}, not verified" in said.out
    assert said.out.splitlines()[-1].split() == ["x", "200", "64", "4", "feature", "32"]
    run_command(["inspect", "--verify", "out.safetensors"])
    assert "verified\n" in capsys.readouterr().out


def test_options_of_pack(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["pack", "x.npy", "out", "--attr", "feat", "--quiet"])
    assert capsys.readouterr().err == ""
    assert PackedFeatureStore("out")[None, "feat", None].equal(MinMax(8).pack(X))


@pytest.mark.parametrize("converted", [False, True])
def test_inspect_a_model(converted: bool, capsys: pytest.CaptureFixture[str]) -> None:
    model = qlr.quantize(GCN(8, 8, 2, 3), bits=4, overrides={"convs.1": {"bits": 2}}).eval()
    model(torch.rand(3, 8), torch.tensor([[0], [1]]))
    qlr.save(qlr.convert(model) if converted else model, "model.pt")
    run_command(["inspect", "model.pt"])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("converted GCN, " if converted else "quantized GCN, ")
    assert [row.split()[:3] for row in rows[:3]] == [
        ["module", "layer", "bits"],
        ["convs.0", "GCNConv", "source"],
        ["convs.0.lin", "Linear", "input"],
    ]
    assert "input 4, weight 4" in rows[2] and "input 2, weight 2" in rows[4]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("pack missing.npy out", "FileNotFoundError: .*missing.npy"),
        ("pack x.npy x.npy", "InputError: .*take the place"),
        ("pack x.npy out --bits 9", "ConfigError: bits"),
        ("inspect missing", "FileNotFoundError"),
        ("inspect x.npy", "CheckpointError: x.npy cannot be read: it is no safetensors"),
        ("inspect weights.pt", "CheckpointError: weights.pt is not from qlr.save"),
    ],
)
def test_errors_are_one_line(command: str, words: str) -> None:
    torch.save({"w": X}, "weights.pt")
    with pytest.raises(SystemExit, match=f"^{words}") as stopped:
        run_command(command.split())
    assert "\n" not in str(stopped.value)
    assert not Path("out").exists()


@pytest.mark.parametrize("command", ["", "unpack x", "pack x.npy", "pack a b --granularity row"])
def test_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_command(command.split())
    assert stopped.value.code == 2
    assert "usage: python -m torch_geometric_qlr" in capsys.readouterr().err
