"""Converted layers: the quantized ones, re-classed once more, that compute on packed codes only."""

from torch_geometric_qlr.nn.packed.layer import (
    PackedLayer,
    PackedLinearLayer,
    PackedMessagePassing,
    PackedWeightLayer,
)
from torch_geometric_qlr.nn.packed.pack import pack_layers
from torch_geometric_qlr.nn.packed.report import Conversion, ConversionEntry

__all__ = [
    "Conversion",
    "ConversionEntry",
    "PackedLayer",
    "PackedLinearLayer",
    "PackedMessagePassing",
    "PackedWeightLayer",
    "pack_layers",
]
