"""Quantized and converted models in one small file: how they are quantized, ranges and codes.

A file is what ``torch.load(path, weights_only=True)`` reads: a dictionary of plain values and one
tensor of bytes. The bytes are a compressed header (what was done to the layers, and the name, type
and shape of every tensor) and all tensors one after the other, codes at their own width without
padding. One stream instead of a record per tensor is what keeps files of small models small.
"""

from torch_geometric_qlr.io.reading import load
from torch_geometric_qlr.io.writing import save

__all__ = ["load", "save"]
