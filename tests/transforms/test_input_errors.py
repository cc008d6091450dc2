"""Bad calls over the public face: what this package is the first to see is an error of its own that
names the place, what was wrong and a remedy; what PyG or torch refuse of float models too may be
theirs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCN, GCNConv, SAGEConv

import torch_geometric_qlr as qlr
from torch_geometric_qlr.errors import (
    AlreadyQuantizedError,
    BackendError,
    ConfigError,
    InputError,
    LazyModuleError,
    NothingToQuantizeError,
    QLRError,
    UnsupportedLayerError,
)

torch.manual_seed(0)
X, EDGES = torch.randn(12, 8), torch.randint(0, 12, (2, 40))
WEIGHT = torch.rand(40)


def _float() -> GCN:
    torch.manual_seed(1)
    return GCN(8, 16, 2, 4).eval()


def _quantized(model: Any = None, **options: Any) -> Any:
    quantized = qlr.quantize(_float() if model is None else model, bits=4, **options).eval()
    with torch.no_grad():
        quantized(X, EDGES)
    return quantized


def _linear(**options: Any) -> Any:
    layer = qlr.quantize(nn.Linear(8, 4, **options), bits=4)
    layer(X)
    return layer.eval()


FLOAT, QUANTIZED, SAGE, LINEAR = _float(), _quantized(), _quantized(SAGEConv(8, 4)), _linear()
CONVERTED, PACKED_SAGE, PACKED_LINEAR = map(qlr.convert, (QUANTIZED, SAGE, LINEAR))
PACKED_PLAIN = qlr.convert(_linear(bias=False))


def _cast(model: Any, dtype: torch.dtype) -> Any:
    return copy.deepcopy(model).to(dtype)(X.to(dtype), EDGES)


# Making models ####################################################################################

MODULE = "Expected a .*torch.nn.Module"
BITS = "1 to 8 to quantize"

MAKING: dict[str, tuple[Callable[[], Any], type[QLRError], str]] = {
    "none": (lambda: qlr.quantize(None), UnsupportedLayerError, MODULE),
    "a class": (lambda: qlr.quantize(GCN), UnsupportedLayerError, "not its class"),
    "a state": (lambda: qlr.quantize(FLOAT.state_dict()), UnsupportedLayerError, MODULE),
    "a list": (lambda: qlr.quantize([FLOAT]), UnsupportedLayerError, MODULE),
    "plan of none": (lambda: qlr.plan(None), UnsupportedLayerError, MODULE),
    "bits 0": (lambda: qlr.quantize(FLOAT, bits=0), ConfigError, BITS),
    "bits -1": (lambda: qlr.quantize(FLOAT, bits=-1), ConfigError, BITS),
    "bits 9": (lambda: qlr.quantize(FLOAT, 9), ConfigError, BITS),
    "bits 64": (lambda: qlr.quantize(FLOAT, bits=64), ConfigError, BITS),
    "bits as text": (lambda: qlr.quantize(FLOAT, bits="8"), ConfigError, BITS),
    "bits as fraction": (lambda: qlr.quantize(FLOAT, bits=2.5), ConfigError, BITS),
    "bits as flag": (lambda: qlr.quantize(FLOAT, bits=True), ConfigError, BITS),
    "bits as list": (lambda: qlr.quantize(FLOAT, bits=[8]), ConfigError, BITS),
    "bits for nothing": (lambda: qlr.quantize(FLOAT, bits=32), NothingToQuantizeError, "Lower"),
    "config": (lambda: qlr.quantize(FLOAT, {"bits": 8}), ConfigError, "expected a QLRConfig"),
    "preset": (lambda: qlr.quantize(FLOAT, "int3"), ConfigError, "choose one of"),
    "field": (lambda: qlr.quantize(FLOAT, bit=8), ConfigError, "Did you mean 'bits'"),
    "truncation": (lambda: qlr.quantize(FLOAT, truncation="x"), ConfigError, "choose one of"),
    "granularity": (lambda: qlr.quantize(FLOAT, granularity="row"), ConfigError, "choose one of"),
    "role": (lambda: qlr.plan(FLOAT, granularity={"all": "node"}), ConfigError, "choose one of"),
    "points": (lambda: qlr.quantize(FLOAT, points=("all",)), ConfigError, "choose one of"),
    "override": (
        lambda: qlr.quantize(FLOAT, overrides={"foo": {"bits": 2}}),
        ConfigError,
        "'foo' matches no layer.*qlr.plan",
    ),
    "override field": (
        lambda: qlr.quantize(FLOAT, overrides={"convs.0": {"bit": 2}}),
        ConfigError,
        "'convs.0': 'bit' is not.*Did you mean",
    ),
    "override value": (
        lambda: qlr.quantize(FLOAT, overrides={"convs.0": 7}),
        ConfigError,
        "'convs.0' is 7; expected",
    ),
    "override list": (
        lambda: qlr.quantize(FLOAT, overrides=["convs.0"]),
        ConfigError,
        "expected a dict",
    ),
    "override pattern": (
        lambda: qlr.quantize(FLOAT, overrides={"re:(": {"bits": 4}}),
        ConfigError,
        "no regular expression",
    ),
    "override key": (
        lambda: qlr.quantize(FLOAT, overrides={3: {"bits": 4}}),
        ConfigError,
        "override 3",
    ),
    "twice": (lambda: qlr.quantize(QUANTIZED), AlreadyQuantizedError, "convs.0: .*float model"),
    "converted": (lambda: qlr.quantize(CONVERTED), AlreadyQuantizedError, "convs.0: "),
    "plan twice": (lambda: qlr.plan(QUANTIZED), AlreadyQuantizedError, "convs.0: "),
    "nothing": (lambda: qlr.quantize(nn.ReLU()), NothingToQuantizeError, "Pass the model"),
    "empty": (lambda: qlr.quantize(nn.Sequential()), NothingToQuantizeError, "Pass the model"),
    "lazy": (lambda: qlr.quantize(GCN(-1, 8, 2, 4)), LazyModuleError, "convs.0.lin: .*forward"),
    "convert float": (lambda: qlr.convert(FLOAT), NothingToQuantizeError, "quantize.model"),
    "convert twice": (lambda: qlr.convert(CONVERTED), AlreadyQuantizedError, "convs.0 is conv"),
    "convert none": (lambda: qlr.convert(None), UnsupportedLayerError, MODULE),
    "convert too early": (
        lambda: qlr.convert(qlr.quantize(FLOAT)),
        ConfigError,
        "convs.0.x .*never seen data. Train it, or run",
    ),
    "convert double": (
        lambda: qlr.convert(_quantized().double()),
        InputError,
        r"convs.0.lin.weight is float64.*model.float\(\)",
    ),
    "back end": (lambda: qlr.convert(QUANTIZED, "cuda"), BackendError, "choose from auto"),
    "back end kind": (lambda: qlr.convert(QUANTIZED, backend=3), BackendError, "choose from auto"),
    "report float": (lambda: qlr.report(FLOAT), NothingToQuantizeError, r"convert\(model\)"),
    "report early": (lambda: qlr.report(QUANTIZED), NothingToQuantizeError, r"convert\(model\)"),
    "report none": (lambda: qlr.report(None), UnsupportedLayerError, MODULE),
    "conversion": (lambda: qlr.conversion(None), UnsupportedLayerError, MODULE),
    "reset": (lambda: CONVERTED.reset_parameters(), InputError, "convs.0: .*Reset the float"),
    "script": (lambda: torch.jit.script(QUANTIZED), UnsupportedLayerError, "use torch.compile"),
    "script converted": (lambda: torch.jit.script(CONVERTED), UnsupportedLayerError, "convs.0: "),
    "script layer": (lambda: torch.jit.script(PACKED_LINEAR), UnsupportedLayerError, "Linear: "),
    "trace": (
        lambda: torch.jit.trace(QUANTIZED, (X, EDGES)),
        UnsupportedLayerError,
        "convs.0: .*use torch.compile",
    ),
    "trace converted": (
        lambda: torch.jit.trace(CONVERTED, (X, EDGES)),
        UnsupportedLayerError,
        "convs.0: .*use torch.compile",
    ),
    "trace layer": (lambda: torch.jit.trace(PACKED_LINEAR, (X,)), UnsupportedLayerError, "Linear"),
    "trace conv": (lambda: torch.jit.trace(SAGE, (X, EDGES)), UnsupportedLayerError, "SAGEConv"),
    "named": (lambda: qlr.nn.QuantGCNConv(8, 4, bits=0), ConfigError, BITS),
    "transform": (lambda: qlr.transforms.Quantize(bits=0), ConfigError, BITS),
    "transform back end": (
        lambda: qlr.transforms.Convert("x")(QUANTIZED),
        BackendError,
        "choose from auto",
    ),
    "register conv": (lambda: qlr.register_conv(nn.Linear), UnsupportedLayerError, "linear"),
    "register linear": (lambda: qlr.register_linear(GCNConv), UnsupportedLayerError, "conv"),
    "register object": (lambda: qlr.register_linear(LINEAR), UnsupportedLayerError, "class"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("case", MAKING)
def test_making_models(case: str) -> None:
    call, error, message = MAKING[case]
    with pytest.raises(error, match=f"(?i){message}"):
        call()


# Calling models ###################################################################################

CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "double": (lambda: CONVERTED(X.double(), EDGES), r"convs.0: x is float64.*x\.float\(\)"),
    "half": (lambda: CONVERTED(X.half(), EDGES), r"convs.0: x is float16.*x\.float\(\)"),
    "integers": (lambda: CONVERTED(X.long(), EDGES), r"convs.0: x is torch.int64.*x\.float"),
    "integers, quantized": (lambda: QUANTIZED(X.long(), EDGES), r"convs.0: x is torch.int64"),
    "flags": (lambda: QUANTIZED(X > 0, EDGES), r"convs.0: x is torch.bool.*x\.float\(\)"),
    "complex": (lambda: QUANTIZED(X * 1j, EDGES), r"convs.0: x is torch.complex64"),
    "integers in a layer": (lambda: LINEAR(X.long()), r"Linear.input: .*int64.*x\.float\(\)"),
    "double in a layer": (lambda: PACKED_LINEAR(X.double()), r"Linear: x is float64.*x\.float"),
    "narrow": (lambda: CONVERTED(X[:, :5], EDGES), "convs.0.lin: .*5 columns"),
    "narrow, quantized": (lambda: QUANTIZED(X[:, :5], EDGES), "convs.0.lin: .*5 columns"),
    "no columns": (lambda: CONVERTED(X[:, :0], EDGES), "convs.0.lin: .*0 columns"),
    "narrow sparse": (
        lambda: PACKED_LINEAR(X[:, :5].to_sparse_coo()),
        r"Linear: the features have the shape \[12, 5\].*8 columns",
    ),
    "narrow sparse, quantized": (
        lambda: LINEAR(X[:, :5].to_sparse_coo()),
        r"Linear: the features have the shape \[12, 5\].*8 columns",
    ),
    "nan": (lambda: CONVERTED(X * float("nan"), EDGES), "convs.0.lin.input: .*nan.*nan_to_num"),
    "inf": (lambda: QUANTIZED(X * float("inf"), EDGES), "convs.0.lin.input: .*inf.*nan_to_num"),
    "nan in weights": (lambda: CONVERTED(X, EDGES, WEIGHT * float("nan")), r"convs\.[01].*NaN"),
    "edges": (lambda: PACKED_SAGE(X, EDGES + 5), "SAGEConv: .*nodes from 5 to .*reindex"),
    "edges, quantized": (lambda: SAGE(X, EDGES + 5), "SAGEConv: .*nodes from 5 to .*reindex"),
    "negative edges": (lambda: PACKED_SAGE(X, EDGES - 3), "SAGEConv: .*nodes from -3.*reindex"),
    "matrix": (lambda: CONVERTED(X, torch.eye(9).to_sparse_coo()), "convs.0: .*12.*9"),
    "cast": (
        lambda: _cast(CONVERTED, torch.float64),
        r"convs.0: the converted model was cast to float64.*model\.float\(\), and x with",
    ),
    "cast to half": (
        lambda: _cast(CONVERTED, torch.float16),
        r"convs.0: the converted model was cast to float16.*model\.float\(\), and x with",
    ),
    "cast, features not": (
        lambda: copy.deepcopy(CONVERTED).double()(X, EDGES),
        r"convs.0: the converted model was cast to float64.*model\.float\(\)",
    ),
    "cast, bias further inside": (
        lambda: _cast(PACKED_SAGE, torch.float64),
        r"SAGEConv: the converted model was cast to float64.*model\.float\(\)",
    ),
    "training": (lambda: copy.deepcopy(CONVERTED).train()(X, EDGES), r"convs.0: .*model\.eval\("),
}

GRADIENTS: dict[str, Callable[[], Any]] = {
    "x": lambda: CONVERTED(X.clone().requires_grad_(), EDGES),
    "edge weight": lambda: CONVERTED(X, EDGES, WEIGHT.clone().requires_grad_()),
    "pair": lambda: PACKED_SAGE((X, X.clone().requires_grad_()), EDGES),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("case", CALLS)
def test_calling_models(case: str) -> None:
    call, message = CALLS[case]
    with torch.no_grad(), pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_of_converted_models(case: str) -> None:
    with pytest.raises(InputError, match="requires grad.*detached.*quantized model in eval"):
        GRADIENTS[case]()


def test_the_remedies_work() -> None:
    expected = CONVERTED(X, EDGES)
    assert CONVERTED(X.double().float(), EDGES).equal(expected)
    for dtype in (torch.float64, torch.float32):
        assert copy.deepcopy(CONVERTED).to(dtype).float()(X, EDGES).equal(expected)
    assert PACKED_PLAIN.double()(X).dtype == torch.float32  # it holds nothing that was cast
    assert copy.deepcopy(CONVERTED).train().eval()(X, EDGES).equal(expected)
    quantized = _quantized().double().float()
    assert qlr.convert(quantized)(X, EDGES).dtype == torch.float32


LIKE_FLOAT: dict[str, Callable[[Any], Any]] = {
    "no edges given": lambda model: model(X),
    "unknown argument": lambda model: model(X, EDGES, foo=1),
    "edges of floats": lambda model: model(X, EDGES.float()),
    "edges out of range": lambda model: model(X, EDGES + 5),
    "edges turned": lambda model: model(X, EDGES.t()),
    "edges none": lambda model: model(X, None),
    "edges as list": lambda model: model(X, EDGES.tolist()),
    "features none": lambda model: model(None, EDGES),
    "features as list": lambda model: model(X.tolist(), EDGES),
    "one feature row": lambda model: model(X[0], EDGES),
    "few weights": lambda model: model(X, EDGES, WEIGHT[:10]),
    "many weights": lambda model: model(X, EDGES, torch.rand(50)),
    "dense matrix": lambda model: model(X, torch.ones(12, 12)),
}


@pytest.mark.parametrize("case", LIKE_FLOAT)
def test_what_pyg_refuses_stays_its_own_error(case: str) -> None:
    with torch.no_grad(), pytest.raises(Exception) as expected:
        LIKE_FLOAT[case](FLOAT)
    for model in (QUANTIZED, CONVERTED):
        with torch.no_grad(), pytest.raises((type(expected.value), InputError)):
            LIKE_FLOAT[case](model)


WORKS: dict[str, Callable[[Any], Any]] = {
    "no edges": lambda model: model(X, EDGES[:, :0]),
    "no nodes": lambda model: model(X[:0], EDGES[:, :0]),
    "sparse features": lambda model: model(X.to_sparse_coo(), EDGES),
    "weights as column": lambda model: model(X, EDGES, WEIGHT.view(-1, 1)),
    "edges of int32": lambda model: model(X, EDGES.int()),
}


@pytest.mark.parametrize("case", WORKS)
def test_unusual_input_that_works(case: str) -> None:
    with torch.no_grad():
        expected, got, packed = (WORKS[case](m) for m in (FLOAT, QUANTIZED, CONVERTED))
    assert got.shape == expected.shape and got.isfinite().all()
    assert packed.equal(got)


def test_models_print_their_bits() -> None:
    assert repr(QUANTIZED.convs[0]) == "QuantGCNConv(8, 16, bits=4, edge_weight_bits=8)"
    assert repr(CONVERTED.convs[0].lin) == "PackedLinear(8, 16, bias=False, bits=4)"
    for model in (nn.Sequential(LINEAR), nn.Sequential(PACKED_LINEAR), QUANTIZED.convs):
        assert "bits=4" in repr(model)
    assert str(qlr.conversion(CONVERTED)) == str(qlr.report(CONVERTED))
