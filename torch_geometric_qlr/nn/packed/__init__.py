"""Converted layers: the quantized ones, re-classed once more, that compute on packed codes."""

from torch_geometric_qlr.nn.packed.conversion import Conversion, ConversionEntry
from torch_geometric_qlr.nn.packed.layer import PackedLayer
from torch_geometric_qlr.nn.packed.linear import PackedLinearLayer, PackedWeightLayer
from torch_geometric_qlr.nn.packed.message_passing import PackedMessagePassing
from torch_geometric_qlr.nn.packed.rewrite import pack_layers

__all__ = [
    "Conversion",
    "ConversionEntry",
    "PackedLayer",
    "PackedLinearLayer",
    "PackedMessagePassing",
    "PackedWeightLayer",
    "pack_layers",
]
