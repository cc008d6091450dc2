"""Model to model: what a user calls."""

from torch_geometric_qlr.transforms.compose import Compose
from torch_geometric_qlr.transforms.quantize import (
    Quantize,
    plan,
    quant_parameters,
    quantize,
    quantize_,
    weight_parameters,
)
from torch_geometric_qlr.transforms.smooth_propagation import (
    SmoothEntry,
    SmoothPlan,
    SmoothPropagation,
)

__all__ = [
    "Compose",
    "Quantize",
    "SmoothEntry",
    "SmoothPlan",
    "SmoothPropagation",
    "plan",
    "quant_parameters",
    "quantize",
    "quantize_",
    "weight_parameters",
]
