"""Every error names the place, the fault and the remedy, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCN, GCNConv, GraphSAGE, SAGEConv

import torch_geometric_qlr as qlr
from torch_geometric_qlr.errors import (
    AlreadyQuantizedError,
    ConfigError,
    InputError,
    LazyModuleError,
    NothingToQuantizeError,
    QLRError,
    UnsupportedLayerError,
)

F, H, C, N = 8, 6, 3, 5
EDGES = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])


def gcn() -> nn.Module:
    return GCN(F, H, 2, C)


def _broken() -> nn.Module:
    model = gcn()
    with torch.no_grad():
        model.convs[1].lin.weight[0, 0] = float("nan")
    return model


class _Clash(SAGEConv):
    _qlr_quantizers = "mine"


class _WithClash(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = GCNConv(F, H)
        self.second = _Clash(H, C)


class _Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))


def _scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(F, H)))


def _compiled_inside() -> nn.Module:
    return nn.ModuleDict({"gnn": torch.compile(gcn()), "head": nn.Linear(C, C)})


Case = tuple[Callable[[], Any], dict[str, Any], type[QLRError], str]
CASES: dict[str, Case] = {
    "not a module": (lambda: gcn().state_dict(), {}, UnsupportedLayerError, r"OrderedDict.*itself"),
    "a class": (lambda: GCN, {}, UnsupportedLayerError, r"got type\).*not its class"),
    "compiled": (
        lambda: torch.compile(gcn()),
        {},
        UnsupportedLayerError,
        r"The model has been compiled.*then compile",
    ),
    "compiled inside": (_compiled_inside, {}, UnsupportedLayerError, "gnn has been compiled"),
    "scripted": (_scripted, {}, UnsupportedLayerError, "TorchScript.*the original model"),
    "nothing": (nn.ReLU, {}, NothingToQuantizeError, r"ReLU has no Linear.*register_conv"),
    "norm only": (
        lambda: nn.Sequential(nn.BatchNorm1d(4)),
        {},
        NothingToQuantizeError,
        r"Sequential has no Linear.*\(0: kept float: normalisation\)",
    ),
    "parametrized only": (_Parametrized, {}, NothingToQuantizeError, "remove the parametrization"),
    "all wide": (
        gcn,
        {"bits": 32},
        NothingToQuantizeError,
        r"every layer stays.*wide: input.*Lower",
    ),
    "all float": (gcn, {"overrides": {"*": None}}, NothingToQuantizeError, "drop the override"),
    "lazy": (
        lambda: GraphSAGE(-1, H, 2, C),
        {},
        LazyModuleError,
        r"convs\.0\.lin_[lr].*in_channels=-1.*one forward pass",
    ),
    "twice": (
        lambda: nn.Sequential(qlr.quantize(gcn(), bits=4), nn.Linear(C, C)),
        {},
        AlreadyQuantizedError,
        r"0\.convs\.0: QuantGCNConv is quantized already.*float model once",
    ),
    "NaN weight": (
        _broken,
        {},
        InputError,
        r"convs\.1\.lin: the parameter Linear\.weight holds NaN or Inf\. Load or train",
    ),
    "clash": (_WithClash, {}, UnsupportedLayerError, r"second: .*'_qlr_quantizers'.*Rename"),
    "bits too small": (gcn, {"bits": 0}, ConfigError, "bits=0 is out of range.*1 to 8"),
    "bits too large": (gcn, {"weight_bits": 9}, ConfigError, "weight_bits=9 is out of range"),
    "bits of a wrong type": (gcn, {"bits": "2"}, ConfigError, "bits is '2'; expected an integer"),
    "bits true": (gcn, {"bits": True}, ConfigError, "bits is True; expected an integer"),
    "unknown field": (gcn, {"bit": 2}, ConfigError, "'bit' is not a config field.*Did you mean"),
    "truncation": (gcn, {"truncation": "bt+"}, ConfigError, r"truncation='bt\+'.*'bt\*'"),
    "preset": (gcn, {"preset": "int3"}, ConfigError, "preset='int3' is unknown.*'paper'"),
    "preset by name": (gcn, {"config": "int5"}, ConfigError, "preset='int5' is unknown"),
    "config type": (gcn, {"config": 2.0}, ConfigError, "config is a float; expected a QLRConfig"),
    "points": (gcn, {"points": ("weights",)}, ConfigError, "point='weights' is unknown.*'weight'"),
    "no points": (gcn, {"points": ()}, ConfigError, "points is empty"),
    "granularity": (gcn, {"granularity": "row"}, ConfigError, "granularity='row' is unknown"),
    "granularity role": (
        gcn,
        {"granularity": {"weights": "tensor"}},
        ConfigError,
        "granularity role='weights' is unknown",
    ),
    "granularity of a role": (
        gcn,
        {"granularity": {"weight": "node"}},
        ConfigError,
        r"granularity\['weight'\]='node' is unknown.*'channel'",
    ),
    "feature granularity": (
        lambda: nn.Sequential(SAGEConv(F, H), qlr.nn.SMP()),
        {"granularity": "feature"},
        ConfigError,
        r"1\.x: granularity 'feature' needs the number of features, which SMP does not tell",
    ),
    "hops": (gcn, {"hop_quantizers": "each"}, ConfigError, "hop_quantizers='each'"),
    "momentum": (gcn, {"momentum": 0.0}, ConfigError, "momentum=0.0 is out of range"),
    "unknown override": (
        gcn,
        {"overrides": {"convs.2": {"bits": 4}}},
        ConfigError,
        r"'convs\.2' matches no layer.*Nearest: .*convs\.[01].*qlr\.plan",
    ),
    "unknown type": (gcn, {"overrides": {"GATConv": None}}, ConfigError, "'GATConv' matches no"),
    "override of no effect": (
        lambda: GCN(F, H, 2, C, norm="batch_norm"),
        {"overrides": {"norms.*": {"bits": 4}}},
        ConfigError,
        r"'norms\.\*' matches only norms\.0, .*stays in floating point",
    ),
    "override value": (
        gcn,
        {"overrides": {"convs.1": 4}},
        ConfigError,
        r"override 'convs\.1' is 4; expected a dict",
    ),
    "override field": (
        gcn,
        {"overrides": {"convs.1": {"wbits": 4}}},
        ConfigError,
        r"override 'convs\.1': 'wbits' is not a config field",
    ),
    "override bits": (
        gcn,
        {"overrides": {"convs.1": {"bits": 12}}},
        ConfigError,
        r"bits=12 is out of range",
    ),
    "override key": (gcn, {"overrides": {3: None}}, ConfigError, "override 3 is neither"),
    "override pattern": (
        gcn,
        {"overrides": {"re:convs[": None}},
        ConfigError,
        r"'re:convs\[' is no regular expression",
    ),
    "overrides type": (gcn, {"overrides": ["convs.1"]}, ConfigError, "overrides is a list"),
    "nested overrides": (
        gcn,
        {"overrides": {"convs.1": {"overrides": {"lin": None}}}},
        ConfigError,
        "has overrides of its own; list them side by side",
    ),
}


def snapshot(model: Any) -> list[Any]:
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return []
    values = [(k, v.clone()) for k, v in model.state_dict().items() if v.device.type == "cpu"]
    kinds = [(n, type(m), sorted(m.__dict__), list(m._modules)) for n, m in model.named_modules()]
    return [kinds, values]


def assert_untouched(model: Any, before: list[Any]) -> None:
    after = snapshot(model)
    assert len(after) == len(before)
    if before:
        assert after[0] == before[0]
        for (key, a), (other, b) in zip(after[1], before[1], strict=True):
            assert key == other
            is_real = not isinstance(a, nn.UninitializedParameter)
            assert not is_real or torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize("call", [qlr.quantize, qlr.quantize_, qlr.plan])
@pytest.mark.parametrize("case", CASES)
def test_error(case: str, call: Callable[..., Any]) -> None:
    make, kwargs, error, message = CASES[case]
    model = make()
    lazy = case == "lazy"
    before = [] if lazy else snapshot(model)
    with pytest.raises(error, match=message) as caught:
        call(model, **{"bits": 2, **kwargs} if "config" not in kwargs else kwargs)
    assert isinstance(caught.value, QLRError)
    text = str(caught.value)
    assert text.endswith(".") and text[0] != " " and "  " not in text
    if lazy:
        assert not any(isinstance(m, qlr.nn.QuantLayer) for m in model.modules())
    else:
        assert_untouched(model, before)


def test_standard_classes_catch_them_too() -> None:
    for kind, standard in (
        (ConfigError, ValueError),
        (InputError, ValueError),
        (UnsupportedLayerError, TypeError),
    ):
        assert issubclass(kind, standard)


# While it runs ####################################################################################


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("granularity", ["node", "tensor"])
def test_inputs_that_are_not_finite(value: float, granularity: str) -> None:
    model = qlr.quantize(gcn(), bits=2, granularity={"input": granularity})
    x = torch.randn(N, F)
    model(x, EDGES)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x[2, 3] = value
    with pytest.raises(InputError, match=r"convs\.0\.lin\.input: .*holds NaN or Inf.*nan_to_num"):
        model(x, EDGES)
    for key, tensor in model.state_dict().items():  # a bad batch leaves the ranges as they were
        assert torch.equal(tensor, before[key]), key
    assert model(torch.randn(N, F), EDGES).isfinite().all()


def test_weights_that_diverged() -> None:
    model = qlr.quantize(gcn(), bits=2)
    model(torch.randn(N, F), EDGES)
    with torch.no_grad():
        model.convs[1].lin.weight.fill_(float("inf"))
    with pytest.raises(InputError, match=r"convs\.1\.lin\.weight: .*NaN or Inf"):
        model(torch.randn(N, F), EDGES)


def test_a_failed_forward_leaves_no_trace() -> None:
    model = qlr.quantize(gcn(), bits=2)
    x = torch.randn(N, F)
    model(x, EDGES)  # until then an evaluation batch counts as far as it gets
    expected = model.eval()(x, EDGES)
    with pytest.raises((RuntimeError, IndexError)):
        model(x[:, :3], EDGES)
    weight = model.convs[0].lin.weight
    assert isinstance(weight, nn.Parameter)  # not the quantized one, which is for the forward only
    torch.testing.assert_close(model(x, EDGES), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    model = qlr.quantize(gcn(), bits=2)
    x = torch.ones(N, F, dtype=dtype)
    if dtype == torch.float64:
        model = model.double()
        assert model(x, EDGES).dtype == dtype
        return
    with pytest.raises(InputError, match=rf"convs\.0: x is {dtype}.*x\.float\(\)"):
        model(x, EDGES)
    with pytest.raises(InputError, match=rf"input: the input is {dtype}.*x\.float\(\)"):
        qlr.quantize(nn.Linear(F, H), bits=2)(x)


def test_assigning_to_a_quantized_weight() -> None:
    layer = qlr.quantize(nn.Linear(F, H), bits=2)
    with pytest.raises(TypeError, match="cannot assign"):
        layer.weight = torch.ones(H, F)
    layer.weight = nn.Parameter(torch.ones(H, F))
    out: Tensor = layer(torch.ones(1, F))
    torch.testing.assert_close(out, F + layer.bias.expand(1, H), rtol=1e-3, atol=1e-3)
