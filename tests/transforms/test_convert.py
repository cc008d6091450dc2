"""The calls around a conversion: what they return, tell and refuse."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN, EdgeConv, GCNConv, GraphSAGE, MessagePassing

import torch_geometric_qlr as qlr
from torch_geometric_qlr.nn.packed import PackedLayer
from torch_geometric_qlr.transforms import Compose, Quantize, SmoothPropagation
from torch_geometric_qlr.transforms.convert import Convert, convert, convert_
from torch_geometric_qlr.transforms.report import conversion

X, EDGES = torch.randn(5, 8), torch.tensor([[0, 1, 1, 4], [1, 2, 0, 3]])


def _gcn(**kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    model = qlr.quantize(GCN(8, 16, num_layers=2, out_channels=4), **{"bits": 4, **kwargs}).eval()
    with torch.no_grad():
        model(X, EDGES)
    return model


def test_a_copy_or_in_place() -> None:
    model = _gcn()
    expected = model(X, EDGES)
    converted = convert(model)
    assert not any(isinstance(m, PackedLayer) for m in model.modules())
    assert torch.equal(model(X, EDGES), expected)
    assert convert_(model) is model
    torch.testing.assert_close(model(X, EDGES), converted(X, EDGES), rtol=0, atol=0)
    torch.testing.assert_close(expected, converted(X, EDGES), rtol=1e-5, atol=1e-5)
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if name.endswith("lin.weight")]


def test_a_model_in_training_is_put_into_eval_mode() -> None:
    model = _gcn().train()
    assert not convert(model).training and model.training


def test_the_table_names_every_layer() -> None:
    table = conversion(convert(_gcn()))
    assert [e.name for e in table.entries] == ["convs.0", "convs.0.lin", "convs.1", "convs.1.lin"]
    assert not table.fallbacks and "packed: 4 of 4 layers" in str(table)
    values = table.to_dict()
    assert values["model"] == "GCN" and values["layers"][1]["bits"] == [4]
    assert values["layers"][1]["packed_bytes"] < values["layers"][1]["float_bytes"]


def test_fallbacks_are_told_with_their_reason() -> None:
    model = qlr.quantize(EdgeConv(nn.Linear(16, 4)), bits=4).eval()
    model(X, EDGES)
    with pytest.warns(UserWarning, match=r"1 of 2 .*EdgeConv \(it computes a message per edge\)"):
        converted = convert(model)
    table = conversion(converted)
    assert [e.runs_as for e in table.entries] == ["quantized in float", "packed product"]
    assert "message per edge" in str(table)


def test_a_slow_maximum_is_told_with_its_remedy() -> None:
    for granularity, slow in ((None, True), ({"message": "tensor", "input": "tensor"}, False)):
        model = GraphSAGE(8, 4, num_layers=1, aggr="max")
        model = qlr.quantize(model, bits=4, granularity=granularity).eval()
        model(X, EDGES)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            entry = conversion(convert(model)).entries[0]
        assert entry.is_packed and ("slow max" in entry.note) == slow == bool(told)


def test_parts_without_data_are_told_and_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor, both: bool = False) -> torch.Tensor:
            out: torch.Tensor = self.used(x)
            return out + self.unused(x) if both else out

    model = qlr.quantize(Two(), bits=4, granularity="tensor").eval()
    model(X)
    with pytest.warns(UserWarning, match="never saw data: unused.input"):
        converted = convert(model)
    torch.testing.assert_close(converted(X), model(X))
    with pytest.raises(qlr.errors.ConfigError, match=r"unused\.input has never seen data"):
        converted(X, both=True)


def test_what_cannot_be_converted_is_refused() -> None:
    with pytest.raises(qlr.errors.NothingToQuantizeError, match="quantize"):
        convert(GCN(8, 16, num_layers=2))
    with pytest.raises(qlr.errors.UnsupportedLayerError, match="str"):
        convert("model")  # type: ignore[type-var]
    with pytest.raises(qlr.errors.ConfigError, match=r"convs\.0.* never seen data"):
        convert(qlr.quantize(GCN(8, 16, num_layers=2), bits=4))
    with pytest.raises(qlr.errors.AlreadyQuantizedError, match="converted already"):
        convert(convert(_gcn()))
    with pytest.raises(qlr.errors.AlreadyQuantizedError):
        qlr.quantize(convert(_gcn()), bits=4)
    with pytest.raises(qlr.errors.BackendError, match="unknown"):
        convert(_gcn(), backend="gpu")
    with pytest.raises(qlr.errors.NothingToQuantizeError, match="convert"):
        conversion(_gcn())
    with pytest.raises(qlr.errors.InputError, match=r"convs\.0\.lin\.weight is float64"):
        convert(_gcn().double())


def test_a_refusal_changes_nothing() -> None:
    model = _gcn().double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(qlr.errors.InputError):
        convert_(model)
    assert not any(isinstance(m, PackedLayer) for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_layers_derived_from_quantized_ones_are_refused() -> None:
    base = qlr.nn.QuantGCNConv

    class Mine(base):  # type: ignore[valid-type,misc]
        pass

    layer = Mine(8, 4, bits=4).eval()
    layer(X, EDGES)
    with pytest.raises(qlr.errors.UnsupportedLayerError, match="Derive it from GCNConv"):
        convert(layer)


def test_transforms_compose() -> None:
    model = Compose([Quantize(bits=4), lambda m: (m.eval()(X, EDGES), m)[1], Convert()])(
        GCN(8, 16, num_layers=2, out_channels=4)
    )
    assert all(e.is_packed for e in conversion(model).entries)
    assert repr(Convert("reference")) == "Convert(backend='reference')"


def test_smooth_propagation_is_converted_with_its_layer() -> None:
    model = SmoothPropagation()(GCN(8, 16, num_layers=2, out_channels=4))
    model = qlr.quantize(model, bits=4).eval()
    expected = model(X, EDGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted = convert(model)
    torch.testing.assert_close(converted(X, EDGES), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(converted.convs[0], (GCNConv, PackedLayer, MessagePassing))
    assert {e.runs_as for e in conversion(converted).entries} == {"packed sum", "packed product"}
