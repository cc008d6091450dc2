"""Parameters of a quantized model for an optimizer: weights, and the ranges beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.expect import expect_module
from torch_geometric_qlr.layers.state import LayerState
from torch_geometric_qlr.nn.recipe import Point
from torch_geometric_qlr.quantizers import Quantizer

__all__ = ["parameter_groups", "quant_parameters", "weight_parameters"]

#: The rate of the ranges of activations over that of weights. Those that move as fast as weights
#: chase the training nodes, until 2-bit codes have no level left for the others.
_RANGE_RATE = 0.1


def quant_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    r"""What the quantizers of a model learn, multipliers of ranges say, for an optimizer group of
    its own.

    Args:
        model (torch.nn.Module): A quantized model.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> model = qlr.quantize(torch.nn.Linear(4, 2), bits=4)
        >>> optimizer = torch.optim.Adam([
        ...     {"params": qlr.weight_parameters(model), "weight_decay": 5e-4},
        ...     {"params": qlr.quant_parameters(model), "lr": 1e-3},
        ... ])
        >>> [len(group["params"]) for group in optimizer.param_groups]
        [2, 2]
    """
    expect_module(model, "quant_parameters")
    quantizers = (module for module in model.modules() if isinstance(module, Quantizer))
    return (p for quantizer in quantizers for p in quantizer.parameters(recurse=False))


def weight_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    r"""All parameters that are not learned ranges, see :func:`quant_parameters`.

    Args:
        model (torch.nn.Module): A quantized model.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> model = qlr.quantize(torch.nn.Linear(4, 2), bits=4)
        >>> [tuple(p.shape) for p in qlr.weight_parameters(model)]
        [(2, 4), (2,)]
    """
    expect_module(model, "weight_parameters")
    ranges = {id(p) for p in quant_parameters(model)}
    return (p for p in model.parameters() if id(p) not in ranges)


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0, range_lr: float | None = None
) -> list[dict[str, Any]]:
    r"""The parameters of a model in groups for an optimizer: weights; their learned ranges, which
    move at the same rate; and those of features and messages, which move at a tenth of it. Ranges
    do not decay. Of a float model there is one group.

    Args:
        model (torch.nn.Module): A quantized model, or its float twin.
        lr (float): Rate of the weights and their ranges.
        weight_decay (float): Decay of the weights. (default: :obj:`0.0`)
        range_lr (float, optional): Rate of the ranges of features and messages.
            (default: a tenth of :obj:`lr`)

    Raises:
        ConfigError: If a rate or the decay is negative.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> model = qlr.quantize(torch.nn.Linear(4, 2), bits=2)
        >>> groups = qlr.parameter_groups(model, lr=0.01, weight_decay=5e-4)
        >>> optimizer = torch.optim.Adam(groups)
        >>> [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
        [(0.01, 0.0005), (0.01, 0.0), (0.001, 0.0)]
    """
    expect_module(model, "parameter_groups")
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("range_lr", range_lr)):
        if not isinstance(value, (int, float, Tensor, type(None))):
            raise ConfigError(f"{name}={value!r} is no number; choose 0 or more.")
    range_lr = _RANGE_RATE * lr if range_lr is None else range_lr
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("range_lr", range_lr)):
        if not value >= 0.0:
            raise ConfigError(f"{name}={value!r} is out of range; choose 0 or more.")
    of_weights = set(_ranges_of_weights(model))
    ranges = list(quant_parameters(model))
    groups = [
        (list(weight_parameters(model)), lr, weight_decay),
        ([p for p in ranges if id(p) in of_weights], lr, 0.0),
        ([p for p in ranges if id(p) not in of_weights], range_lr, 0.0),
    ]
    return [
        {"params": params, "lr": rate, "weight_decay": decay}
        for params, rate, decay in groups
        if params
    ]


def _ranges_of_weights(model: nn.Module) -> Iterator[int]:
    for module in model.modules():
        if isinstance(module, LayerState):
            for key, quantizer in module.items():
                if Point.of_key(key).kind == "weight":
                    yield from map(id, quantizer.parameters())
