"""Inference on a whole graph, layer by layer and block by block of nodes."""

from torch_geometric_qlr.layerwise.infer import inference

__all__ = ["inference"]
