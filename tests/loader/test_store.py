"""The store as PyG's interface of features has it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import TensorAttr

from torch_geometric_qlr.errors import CheckpointError, ConfigError, InputError
from torch_geometric_qlr.loader import PackedFeatureStore, processes
from torch_geometric_qlr.quantizers import MinMax
from torch_geometric_qlr.tensor import PackedTensor

pytestmark = pytest.mark.cpu
X = torch.rand(20, 70, generator=torch.Generator().manual_seed(0))
PACKED = MinMax(4).pack(X)


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> PackedFeatureStore:
    if request.param == "file":
        PackedFeatureStore.write(tmp_path / "x.safetensors", {"paper": X, "tag": X[:7]}, bits=4)
        return PackedFeatureStore(tmp_path / "x.safetensors")
    out = PackedFeatureStore(bits=4)
    out["paper", "x", None] = X
    out.put_tensor(MinMax(4).pack(X[:7]), group_name="tag", attr_name="x", index=None)
    return out


def test_reading(store: PackedFeatureStore) -> None:
    assert store.get_tensor("paper", "x", None).equal(PACKED)
    assert store["paper"].x[None].equal(PACKED)
    assert store["paper", "x"]().equal(PACKED)
    assert store["paper", "x", slice(3, 9)].equal(PACKED[3:9])
    index = torch.tensor([5, 0, 5])
    for one in (index, index.int()):
        assert store["paper", "x", one].equal(PACKED.index_select(index))
    mask = torch.arange(20) % 3 == 0
    assert store["paper", "x", mask].equal(PACKED.index_select(mask.nonzero().view(-1)))
    # PyG asks whether an index was given in a way that longer arrays have no answer to.
    for one in (4, np.array([4])):
        assert store["paper", "x", one].equal(PACKED[4:5])
    assert store["paper", "x", -1].equal(PACKED[19:])
    attrs = [TensorAttr("tag", "x", slice(2)), TensorAttr("paper", "x", index)]
    first, second = store.multi_get_tensor(attrs)
    assert first.equal(PACKED[:2]) and second.equal(PACKED.index_select(index))


def test_names_and_sizes(store: PackedFeatureStore) -> None:
    attrs = store.get_all_tensor_attrs()
    assert [(a.group_name, a.attr_name) for a in attrs] == [("paper", "x"), ("tag", "x")]
    assert not any(a.is_set("index") for a in attrs)
    assert store.get_tensor_size("tag", "x") == (7, 70)
    assert store.get_tensor_size("tag", "y") is None
    assert "paper.x: PackedTensor(shape=[20, 70], bits=4" in repr(store)
    store.verify()


def test_what_cannot_be_read(store: PackedFeatureStore) -> None:
    with pytest.raises(InputError, match=r"paper.y: there is no such.*paper.x, tag.x"):
        store["paper", "y", None]
    with pytest.raises(InputError, match="out of range"):
        store["paper", "x", torch.tensor([20])]
    with pytest.raises(InputError, match="out of range"):
        store["paper", "x", 20]
    with pytest.raises(InputError, match="a mask of 3 for 20 rows"):
        store["paper", "x", torch.ones(3, dtype=torch.bool)]
    for wrong in (torch.zeros(2, 2, dtype=torch.long), "x", 1.0):
        with pytest.raises(InputError, match="an index is a slice, a number, or a vector"):
            store["paper", "x", wrong]


def test_changes_stay_in_memory(store: PackedFeatureStore) -> None:
    before = Path(store.path).read_bytes() if store.path else b""
    store.put_tensor(torch.arange(20), group_name="paper", attr_name="y", index=None)
    assert store["paper", "y", torch.tensor([3])].tolist() == [3]
    assert store.update_tensor(PACKED[:9], "tag", "x", None)
    assert store.get_tensor_size("tag", "x") == (9, 70)
    assert store.remove_tensor("paper", "x", None)
    assert not store.remove_tensor("paper", "x", None)
    del store["tag", "x"]
    assert [a.attr_name for a in store.get_all_tensor_attrs()] == ["y"]
    with pytest.raises(InputError, match="put as a whole"):
        store["paper", "y", slice(2)] = torch.zeros(2)
    with pytest.raises(InputError, match="expected a tensor, got list"):
        store["paper", "z", None] = [1, 2]
    if store.path:
        assert Path(store.path).read_bytes() == before


def test_what_is_packed_when_it_is_put() -> None:
    store = PackedFeatureStore(bits=2, granularity="feature")
    store[None, "x", None] = X.numpy()
    assert store[None, "x", None].equal(MinMax(2, "feature").pack(X))
    for name, kept in {
        "y": torch.arange(3),
        "time": torch.rand(3),
        "mask": torch.ones(3, 2) > 0,
    }.items():
        store[None, name, None] = kept
        assert torch.equal(store[None, name, None], kept)
    plain = PackedFeatureStore()
    plain[None, "x", None] = X
    assert torch.equal(plain[None, "x", None], X)
    for options in ({"bits": 9}, {"bits": 4, "granularity": "row"}):
        with pytest.raises(ConfigError):
            PackedFeatureStore(**options)


def test_copies_and_pickles(store: PackedFeatureStore) -> None:
    store["paper", "y", None] = torch.arange(20)
    store.remove_tensor("tag", "x", None)
    for again in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store)):
        assert again.path == store.path
        assert again["paper", "x", None].equal(PACKED)
        assert torch.equal(again["paper", "y", None], torch.arange(20))
        assert len(again.get_all_tensor_attrs()) == 2


def test_a_pickle_holds_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    PackedFeatureStore.write("x.safetensors", torch.rand(5000, 64))
    pickled = pickle.dumps(PackedFeatureStore("x.safetensors"))
    assert len(pickled) < 1000
    monkeypatch.chdir(tmp_path.parent)
    again = pickle.loads(pickled)
    assert again[None, "x", None].shape == (5000, 64)
    PackedFeatureStore.write(tmp_path / "x.safetensors", torch.rand(5000, 64))
    with pytest.raises(CheckpointError, match="another file has taken its place"):
        pickle.loads(pickled)


def test_a_selection_pickles_without_the_file(tmp_path: Path) -> None:
    x = torch.rand(5000, 64)
    for granularity in ("node", "feature", "tensor"):
        PackedFeatureStore.write(tmp_path / "x", x, granularity=granularity)
        store = PackedFeatureStore(tmp_path / "x")
        for index in (slice(5, 9), torch.tensor([3, 1])):
            part = store[None, "x", index]
            assert isinstance(part, PackedTensor)
            assert len(pickle.dumps(part)) < 3000
            assert pickle.loads(pickle.dumps(part)).equal(part)
            # Between processes memory is shared, and of a part of a file all of that would be.
            made, parts = processes._parts(part)
            assert made(*parts).equal(part)
            assert sum(p.untyped_storage().nbytes() for p in (parts[0], *parts[3:])) < 3000
