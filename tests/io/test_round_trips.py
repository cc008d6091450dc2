"""What is saved comes back bit for bit, into a float model."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GMMConv, GPSConv, GraphSAGE, HGTConv, to_hetero

import torch_geometric_qlr as qlr
from tests.helpers.io_cases import (
    ATTRIBUTES,
    EDGES,
    FEATURES,
    FLOAT,
    META,
    ByName,
    Double,
    X,
    assert_same,
    converted,
    make,
    read,
    run,
    trained,
    written,
)
from torch_geometric_qlr.nn import registry
from torch_geometric_qlr.transforms import SmoothPropagation


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(FLOAT)),
    bits=st.sampled_from([1, 2, 3, 4, 8]),
    truncation=st.sampled_from([None, "bt", "bt*"]),
    granularity=st.sampled_from([None, "tensor", {"message": "node"}]),
    points=st.sampled_from([None, "paper", ("weight", "source"), ("input", "output", "message")]),
    hops=st.sampled_from(["per_hop", "shared"]),
    convert=st.booleans(),
)
def test_round_trips(
    name: str, bits: int, truncation: Any, granularity: Any, points: Any, hops: str, convert: bool
) -> None:
    config = {"truncation": truncation, "granularity": granularity, "points": points}
    try:
        model = make(name, bits, hop_quantizers=hops, **config)
    except qlr.errors.QLRError:  # nothing there to quantize, or nothing that has features
        return
    model = converted(model) if convert else model
    torch.manual_seed(2)
    fresh = FLOAT[name]()
    before = copy.deepcopy(fresh.state_dict())
    twin = read(written(model), fresh)
    assert_same(model, twin)
    assert type(fresh).__name__ == type(FLOAT[name]()).__name__
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())


CONVS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "gps": (lambda: GPSConv(FEATURES, GCNConv(FEATURES, FEATURES), heads=2), (X, EDGES)),
    "gmm": (
        lambda: GMMConv(FEATURES, 6, dim=2, kernel_size=2),
        (X, EDGES, ATTRIBUTES),
    ),
    "hgt": (
        lambda: HGTConv(FEATURES, 8, META, heads=2),
        (
            {"a": X, "b": X.flip(0)},
            {("a", "to", "b"): EDGES, ("b", "to", "a"): EDGES.flip(0)},
        ),
    ),
}


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
@pytest.mark.parametrize("name", sorted(CONVS))
def test_convs_with_weights_of_their_own(name: str, convert: bool) -> None:
    build, args = CONVS[name]
    model = trained(qlr.quantize(build(), bits=4), *args)
    model = converted(model) if convert else model
    assert_same(model, read(written(model), build()), *args)


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
def test_overrides(convert: bool) -> None:
    rules = {"convs.0": {"bits": 2, "truncation": "bt*"}, "convs.1.lin": None}
    model = make("gcn", 8, overrides=rules)
    model = converted(model) if convert else model
    twin = read(written(model), FLOAT["gcn"]())
    assert_same(model, twin)
    assert type(twin.convs[1].lin) is type(FLOAT["gcn"]().convs[1].lin)


@pytest.mark.parametrize("state", ["forward", "persistent"])
@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
@pytest.mark.parametrize("order", ["smooth first", "quantize first"])
def test_smooth_propagation(order: str, convert: bool, state: str) -> None:
    smooth = SmoothPropagation(tau=0.02, exclude=["convs.0"], multiplier_state=state)
    model = FLOAT["gcn"]()
    if order == "smooth first":
        model = qlr.quantize(smooth(model), bits=4)
    else:
        model = smooth(qlr.quantize(model, bits=4))
    model = trained(model)
    model = converted(model) if convert else model
    for fresh in (FLOAT["gcn"](), smooth(FLOAT["gcn"]())):
        twin = read(written(model), fresh)
        assert type(twin.convs[1]) is type(model.convs[1])
        assert twin.convs[1]._qlr_smooth.options == smooth.options
        assert_same(model, twin)
    with pytest.raises(qlr.errors.CheckpointError, match=r"convs\.1: SmoothPropagation .* options"):
        read(written(model), SmoothPropagation(tau=0.5, exclude=["convs.0"])(FLOAT["gcn"]()))


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
@pytest.mark.parametrize("order", ["quantize first", "hetero first"])
def test_hetero_models(order: str, convert: bool) -> None:
    x = {"a": X, "b": X.flip(0)}
    edges = {("a", "to", "b"): EDGES, ("b", "to", "a"): EDGES.flip(0)}
    if order == "hetero first":
        model = qlr.quantize(to_hetero(FLOAT["sage"](), META), bits=4)
    else:
        model = to_hetero(qlr.quantize(FLOAT["sage"](), bits=4), META)
    model = trained(model, x, edges)
    model = converted(model) if convert else model
    twin = read(written(model), to_hetero(FLOAT["sage"](), META))
    expected = model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in twin.state_dict().items())
    for left, right in zip(run(model, x, edges), run(twin.eval(), x, edges), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
def test_registered_layers_need_no_registration(
    convert: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_USER", dict(registry._USER))
    qlr.register_conv(Double, family="copy", weights={"w": -1}, propagates_input=True)
    model = make("double", 2)
    assert list(model.quantizers) == ["w", "source_x"]
    model = converted(model) if convert else model
    raw = written(model)
    monkeypatch.setattr(registry, "_USER", {})
    assert_same(model, read(raw, Double()))


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
def test_models_written_with_layers_by_name(convert: bool) -> None:
    model = trained(ByName())
    model = converted(model) if convert else model
    assert_same(model, read(written(model), ByName()))
    with pytest.raises(qlr.errors.AlreadyQuantizedError, match=r"first is .*2 bits.* file 4"):
        read(written(model), ByName(bits=2))


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
def test_lazy_layers_take_their_shape_from_the_file(convert: bool) -> None:
    def lazy() -> nn.Module:
        return GraphSAGE((-1, -1), 6, num_layers=2, out_channels=3)

    started = lazy()
    started(X, EDGES)
    model = trained(qlr.quantize(started, bits=4))
    model = converted(model) if convert else model
    twin = read(written(model), lazy())
    assert twin.convs[0].lin_l.in_channels == FEATURES
    assert_same(model, twin)
    other = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(qlr.errors.LazyModuleError, match=r"0\.weight .*Run one forward pass"):
        read(written(qlr.quantize(nn.Sequential(nn.Linear(4, 3)))), other)


def test_a_loaded_model_trains_on_as_the_saved_one() -> None:
    model = make("gcn", 2, truncation="bt*")
    twin = read(written(model), FLOAT["gcn"]())
    assert twin.training  # as the float model was
    for module in (model, twin):
        torch.manual_seed(3)
        trained(module)
    assert_same(model, twin)
    with pytest.warns(UserWarning, match="no ranges"):  # as a model from `quantize` does
        twin.load_state_dict(FLOAT["gcn"]().state_dict())


def test_ranges_that_have_not_seen_data_start_with_the_next_batch() -> None:
    model = qlr.quantize(FLOAT["gcn"](), bits=4)
    twin = read(written(model), FLOAT["gcn"]())
    assert_same(model.eval(), twin)
    assert_same(model, twin)  # both have started on the same batch


def test_modes_and_back_ends() -> None:
    raw = written(converted(make()))
    twin = read(raw, FLOAT["gcn"]().train())
    assert not twin.training and not any(p.requires_grad for p in twin.parameters())
    slow = qlr.load(io.BytesIO(raw), FLOAT["gcn"](), backend="reference")
    assert slow.convs[0]._qlr.backend == "reference"
    torch.testing.assert_close(run(slow)[0], run(twin)[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(qlr.errors.BackendError, match="unknown"):
        qlr.load(io.BytesIO(raw), FLOAT["gcn"](), backend="gpu")


def test_half_precision_and_integers_come_along() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = GATConv(FEATURES, 3)
            self.register_buffer("small", torch.arange(3).half())
            self.register_buffer("count", torch.tensor(7))
            self.register_buffer("mask", torch.tensor([True, False, True]))
            self.register_buffer("none", torch.zeros(0, 3))

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            out: Tensor = self.conv(x, edge_index)
            return out

    model = trained(qlr.quantize(Mixed(), bits=4))
    model.small.mul_(2)
    assert_same(model, read(written(model), Mixed()))
