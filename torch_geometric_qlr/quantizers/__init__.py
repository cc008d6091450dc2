"""From values to codes: learned ranges, bitwise truncation, statistics, as Brevitas quantizers."""

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
    "LearnedRangeQuant",
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
]
