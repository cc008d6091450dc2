"""What is saved comes back bit for bit, into a float model; and files that cannot are refused."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.nn import (
    APPNP,
    GAT,
    GCN,
    GIN,
    GATConv,
    GCNConv,
    GMMConv,
    GPSConv,
    GraphSAGE,
    HGTConv,
    MessagePassing,
    SAGEConv,
    to_hetero,
)

import torch_geometric_qlr as qlr
from torch_geometric_qlr.nn import SMPGNN, registry
from torch_geometric_qlr.quantizers import LearnedRangeQuant
from torch_geometric_qlr.transforms import SmoothPropagation

NODES, FEATURES = 12, 8
_seeded = torch.Generator().manual_seed(0)
X = torch.randn(NODES, FEATURES, generator=_seeded)
EDGES = torch.randint(0, NODES, (2, 40), generator=_seeded)
META = (["a", "b"], [("a", "to", "b"), ("b", "to", "a")])


class Double(MessagePassing):
    """A layer that nobody has registered."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(FEATURES, FEATURES))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=x @ self.w)
        return out


class ByName(nn.Module):
    """A model written with quantized layers."""

    def __init__(self, bits: int = 4) -> None:
        super().__init__()
        self.first = qlr.nn.QuantGCNConv(FEATURES, 6, bits=bits)
        self.second = qlr.nn.QuantSAGEConv(6, 3, bits=bits)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x, edge_index).relu(), edge_index)
        return out


