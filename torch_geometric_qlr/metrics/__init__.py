"""How smooth a representation is, how much a layer changes it, and how much quantization costs."""

from __future__ import annotations

from torch_geometric_qlr.metrics.edge_weights import DegreeBucket, edge_weight_error
from torch_geometric_qlr.metrics.error import layer_sqnr, sqnr
from torch_geometric_qlr.metrics.pairs import sample_pairs
from torch_geometric_qlr.metrics.recorder import DepthRecorder
from torch_geometric_qlr.metrics.smoothness import (
    dirichlet_energy,
    mean_average_distance,
    smoothness_change,
)

__all__ = [
    "DegreeBucket",
    "DepthRecorder",
    "dirichlet_energy",
    "edge_weight_error",
    "layer_sqnr",
    "mean_average_distance",
    "sample_pairs",
    "smoothness_change",
    "sqnr",
]
