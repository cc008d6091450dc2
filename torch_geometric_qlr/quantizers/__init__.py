"""From values to codes: what a quantizer is, the methods, and both as Brevitas quantizers."""

from torch_geometric_qlr.quantizers.base import Quantizer
from torch_geometric_qlr.quantizers.edge_weight import EdgeWeightQuant
from torch_geometric_qlr.quantizers.frozen import FrozenGrid, freeze_ranges
from torch_geometric_qlr.quantizers.functional import fake_quantize
from torch_geometric_qlr.quantizers.injectors import (
    QLRActPerFeature,
    QLRActPerNode,
    QLRActPerTensor,
    QLRActPerTensorBT,
    QLRActPerTensorSkewBT,
    QLRWeightPerChannel,
    QLRWeightPerChannelBT,
    QLRWeightPerChannelSkewBT,
    QLRWeightPerTensor,
)
from torch_geometric_qlr.quantizers.learned_range import LearnedRangeQuant
from torch_geometric_qlr.quantizers.lsq import LearnedStepQuant
from torch_geometric_qlr.quantizers.methods import build_quantizer, check_method
from torch_geometric_qlr.quantizers.min_max import MinMax
from torch_geometric_qlr.quantizers.observing import RangeState
from torch_geometric_qlr.quantizers.ranges import FrozenRange, RangeQuantizer

__all__ = [
    "EdgeWeightQuant",
    "FrozenGrid",
    "FrozenRange",
    "LearnedRangeQuant",
    "LearnedStepQuant",
    "MinMax",
    "Quantizer",
    "RangeQuantizer",
    "RangeState",
    "QLRActPerTensor",
    "QLRActPerFeature",
    "QLRActPerNode",
    "QLRActPerTensorBT",
    "QLRActPerTensorSkewBT",
    "QLRWeightPerTensor",
    "QLRWeightPerChannel",
    "QLRWeightPerChannelBT",
    "QLRWeightPerChannelSkewBT",
    "build_quantizer",
    "check_method",
    "fake_quantize",
    "freeze_ranges",
]
