"""Files with weights of edges as a point, and files from before there was one."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_geometric_qlr as qlr
from tests.helpers.files import edited, parts
from tests.helpers.io_cases import (
    EDGES,
    FEATURES,
    FLOAT,
    X,
    assert_same,
    converted,
    make,
    read,
    refused,
    run,
    trained,
    written,
)


class ByName(nn.Module):
    """A model written with quantized layers."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.conv = qlr.nn.QuantGCNConv(FEATURES, 6, bits=4, **config)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.conv(x, edge_index)
        return out


def bits_of(model: nn.Module) -> list[int | None]:
    """The width of the weights of edges of each conv."""
    plans = (layer for name, layer in model.named_modules() if hasattr(layer, "_qlr"))
    keys = [layer._qlr for layer in plans if "source_x" in layer._qlr]
    return [s["edge_weight"].bits if "edge_weight" in s else None for s in keys]


def with_point(raw: bytes, layer: str, key: str, value: Any) -> bytes:
    """The file with something else at a point of a layer."""
    return edited(raw, lambda h: h["layers"][layer]["quantizers"].__setitem__(key, value))


@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize("name", ["gcn", "appnp", "smp"])
@pytest.mark.parametrize("bits", [8, 3, 32])
def test_round_trips(name: str, bits: int, convert: bool) -> None:
    model = make(name, edge_weight_bits=bits)
    model = converted(model) if convert else model
    twin = read(written(model), FLOAT[name]())
    assert set(bits_of(twin)) == {None if bits == 32 else bits}
    assert_same(model, twin)


@pytest.mark.parametrize("convert", [False, True])
def test_files_without_the_point_compute_as_they_did(convert: bool) -> None:
    """What an earlier release wrote has no such point in its header, and no tensor of it."""
    model = make("gcn", edge_weight_bits=32)
    model = converted(model) if convert else model
    raw = written(model)
    layers = parts(raw)[0]["__metadata__"]["layers"]
    assert all("edge_weight" not in e["quantizers"] for e in layers.values())
    twin = read(raw, FLOAT["gcn"]())
    assert set(bits_of(twin)) == {None}
    assert_same(model, twin)


@pytest.mark.parametrize("convert", [False, True])
def test_files_without_the_point_load_into_layers_by_name(convert: bool) -> None:
    model = trained(ByName(edge_weight_bits=32))
    model = converted(model) if convert else model
    other = ByName()
    assert bits_of(other) == [8]
    twin = read(written(model), other)
    assert bits_of(twin) == [None] and bits_of(other) == [8]
    assert torch.equal(run(twin.eval())[0], run(model)[0])


def test_layers_by_name_must_have_the_point_of_a_file() -> None:
    raw = written(trained(ByName()))
    assert bits_of(read(raw, ByName())) == [8]
    kind = qlr.errors.AlreadyQuantizedError
    refused(raw, ByName(edge_weight_bits=32), "quantizers at .* the file at .*edge_weight", kind)
    refused(raw, ByName(edge_weight_bits=4), "its edge_weight has 4 bits, that of the file 8", kind)


def test_state_dicts_are_those_of_models_without_it() -> None:
    """It has no numbers of its own."""
    model, other = make("gcn"), make("gcn", edge_weight_bits=32)
    assert list(model.state_dict()) == list(other.state_dict())
    other.load_state_dict(model.state_dict())
    fresh = qlr.quantize(FLOAT["gcn"](), bits=4).eval()
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(run(fresh)[0], run(model)[0])


@pytest.mark.parametrize(
    ("layer", "key", "value", "message"),
    [
        ("convs.0", "edge_weight", {"bits": 1}, "from 2 to 8"),
        ("convs.0", "edge_weight", {"bits": 9}, "from 2 to 8"),
        ("convs.0", "edge_weight", {"bits": 8, "more": 1}, "damaged"),
        ("convs.0", "edge_weight", [{"bits": 8}], "damaged"),
        ("convs.0", "source_x", {"bits": 8}, "'source_x' is no place"),
        ("convs.0", "output", {"bits": 8}, "'output' is no place"),
        ("convs.0.lin", "edge_weight", {"bits": 8}, "'edge_weight' is no place"),
    ],
)
def test_forged_points(layer: str, key: str, value: Any, message: str) -> None:
    raw = with_point(written(make("gcn")), layer, key, value)
    refused(raw, FLOAT["gcn"](), message)


def test_convs_without_such_weights_get_none_from_a_file() -> None:
    raw = written(make("sage"))
    refused(with_point(raw, "convs.0", "edge_weight", {"bits": 8}), FLOAT["sage"](), "is no place")


def test_whole_models_are_pickled() -> None:
    model = converted(make("gcn"))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    again = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert bits_of(again) == [8, 8]
    assert torch.equal(again(X, EDGES), model(X, EDGES))
