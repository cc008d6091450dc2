"""What a training loop of a quantized model may use: groups for the optimizer, a loss."""

from torch_geometric_qlr.training.decay import watch_decay
from torch_geometric_qlr.training.distillation import distill
from torch_geometric_qlr.training.groups import (
    parameter_groups,
    quant_parameters,
    weight_parameters,
)

__all__ = ["distill", "parameter_groups", "quant_parameters", "watch_decay", "weight_parameters"]