class Shared(nn.Module):
    """One layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(FEATURES, FEATURES)
        self.two = nn.ModuleList([self.one])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.two[0](self.one(x).relu())
        return out


def _basic(cls: Any, **kwargs: Any) -> nn.Module:
    out: nn.Module = cls(FEATURES, 6, num_layers=2, out_channels=3, **kwargs)
    return out


FLOAT: dict[str, Callable[[], nn.Module]] = {
    "gcn": lambda: _basic(GCN, norm="batch_norm", dropout=0.3),
    "sage": lambda: _basic(GraphSAGE, norm="layer_norm", jk="cat"),
    "gin": lambda: _basic(GIN),
    "gat": lambda: _basic(GAT, heads=2),
    "smp": lambda: SMPGNN(FEATURES, 6, 3, K=3),
    "appnp": lambda: APPNP(3, 0.1),
    "gcn conv": lambda: GCNConv(FEATURES, 6),
    "double": Double,
    "shared": Shared,
}


def trained(model: nn.Module, *args: Any) -> nn.Module:
    """A few steps, so that ranges, multipliers and statistics are their own."""
    args = args or (X, EDGES)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        sum(out.square().mean() for out in flat(model.train()(*args))).backward()
        optimizer.step()
    return model.eval()


def flat(out: Any) -> list[Tensor]:
    return list(out.values()) if isinstance(out, dict) else [out]


def make(name: str = "gcn", bits: int = 4, **config: Any) -> nn.Module:
    torch.manual_seed(1)
    return trained(qlr.quantize(FLOAT[name](), bits=bits, **config))


def converted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return qlr.convert(model)


def written(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    qlr.save(model, buffer)
    return buffer.getvalue()


def read(raw: bytes, model: nn.Module) -> nn.Module:
    return qlr.load(io.BytesIO(raw), model)


@torch.no_grad()
def run(model: nn.Module, *args: Any) -> list[Tensor]:
    return flat(model(*(args or (X, EDGES))))


def assert_same(model: nn.Module, twin: nn.Module, *args: Any) -> None:
    expected, state = model.state_dict(), twin.state_dict()
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert value.dtype == state[key].dtype and torch.equal(value, state[key]), key
    assert str(twin) == str(model)
    ranges = [[q for q in m.modules() if isinstance(q, LearnedRangeQuant)] for m in (model, twin)]
    for left, right in zip(*ranges, strict=True):
        assert (left.path, left.config) == (right.path, right.config)
    for left, right in zip(run(model, *args), run(twin.eval(), *args), strict=True):
        assert torch.equal(left, right)


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
        (X, EDGES, torch.rand(EDGES.size(1), 2, generator=_seeded)),
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
        assert twin.convs[1].smooth_options == smooth.options
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
    assert slow.convs[0].backend == "reference"
    torch.testing.assert_close(run(slow)[0], run(twin)[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(qlr.errors.BackendError, match="unknown"):
        qlr.load(io.BytesIO(raw), FLOAT["gcn"](), backend="gpu")


def test_paths_and_files(tmp_path: Path) -> None:
    model = converted(make())
    qlr.save(model, tmp_path / "model.pt")
    qlr.save(model, str(tmp_path / "again.pt"))
    for path in (tmp_path / "model.pt", str(tmp_path / "again.pt")):
        assert_same(model, qlr.load(path, FLOAT["gcn"]()))
    with pytest.raises(FileNotFoundError):
        qlr.load(tmp_path / "missing.pt", FLOAT["gcn"]())
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert content["format"] == "torch_geometric_qlr" and content["release"] == qlr.__version__
    header = json.loads(zlib.decompress(bytes(content["data"][: content["header_bytes"]].tolist())))
    weight = header["layers"]["convs.0.lin"]["quantizers"]["weight"]
    assert weight == {"bits": 4, "shape": [6, 8], "matrix": [6, 8]}


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
    assert bits / 32 < packed / whole < bits / 32 + 0.012
    assert ranges < 1.01 * whole


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


# What is refused ##################################################################################


def refused(raw: bytes, model: nn.Module, message: str, kind: Any = None) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind or qlr.errors.CheckpointError, match=message):
        read(raw, model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(v, after[k]) for k, v in before.items())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files(data: st.DataObject) -> None:
    model = converted(make("appnp"))
    raw = bytearray(written(model))
    place = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw = raw[:place]
    else:
        raw[place] ^= data.draw(st.integers(1, 255))
    try:
        twin = read(bytes(raw), FLOAT["appnp"]())
    except qlr.errors.CheckpointError as error:
        assert any(word in str(error) for word in ("damaged", "not from qlr.save", "version"))
    else:  # padding of the container
        assert_same(model, twin)


def _content(raw: bytes) -> dict[str, Any]:
    out: dict[str, Any] = torch.load(io.BytesIO(raw), weights_only=True)
    return out


def _stored(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_files_of_other_kinds_and_versions() -> None:
    model = make()
    content = _content(written(model))
    fresh = FLOAT["gcn"]()
    refused(_stored({**content, "version": 9}), fresh, r"format version 9.*reads version 1.*Upgr")
    refused(_stored({**content, "checksum": 1}), fresh, "damaged: its checksum")
    flipped = content["data"].clone()
    flipped[-1] ^= 1
    refused(_stored({**content, "data": flipped}), fresh, "damaged: its checksum")
    refused(_stored({**content, "data": None}), fresh, "damaged")
    refused(_stored(model.state_dict()), fresh, r"not from qlr\.save.*looks like a state_dict")
    refused(_stored([1, 2]), fresh, r"not from qlr\.save")
    refused(_stored(model), fresh, r"cannot be read.*not from qlr\.save")
    refused(b"hello", fresh, "cannot be read")


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
def test_other_architectures(convert: bool) -> None:
    model = make()
    raw = written(converted(model) if convert else model)
    refused(raw, _basic(GIN), r"convs\.0: the file has a GCNConv there, this GIN a GINConv")
    one = GCN(FEATURES, 6, num_layers=1, out_channels=3)
    refused(raw, one, r"convs\.1: the file has a GCNConv there, and this GCN has no such module")
    wide = GCN(FEATURES, 7, num_layers=2, out_channels=3, norm="batch_norm")
    refused(raw, wide, r"convs\.0.*(\[6, 8\].*\[7, 8\]|\[6\].*\[7\])")
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
    lazy = nn.Sequential(nn.Linear(4, 4), SAGEConv(-1, 4))
    model = qlr.quantize(lazy[0], bits=4)
    with pytest.raises(qlr.errors.LazyModuleError, match="not initialized yet"):
        written(nn.Sequential(model, lazy[1]))


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
