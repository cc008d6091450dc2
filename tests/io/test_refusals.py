"""Files and models that do not fit are refused, and nothing has changed."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn
from torch_geometric.nn import GCN, GIN, SAGEConv

import torch_geometric_qlr as qlr
from tests.helpers.files import content_of, edited, old_written, stored
from tests.helpers.io_cases import (
    FEATURES,
    FLOAT,
    assert_same,
    basic,
    converted,
    make,
    read,
    refused,
    written,
)


def test_files_of_other_kinds_and_versions() -> None:
    model = make()
    content = content_of(old_written(model))
    fresh = FLOAT["gcn"]()
    refused(stored({**content, "version": 9}), fresh, r"format version 9.*reads version 1.*Upgr")
    refused(stored({**content, "checksum": 1}), fresh, "damaged: its checksum")
    flipped = content["data"].clone()
    flipped[-1] ^= 1
    refused(stored({**content, "data": flipped}), fresh, "damaged: its checksum")
    refused(stored({**content, "data": None}), fresh, "damaged")
    refused(stored(model.state_dict()), fresh, r"not from qlr\.save.*looks like a state_dict")
    refused(stored([1, 2]), fresh, r"not from qlr\.save")
    refused(stored(model), fresh, r"cannot be read.*not from qlr\.save")
    for raw in (b"hello", b"", b"P", b"PK", b"PK\3\4", b"\x80\4]."):
        refused(raw, fresh, "cannot be read")
    legacy = io.BytesIO()
    torch.save(model.state_dict(), legacy, _use_new_zipfile_serialization=False)
    refused(legacy.getvalue(), fresh, "cannot be read: it is no safetensors file")


def test_safetensors_of_others_and_of_other_versions(tmp_path: Path) -> None:
    model, fresh = make(), FLOAT["gcn"]()
    raw = written(model)
    newer = edited(raw, lambda h: h.update(version="9"))
    refused(newer, fresh, r"format version 9, written by release.*reads version 3.*or a newer one")
    older = edited(raw, lambda h: h.update(version="2"))
    refused(older, fresh, "format version 2")
    refused(save(model.state_dict()), fresh, r"damaged, or not from qlr\.save .KeyError")
    other = save(model.state_dict(), {"format": "pt", "version": "3"})
    refused(other, fresh, r"its format is 'pt', not 'torch_geometric_qlr\.model'")
    qlr.loader.PackedFeatureStore.write(tmp_path / "x", torch.rand(3, 4))
    features = (tmp_path / "x").read_bytes()
    refused(features, fresh, r"its format is 'torch_geometric_qlr\.features', not")
    qlr.save(model, tmp_path / "x")
    with pytest.raises(qlr.errors.CheckpointError, match=r"format is 'torch_geometric_qlr\.model'"):
        qlr.loader.PackedFeatureStore(tmp_path / "x")


def test_no_pickle_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = written(make())

    def fails(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unpickles")

    for module in (torch, pickle):
        monkeypatch.setattr(module, "load", fails)
    monkeypatch.setattr(pickle, "Unpickler", fails)
    read(raw, FLOAT["gcn"]())
    refused(pickle.dumps({"format": "torch_geometric_qlr"}), FLOAT["gcn"](), "no safetensors file")


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
def test_other_architectures(convert: bool) -> None:
    model = make()
    raw = written(converted(model) if convert else model)
    refused(raw, basic(GIN), r"convs\.0: the file has a GCNConv there, this GIN a GINConv")
    one = GCN(FEATURES, 6, num_layers=1, out_channels=3)
    refused(raw, one, r"convs\.1: the file has a GCNConv there, and this GCN has no such module")
    wide = GCN(FEATURES, 7, num_layers=2, out_channels=3, norm="batch_norm")
    refused(raw, wide, r"convs\.0.*(\[6, 8\].*\[7, 8\]|\[6\].*\[7\])")
    with torch.device("meta"):
        empty = basic(GCN, norm="batch_norm")
    with pytest.raises(qlr.errors.InputError, match="meta device.*such as the CPU"):
        read(raw, empty)
    bare = GCN(FEATURES, 6, num_layers=2, out_channels=3)
    refused(raw, bare, r"norms\.0.* the model has no such tensor")
    deeper = nn.Sequential()
    refused(raw, deeper, r"convs\.0: .*no such module")
    refused(raw, FLOAT["gcn"]().double(), "float32.*float64|float64.*float32", qlr.errors.QLRError)


def test_models_that_are_quantized_already() -> None:
    four, two = make(bits=4), make(bits=2)
    kind = qlr.errors.AlreadyQuantizedError
    for raw in (written(four), written(converted(four))):
        refused(raw, two, r"convs\.0.* 2 bits, that of the file 4.*Pass the float model", kind)
        refused(raw, converted(four), r"convs\.0 is converted already\. Pass the float", kind)
        more = make(bits=4, points="paper")
        refused(raw, more, r"convs\.0.*has quantizers at", kind)
    part = written(make(bits=4, overrides={"convs.0": None}))
    refused(part, make(bits=4), r"convs\.0.*the file keeps it float", kind)
    assert_same(four, read(written(four), make(bits=4)))  # the same again is no contradiction


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_what_cannot_be_saved() -> None:
    with pytest.raises(qlr.errors.NothingToQuantizeError, match=r"no quantized layer.*torch\.save"):
        written(FLOAT["gcn"]())
    with pytest.raises(qlr.errors.UnsupportedLayerError, match=r"got str.*qlr\.save\(model, path"):
        qlr.save("model.pt", make())  # type: ignore[arg-type]
    with pytest.raises(qlr.errors.UnsupportedLayerError, match="_orig_mod"):
        written(torch.compile(make()))  # type: ignore[arg-type]
    with pytest.raises(qlr.errors.UnsupportedLayerError, match="got dict"):
        read(written(make()), {})  # type: ignore[arg-type]

    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"seen": 3}

        def set_extra_state(self, state: Any) -> None: ...

    with pytest.raises(qlr.errors.InputError, match=r"_extra_state: .*a dict there"):
        written(qlr.quantize(nn.Sequential(nn.Linear(4, 4), Extra(4, 4)), bits=4))
    model = qlr.quantize(nn.Sequential(nn.Linear(4, 4)), bits=4)
    model.register_buffer("graph", torch.eye(3).to_sparse())
    with pytest.raises(qlr.errors.InputError, match=r"graph: .*sparse_coo.*persistent=False"):
        written(model)
    long = nn.Sequential()
    long.add_module("x" * 2000, nn.Linear(4, 4))
    with pytest.raises(qlr.errors.InputError, match="other names, than a file can describe"):
        written(qlr.quantize(long, bits=4))
    lazy = nn.Sequential(nn.Linear(4, 4), SAGEConv(-1, 4))
    model = qlr.quantize(lazy[0], bits=4)
    with pytest.raises(qlr.errors.LazyModuleError, match="not initialized yet"):
        written(nn.Sequential(model, lazy[1]))
