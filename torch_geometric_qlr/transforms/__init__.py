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

__all__ = [
    "Compose",
    "Quantize",
    "plan",
    "quant_parameters",
    "quantize",
    "quantize_",
    "weight_parameters",
]
