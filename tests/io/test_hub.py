"""Folders as the Hub has them. No test reaches it."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch_geometric.nn import GCN

import torch_geometric_qlr as qlr

X, EDGES = torch.rand(6, 8), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])


@pytest.fixture
def packed() -> Any:
    model = qlr.quantize(GCN(8, 16, num_layers=2, out_channels=4), bits=4).eval()
    with torch.no_grad():
        model(X, EDGES)
    return qlr.convert(model)


def same(a: Any, b: Any) -> bool:
    return torch.equal(a(X, EDGES), b(X, EDGES))


def test_a_folder(packed, tmp_path):
    folder = tmp_path / "new" / "model"
    path = qlr.save_pretrained(packed, folder)
    assert [p.name for p in folder.iterdir()] == ["model.safetensors"]
    assert same(qlr.load(path), packed)
    assert same(qlr.from_pretrained(folder), packed)
    assert same(qlr.from_pretrained(str(folder), GCN(8, 16, num_layers=2, out_channels=4)), packed)


def test_what_is_wrong_is_said_before_anything_is_written(packed, tmp_path):
    with pytest.raises(qlr.errors.InputError, match="Expected a path"):
        qlr.save_pretrained(packed, None)
    with pytest.raises(qlr.errors.InputError, match="got token, repo_id, but uploads nothing"):
        qlr.save_pretrained(packed, tmp_path / "a", repo_id="me/model", token="x")
    assert not (tmp_path / "a").exists()
    with pytest.raises(qlr.errors.NothingToQuantizeError):
        qlr.save_pretrained(GCN(8, 16, num_layers=2, out_channels=4), tmp_path / "b")
    with pytest.raises(qlr.errors.CheckpointError, match=r"no model\.safetensors in this folder"):
        qlr.from_pretrained(tmp_path)
    with pytest.raises(qlr.errors.InputError, match="Expected a path"):
        qlr.from_pretrained(packed)


def test_without_the_hub(packed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert same(qlr.from_pretrained(qlr.save_pretrained(packed, tmp_path)[:-18]), packed)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        qlr.save_pretrained(packed, tmp_path / "a", push_to_hub=True)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        qlr.from_pretrained("me/model")


def test_a_repository_in_the_cache(packed, tmp_path):
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "models--me--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    qlr.save_pretrained(packed, repository / "snapshots" / ("0" * 40))
    given = {"cache_dir": tmp_path, "local_files_only": True}
    assert same(qlr.from_pretrained("me/model", **given), packed)


def test_an_upload(packed, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    calls: list[tuple[str, dict[str, Any]]] = []

    def noted(name: str) -> Any:
        signature = inspect.signature(getattr(hub, name))

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append((name, signature.bind(*args, **kwargs).arguments))
            return SimpleNamespace(repo_id=f"me/{args[0]}") if args else None

        return call

    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(hub, name, noted(name))
    qlr.save_pretrained(packed, tmp_path / "gcn4", push_to_hub=True, commit_message="4 bits")
    (_, made), (_, sent) = calls
    assert made["repo_id"] == "gcn4" and made["exist_ok"]
    assert sent["repo_id"] == "me/gcn4" and sent["commit_message"] == "4 bits"
    assert sent["allow_patterns"] == "model.safetensors"
