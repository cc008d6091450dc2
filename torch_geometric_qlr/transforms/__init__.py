"""Model to model, and data to data: what a user calls."""

from torch_geometric_qlr.training import quant_parameters, weight_parameters
from torch_geometric_qlr.transforms.compose import Compose
from torch_geometric_qlr.transforms.convert import Convert, convert, convert_
from torch_geometric_qlr.transforms.pack_data import PackFeatures, UnpackFeatures
from torch_geometric_qlr.transforms.pack_features import pack_features
from torch_geometric_qlr.transforms.quantization_report import PointReport, QuantizationReport
from torch_geometric_qlr.transforms.quantize import Quantize, plan, quantize, quantize_
from torch_geometric_qlr.transforms.report import conversion, report
from torch_geometric_qlr.transforms.smooth_propagation import (
    SmoothEntry,
    SmoothPlan,
    SmoothPropagation,
)

__all__ = [
    "Compose",
    "Convert",
    "PackFeatures",
    "PointReport",
    "QuantizationReport",
    "Quantize",
    "SmoothEntry",
    "SmoothPlan",
    "SmoothPropagation",
    "UnpackFeatures",
    "conversion",
    "convert",
    "convert_",
    "pack_features",
    "plan",
    "quant_parameters",
    "quantize",
    "quantize_",
    "report",
    "weight_parameters",
]
