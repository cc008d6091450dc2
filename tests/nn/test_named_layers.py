"""Quantized layers by name: the same objects that ``quantize`` makes."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv
from torch_geometric.nn.models.basic_gnn import BasicGNN

import torch_geometric_qlr as qlr
from tests.helpers.conv_zoo import EDGES, FEATURES, HIDDEN, X
from torch_geometric_qlr.errors import AlreadyQuantizedError, ConfigError, NothingToQuantizeError
from torch_geometric_qlr.nn import QuantLayer
from torch_geometric_qlr.quantizers import LearnedRangeQuant

F, H = FEATURES, HIDDEN


def ranges(model: nn.Module) -> list[LearnedRangeQuant]:
    return [m for m in model.modules() if isinstance(m, LearnedRangeQuant)]


class Shifted(qlr.nn.QuantGCNConv):  # type: ignore[misc, name-defined]
    """What a user may write."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(x + 1, edge_index)


class QuantGNN(BasicGNN):
    supports_edge_weight = True
    supports_edge_attr = False
    supports_norm_batch = False

    def init_conv(self, in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
        return qlr.nn.QuantGCNConv(in_channels, out_channels, **kwargs)


@pytest.mark.parametrize("bits", [8, 2, 1])
@pytest.mark.parametrize("base", [GCNConv, SAGEConv, GATConv])
def test_equals_the_quantized_float_layer(base: Any, bits: int) -> None:
    torch.manual_seed(0)
    expected = qlr.quantize(base(F, H), bits=bits, truncation="bt*")
    torch.manual_seed(0)
    cls = getattr(qlr.nn, f"Quant{base.__name__}")
    layer = cls(F, H, bits=bits, truncation="bt*")
    assert type(layer) is type(expected) is cls
    assert isinstance(layer, base) and isinstance(layer, QuantLayer)
    for x in (X, 2 * X):
        torch.testing.assert_close(layer(x, EDGES), expected(x, EDGES), rtol=0, atol=0)
    assert list(layer.state_dict()) == list(expected.state_dict())
    assert repr(layer).splitlines()[0] == repr(expected).splitlines()[0]
    assert f"Quant{base.__name__}({F}, {H}" in repr(layer)


def test_copies_and_pickles() -> None:
    layer = qlr.nn.QuantGCNConv(F, H, bits=2)
    layer(X, EDGES)
    expected = layer.eval()(X, EDGES)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer)
        torch.testing.assert_close(twin(X, EDGES), expected, rtol=0, atol=0)


def test_user_subclasses() -> None:
    torch.manual_seed(0)
    mine = Shifted(F, H, bits=2)
    torch.manual_seed(0)
    plain = qlr.nn.QuantGCNConv(F, H, bits=2)
    assert type(mine) is Shifted and isinstance(mine, GCNConv)
    torch.testing.assert_close(mine(X, EDGES), plain(X + 1, EDGES), rtol=0, atol=0)
    expected = mine.eval()(X, EDGES)
    assert Shifted(F, H, bits=2).propagate.__func__ is Shifted.propagate
    for twin in (copy.deepcopy(mine), copy.copy(mine), pickle.loads(pickle.dumps(mine))):
        assert type(twin) is Shifted
        # PyG generates code for a class that has no `propagate` of its own, which would not round.
        assert Shifted.propagate is qlr.nn.QuantMessagePassing.propagate
        torch.testing.assert_close(twin(X, EDGES), expected, rtol=0, atol=0)
    with pytest.raises(AlreadyQuantizedError, match="Shifted is quantized already"):
        qlr.quantize(nn.ModuleList([mine]), bits=2)


def test_inside_other_models() -> None:
    gnn = QuantGNN(F, H, 2, 3, bits=2)
    out = gnn(X, EDGES)
    out.sum().backward()
    assert out.shape == (X.size(0), 3)
    assert [type(conv).__name__ for conv in gnn.convs] == ["QuantGCNConv"] * 2
    assert all(q.bits == 2 and bool(q.calibrated) for q in ranges(gnn))
    twin = pickle.loads(pickle.dumps(gnn))
    torch.testing.assert_close(twin.eval()(X, EDGES), gnn.eval()(X, EDGES), rtol=0, atol=0)

    import torch_geometric.nn as pyg_nn

    model = pyg_nn.Sequential(
        "x, e", [(qlr.nn.QuantSAGEConv(F, H, bits=4), "x, e -> x"), nn.Linear(H, 2)]
    )
    assert model(X, EDGES).shape == (X.size(0), 2)
    assert len(ranges(copy.deepcopy(model))) == len(ranges(model)) > 0


