"""What a user has put in place of a layer's methods is what runs, and the report says so."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, MessagePassing, SAGEConv
from torch_geometric.utils import to_torch_csc_tensor

import torch_geometric_qlr as qlr
from torch_geometric_qlr.errors import ConfigError, UnsupportedLayerError

torch.manual_seed(0)
X, EDGES = torch.randn(12, 8), torch.randint(0, 12, (2, 40))
ADJ = to_torch_csc_tensor(EDGES, size=(12, 12)).t()

pytestmark = pytest.mark.filterwarnings("ignore::torch_geometric_qlr.errors.QLRWarning")


class OwnPropagate(GCNConv):
    def propagate(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Tensor:
        return 4 * super().propagate(edge_index, size=size, **kwargs)


class OwnMessage(GCNConv):
    def message(self, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        return -2 * super().message(x_j, edge_weight)


class OwnAggregate(GCNConv):
    def aggregate(self, inputs: Tensor, index: Tensor, dim_size: Any = None) -> Tensor:
        return super().aggregate(inputs.abs(), index, dim_size=dim_size)


class OwnUpdate(GCNConv):
    def update(self, inputs: Tensor) -> Tensor:
        return inputs.exp()


class OwnProduct(SAGEConv):
    def message_and_aggregate(self, adj_t: Any, x: Any) -> Tensor:
        return 3 * super().message_and_aggregate(adj_t, x)


class OwnForward(GCNConv):
    def forward(self, x: Tensor, edge_index: Any, edge_weight: Any = None) -> Tensor:
        return super().forward(2 * x, edge_index.flip(0), edge_weight).relu()


class BesidesMessage:
    def message(self, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        return 5 * x_j


class FromMixin(BesidesMessage, GCNConv):
    pass


def _agree(layer: Any, edges: Any, quantized: Any, converted: Any) -> None:
    with torch.no_grad():
        expected, got, packed = layer(X, edges), quantized(X, edges), converted(X, edges)
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()
    torch.testing.assert_close(packed, got, atol=1e-5, rtol=1e-5)


def _quantized(layer: Any, edges: Any) -> Any:
    quantized = qlr.quantize(layer, bits=8).eval()
    with torch.no_grad():
        quantized(X, edges)
    return quantized


def _runs_as(converted: Any) -> tuple[str, str]:
    entry = next(e for e in qlr.report(converted).entries if e.name == "")
    return entry.runs_as, entry.note


@pytest.mark.parametrize(
    ("cls", "edges", "note"),
    [
        (OwnPropagate, EDGES, "a propagate() of its own"),
        (OwnMessage, EDGES, "a message per edge"),
        (OwnAggregate, EDGES, "an aggregate() of its own"),
        (OwnUpdate, EDGES, "an update() of its own"),
        (FromMixin, EDGES, "a message per edge"),
        (OwnForward, EDGES, ""),
        (OwnProduct, EDGES, ""),
        (OwnProduct, ADJ, ""),
    ],
)
def test_methods_of_a_subclass(cls: Any, edges: Any, note: str) -> None:
    layer = cls(8, 8).eval()
    quantized = _quantized(layer, edges)
    converted = qlr.convert(quantized)
    _agree(layer, edges, quantized, converted)
    runs_as, found = _runs_as(converted)
    assert note in found
    assert (runs_as == "quantized in float") == bool(note)


def test_a_fused_product_of_its_own_is_told() -> None:
    converted = qlr.convert(_quantized(OwnProduct(8, 8), ADJ))
    with pytest.warns(qlr.errors.QLRWarning, match=r"message_and_aggregate\(\) of its own"):
        converted(X, ADJ)


def _message(layer: Any) -> None:
    layer.message = types.MethodType(lambda self, x_j, edge_weight: -3 * x_j, layer)


def _update(layer: Any) -> None:
    layer.update = lambda inputs: inputs.exp()


def _aggregate(layer: Any) -> None:
    def aggregate(self: Any, inputs: Tensor, index: Tensor, ptr: Any, dim_size: Any) -> Tensor:
        return GCNConv.aggregate(self, inputs.abs(), index, ptr, dim_size)

    layer.aggregate = types.MethodType(aggregate, layer)


def _propagate(layer: Any) -> None:
    # It asks for the method of the class, whatever the class has become.
    def propagate(self: Any, edge_index: Any, **kwargs: Any) -> Tensor:
        return 3 * type(self).propagate(self, edge_index, **kwargs)

    layer.propagate = types.MethodType(propagate, layer)


def _forward(layer: Any) -> None:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return 3 * type(self).forward(self, *args, **kwargs).relu()

    layer.forward = types.MethodType(forward, layer)


def _message_hook(layer: Any) -> None:
    layer.register_message_forward_hook(lambda layer, inputs, out: 2 * out)


def _propagate_hook(layer: Any) -> None:
    layer.register_propagate_forward_hook(lambda layer, inputs, out: 2 * out)


def _decomposed(layer: Any) -> None:
    layer.decomposed_layers = 2


REPLACED: dict[str, Callable[[Any], None]] = {
    "message": _message,
    "update": _update,
    "aggregate": _aggregate,
    "propagate": _propagate,
    "forward": _forward,
    "message hook": _message_hook,
    "propagate hook": _propagate_hook,
    "decomposed": _decomposed,
}


@pytest.mark.parametrize("when", ["before", "quantized", "converted"])
@pytest.mark.parametrize("name", REPLACED)
def test_methods_replaced_on_an_object(name: str, when: str) -> None:
    replace, layer = REPLACED[name], GCNConv(8, 8).eval()
    expected = copy.deepcopy(layer)
    replace(expected)
    if when == "before":
        replace(layer)
    quantized = _quantized(layer, EDGES)
    if when == "quantized":
        replace(quantized)
    converted = qlr.convert(quantized)
    if when == "converted":
        replace(quantized)
        replace(converted)
    _agree(expected, EDGES, quantized, converted)
    if name != "forward":
        assert _runs_as(converted)[0] == "quantized in float"


def _explained(layer: Any) -> None:
    layer.explain = True
    layer._edge_mask = torch.linspace(-1, 1, EDGES.size(1))
    layer._loop_mask = torch.ones(EDGES.size(1), dtype=torch.bool)
    layer._apply_sigmoid = True


def test_explain_mode() -> None:
    layer = SAGEConv(8, 8).eval()
    quantized = _quantized(layer, EDGES)
    converted = qlr.convert(quantized)
    for each in (layer, quantized, converted):
        _explained(each)
    with torch.no_grad():
        assert (quantized(X, EDGES) - layer(X, EDGES)).abs().max() < 0.1
        torch.testing.assert_close(converted(X, EDGES), quantized(X, EDGES))
    assert "explained" in _runs_as(converted)[1]


@pytest.mark.parametrize("name", ["forward", "propagate"])
def test_a_copy_cannot_be_made_of_a_wrapper_around_the_original(name: str) -> None:
    layer = GCNConv(8, 8)
    original = getattr(layer, name)
    setattr(layer, name, lambda *args, **kwargs: 3 * original(*args, **kwargs))
    with pytest.raises(UnsupportedLayerError, match=rf"its {name}\(\) was replaced.*quantize_"):
        qlr.quantize(layer, bits=8)
    expected = layer(X, EDGES).detach()
    quantized = qlr.quantize_(layer, bits=8).eval()
    with torch.no_grad():
        out = quantized(X, EDGES)
        assert 0 < (out - expected).abs().max() < 0.05 * expected.abs().max()


class Registered(MessagePassing):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.rand(8, 8))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x @ self.w)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"family": "copies"}, "family 'copies' is unknown"),
        ({"sources": "x"}, "sources is 'x'"),
        ({"sources": (1,)}, "sources is"),
        ({"sources": ("y",)}, "no message is made of the source 'y'"),
        ({"logit_sources": ("z",)}, "no message is made of the source 'z'"),
        ({"weights": ("w",)}, "weights is"),
        ({"weights": {"w": 1}}, "channel dimension 1 is unknown"),
        ({"hops": 2}, "hops is 2"),
    ],
)
def test_registrations_that_mean_nothing(given: dict[str, Any], message: str) -> None:
    with pytest.raises(qlr.errors.QLRError, match=message):
        qlr.register_conv(Registered, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": {"v": -1}}, "registered with the weights v, and has no such parameter"),
        ({"hops": lambda layer: 0}, "give 0"),
        ({"hops": lambda layer: "two"}, "give 'two'"),
    ],
)
def test_registrations_that_do_not_fit_the_layer(given: dict[str, Any], message: str) -> None:
    cls = type("RegisteredWrongly", (Registered,), {})
    qlr.register_conv(cls, **given)
    with pytest.raises(ConfigError, match=message):
        qlr.quantize(cls(), bits=4)


def test_registered_twice() -> None:
    cls = type("RegisteredTwice", (Registered,), {})
    qlr.register_conv(cls, weights={"w": -1})
    with pytest.raises(ConfigError, match="registered already.*replace=True"):
        qlr.register_conv(cls)
    qlr.register_conv(cls, weights={"w": -1}, replace=True)
