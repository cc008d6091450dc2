"""Quantized and converted models in one small file: how they are quantized, ranges and codes.

A file is a safetensors file: the tensors one after the other, codes at their own width without
padding, and in its metadata what was done to the layers, as text. Older ones, which
``torch.save`` wrote, are read as well. What is exported runs elsewhere, and is not read back.
"""

from torch_geometric_qlr.io.answers import Difference
from torch_geometric_qlr.io.exporting import Exported, export
from torch_geometric_qlr.io.hub import from_pretrained, save_pretrained
from torch_geometric_qlr.io.reading import load
from torch_geometric_qlr.io.writing import save

__all__ = ["Difference", "Exported", "export", "from_pretrained", "load", "save", "save_pretrained"]