def test_layers_made_of_layers() -> None:
    layer = qlr.nn.QuantGINConv(nn.Sequential(nn.Linear(F, H), nn.ReLU(), nn.Linear(H, H)), bits=2)
    assert isinstance(layer, GINConv)
    layer(X, EDGES)
    assert len(ranges(layer)) == 5 and all(bool(q.calibrated) for q in ranges(layer))


def test_config_as_an_object_and_as_keywords() -> None:
    config = qlr.QLRConfig(bits=4, message_bits=2)
    layer = qlr.nn.QuantGCNConv(F, H, config=config)
    assert {q.path.partition(".")[2]: q.bits for q in ranges(layer)} == {
        "lin.input": 4,
        "lin.weight": 4,
        "x (source)": 2,
    } or {q.bits for q in ranges(layer)} == {2, 4}
    both = qlr.nn.QuantGCNConv(F, H, config=config, message_bits=8)
    assert {q.bits for q in ranges(both)} == {4, 8}
    assert {q.bits for q in ranges(qlr.nn.QuantGCNConv(F, H))} == {8}
    assert {q.bits for q in ranges(qlr.nn.QuantGCNConv(F, H, preset="int2"))} == {2}


def test_a_layer_that_is_quantized_inside_only_is_one_all_the_same() -> None:
    layer = qlr.nn.QuantGCNConv(F, H, bits=2, points=("weight",))
    assert type(layer) is qlr.nn.QuantGCNConv
    layer(X, EDGES)
    assert [q.path.rpartition(".")[2] for q in ranges(layer)] == ["weight"]
    copy.deepcopy(layer)(X, EDGES)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError) as expected:
        GCNConv(F, H, chanels=3)
    with pytest.raises(TypeError) as caught:
        qlr.nn.QuantGCNConv(F, H, chanels=3, bits=2)
    assert str(caught.value) == str(expected.value)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        qlr.nn.QuantGCNConv(F, bits=2)
    with pytest.raises(ConfigError, match="bits=11 is out of range"):
        qlr.nn.QuantGCNConv(F, H, bits=11)
    with pytest.raises(NothingToQuantizeError):
        qlr.nn.QuantGCNConv(F, H, bits=32)


def test_discovery() -> None:
    names = dir(qlr.nn)
    assert {"QuantGCNConv", "QuantGATConv", "QuantSAGEConv", "SMP", "register_conv"} <= set(names)
    assert all(hasattr(qlr.nn, name) for name in names)
    assert qlr.nn.QuantGCNConv is qlr.nn.QuantGCNConv
    for name in ("QuantNoConv", "GCNConv", "Quant", "QuantWLConv", "QuantHeteroConv"):
        with pytest.raises(AttributeError, match=rf"no attribute '{name}'"):
            getattr(qlr.nn, name)


def test_signatures_for_help() -> None:
    init = inspect.signature(qlr.nn.QuantGCNConv).parameters
    own = list(inspect.signature(GCNConv).parameters)
    assert [n for n in own if n != "kwargs"] == [n for n in init if n in own and n != "kwargs"]
    assert {"bits", "truncation", "config"} <= set(init)
    assert init["bits"].kind is inspect.Parameter.KEYWORD_ONLY
    forward = inspect.signature(qlr.nn.QuantGCNConv.forward)
    assert list(forward.parameters) == list(inspect.signature(GCNConv.forward).parameters)
    assert "learned quantization" in qlr.nn.QuantGCNConv.__doc__


def test_float_checkpoint_of_a_model_with_named_layers() -> None:
    layer = qlr.nn.QuantGCNConv(F, H, bits=2)
    model = nn.ModuleDict({"conv": layer})
    with pytest.warns(UserWarning, match="no ranges for 3 quantizers"):
        model.load_state_dict(nn.ModuleDict({"conv": GCNConv(F, H)}).state_dict())
