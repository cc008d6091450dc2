"""Users' layers may call what they have anything; only names with the private prefix are taken."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, MessagePassing

import torch_geometric_qlr as qlr
from tests.helpers.crossed import crossed
from torch_geometric_qlr.errors import UnsupportedLayerError

torch.manual_seed(0)
X, EDGES = torch.randn(12, 8), torch.randint(0, 12, (2, 40))

NAMES = (
    *("path", "backend", "reason", "runs_as", "route", "quantizers", "float_class"),
    *("weight_names", "quantize_at", "replaced", "converted", "call", "choice", "source_keys"),
    *("begin", "end", "remembered", "state_of", "made", "hop", "_made", "_quant_hop", "gather"),
)

#: Names that a raw weight may have besides: of places, and of methods of containers.
PLACES = ("input", "output", "source", "source_x", "linear_output", "keys", "items", "pop", "_w")


class OwnAttribute(GCNConv):
    """A layer that multiplies by something of its own, under any name."""

    def __init__(self, name: str, value: Any) -> None:
        super().__init__(8, 4)
        self.own_name = name
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        elif isinstance(value, Tensor):
            self.register_buffer(name, value)
        else:
            setattr(self, name, value)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        own = getattr(self, self.own_name)
        out = super().forward(x, edge_index)
        return own(out) if callable(own) else own * out


class OwnWeight(MessagePassing):
    """A layer with a raw weight, under any name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.own_name = name
        self.register_parameter(name, nn.Parameter(torch.linspace(-1, 1, 64).view(8, 8)))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = x @ getattr(self, self.own_name)
        return self.propagate(edge_index, x=x)


def _double(self: Any, x: Tensor) -> Tensor:
    return 2 * x


def _on_class(name: str, value: Any) -> nn.Module:
    def forward(self: Any, x: Tensor, edge_index: Tensor) -> Tensor:
        own = getattr(self, name)
        out = GCNConv.forward(self, x, edge_index)
        return own(out) if callable(own) else own * out

    cls = type(f"OnClass_{name}", (GCNConv,), {name: value, "forward": forward})
    return cls(8, 4)


KINDS = {
    "attribute": lambda name: OwnAttribute(name, 3.5),
    "buffer": lambda name: OwnAttribute(name, torch.tensor(3.5)),
    "parameter": lambda name: OwnAttribute(name, nn.Parameter(torch.tensor(3.5))),
    "submodule": lambda name: OwnAttribute(name, nn.Linear(4, 4)),
    "method": lambda name: _on_class(name, _double),
    "property": lambda name: _on_class(name, property(lambda self: 3.5)),
    "class attribute": lambda name: _on_class(name, 3.5),
}


def _everywhere(layer: nn.Module, fresh: nn.Module, folder: Path, *, pickles: bool) -> list[Any]:
    """The quantized layer and everything that comes of it; all of them compute the same."""
    layer.eval()
    quantized = qlr.quantize(layer, bits=8).eval()
    with torch.no_grad():
        quantized(X, EDGES)
    converted = qlr.convert(quantized)
    out = [quantized, converted, copy.deepcopy(quantized), copy.deepcopy(converted)]
    for number, model in enumerate([quantized, converted]):
        if pickles:
            out.append(pickle.loads(pickle.dumps(model)))
        qlr.save(model, folder / f"{number}.qlr")
        out.append(qlr.load(folder / f"{number}.qlr", copy.deepcopy(fresh)).eval())
    return out


@pytest.mark.filterwarnings("ignore::torch_geometric_qlr.errors.QLRWarning")
@pytest.mark.parametrize(("name", "kind"), crossed(NAMES, list(KINDS), whole=("quantizers",)))
def test_own_names_survive(name: str, kind: str, tmp_path: Path) -> None:
    layer = KINDS[kind](name)
    on_class = kind in ("method", "property", "class attribute")  # made here: cannot be pickled
    with torch.no_grad():
        expected = layer(X, EDGES)
        own = getattr(layer, name)
        outs = []
        for model in _everywhere(layer, layer, tmp_path, pickles=not on_class):
            outs.append(model(X, EDGES))
            if not callable(own):
                assert getattr(model, name) == own
    for out in outs:
        assert out.equal(outs[0])
        assert (out - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("name", (*NAMES, *PLACES))
def test_a_raw_weight_may_have_any_name(name: str, tmp_path: Path) -> None:
    layer = OwnWeight(name)
    expected = layer(X, EDGES).detach()
    quantized = qlr.quantize(layer, bits=8, output_bits=8)
    assert isinstance(getattr(quantized, name), nn.Parameter)
    with torch.no_grad():
        models = _everywhere(layer, OwnWeight(name), tmp_path, pickles=True)
        outs = [model(X, EDGES) for model in models]
    for out in outs:
        assert out.equal(outs[0])
        assert (out - expected).abs().max() < 0.05 * expected.abs().max()
    # The weight is what is packed, whatever it is called.
    assert not isinstance(getattr(models[1], name), nn.Parameter)


@pytest.mark.parametrize("name", ["_qlr", "_qlr_made", "_qlr_forward", "_qlr_anything"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_private_prefix_is_refused(kind: str, name: str) -> None:
    layer = KINDS[kind](name)
    with pytest.raises(UnsupportedLayerError, match=rf"{name!r} of its own.*Rename"):
        qlr.quantize(layer, bits=4)
