"""What is multiplied by what in a model, how often, and at which points its widths are decided."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from torch_geometric_qlr.codes.gather import kernel_of
from torch_geometric_qlr.layers.layer_spec import LayerSpec
from torch_geometric_qlr.layers.state import state_of
from torch_geometric_qlr.nn import QuantLayer
from torch_geometric_qlr.nn.recipe import Point
from torch_geometric_qlr.nn.registry import find_spec
from torch_geometric_qlr.search.isolated import Isolated, Place
from torch_geometric_qlr.search.traffic import Traffic

__all__ = ["FLOAT_BITS", "Operation", "operations_of"]

#: Width of what is not quantized.
FLOAT_BITS = 32


class Operation(NamedTuple):
    r"""Products of two kinds of numbers, which are added up.

    Args:
        module (str): Name of the layer.
        macs (int): How many, in one run on average.
        left, right (Place or int): Where the width of each operand is decided, or the width.
    """

    module: str
    macs: int
    left: Place | int
    right: Place | int

    def cost(self, bits: Mapping[Place, int]) -> int:
        r"""BitOPs: how many products of single bits there are.

        Args:
            bits (dict): The width of each place that is quantized.
        """
        left, right = (
            side if isinstance(side, int) else bits[side] for side in (self.left, self.right)
        )
        return self.macs * left * right


def operations_of(
    isolated: Isolated, traffic: Traffic, places: Collection[Place]
) -> list[Operation]:
    r"""The operations of all layers that are quantized.

    Args:
        isolated (Isolated): The model.
        traffic (Traffic): What passes through it.
        places (collection): The points that have a width.
    """
    out: list[Operation] = []
    for name, layer in isolated.model.named_modules():
        spec = find_spec(layer)
        if isinstance(layer, QuantLayer) and spec is not None:
            listed = _of_linear if spec.family == "linear" else _of_conv
            found = _Layer(name, layer, spec, traffic, frozenset(places))
            out += [operation for operation in listed(found) if operation.macs > 0]
    return out


class _Layer(NamedTuple):
    name: str
    module: Any
    spec: LayerSpec
    traffic: Traffic
    places: frozenset[Place]

    def width(self, kind: str, name: str = "") -> Place | int:
        """Where the width of an operand is decided."""
        place = Place(self.name, Point(kind, name))
        return place if place in self.places else FLOAT_BITS


def _of_linear(layer: _Layer) -> Iterator[Operation]:
    values = layer.traffic.mean(layer.traffic.inputs[layer.name])
    for name, channel_dim in layer.spec.weights.items():
        shape = layer.module.get_parameter(name).shape
        # Behind the channels a convolution has its window.
        window = 1 if layer.spec.features_last else shape[2:].numel()
        macs = values * shape[channel_dim] * window
        yield Operation(layer.name, macs, layer.width("input"), layer.width("weight", name))


def _of_conv(layer: _Layer) -> Iterator[Operation]:
    messages = layer.traffic.mean(layer.traffic.messages[layer.name])
    if layer.width("message") != FLOAT_BITS:
        yield Operation(layer.name, messages, layer.width("message"), 1)
    else:
        yield from (
            Operation(layer.name, messages, layer.width("source", name), _edge_width(layer))
            for name in layer.spec.sources
        )
    rows = layer.traffic.mean(layer.traffic.rows[layer.name])
    if layer.spec.family == "weights":  # of an embedding or a cell it is not known
        return
    for name in layer.spec.weight_names:
        if layer.width("weight", name) != FLOAT_BITS:
            macs = rows * layer.module.get_parameter(name).numel()
            yield Operation(layer.name, macs, FLOAT_BITS, layer.width("weight", name))


def _edge_width(layer: _Layer) -> Place | int:
    """Of what multiplies a source: nothing, which is a one, or else weights or coefficients."""
    if not state_of(layer.module).source_keys:
        return FLOAT_BITS
    choice = kernel_of(layer.module)
    if choice.kernel == "spmm" and not choice.weight:
        return 1
    return layer.width("edge_weight")
