"""From values to codes: learned ranges, bitwise truncation, statistics, as Brevitas quantizers."""

from torch_geometric_qlr.quantizers.base import RangeQuantizer, RangeState
from torch_geometric_qlr.quantizers.frozen import FrozenRange, freeze_ranges
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
    build_quantizer,
)
from torch_geometric_qlr.quantizers.learned_range import LearnedRangeQuant

__all__ = [
    "FrozenRange",
    "LearnedRangeQuant",
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
    "fake_quantize",
    "freeze_ranges",
]
