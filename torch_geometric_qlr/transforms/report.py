"""What quantization or conversion did to a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from torch_geometric_qlr.errors import (
    AlreadyQuantizedError,
    NothingToQuantizeError,
    UnsupportedLayerError,
)
from torch_geometric_qlr.nn import QuantLayer
from torch_geometric_qlr.nn.packed import Conversion, PackedLayer
from torch_geometric_qlr.transforms.measured_report import measure_report
from torch_geometric_qlr.transforms.quantization_report import QuantizationReport

__all__ = ["conversion", "report"]


def report(model: nn.Module, *inputs: Any, **kwargs: Any) -> Conversion | QuantizationReport:
    r"""Of a converted model, what computes each layer, and why not packed. Of a quantized model and
    an input, what rounding costs: for each place the width, the range, what is clipped, the SQNR
    there, and the SQNR of the output if nothing else is rounded; and the bytes of weights, features
    and messages, before and after. Both print as a table.

    The model is not changed. It is measured in evaluation with the ranges that it has.

    Args:
        model (torch.nn.Module): A model from :func:`~torch_geometric_qlr.convert`; or one from
            :func:`~torch_geometric_qlr.quantize` that has seen data.
        *inputs (optional): What a quantized model is called with.
        **kwargs (optional): The same by name.

    Raises:
        NothingToQuantizeError: If the model is not converted, or with inputs, not quantized.
        AlreadyQuantizedError: If there are inputs for a converted model.
        ConfigError: If a place that the input reaches has no range yet, or the output is zero.
        UnsupportedLayerError: If it is no model.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.nn import GraphSAGE
        >>> x, edge_index = torch.rand(3, 8), torch.tensor([[0, 1], [1, 2]])
        >>> model = qlr.quantize(GraphSAGE(8, 16, num_layers=2, out_channels=4), bits=4)
        >>> _ = qlr.calibrate(model, (x, edge_index), progress=False)
        >>> report = qlr.report(model, x, edge_index)
        >>> report.bits, report.bytes["features"]
        ({4: 10}, (576, 72))
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedLayerError(
            f"Expected a quantized or converted torch.nn.Module (got {type(model).__name__})."
        )
    if inputs or kwargs:
        _check_quantized(model)
        return measure_report(model, lambda model: model(*inputs, **kwargs))
    done = Conversion.of(model)
    if not done.entries:
        raise NothingToQuantizeError(
            f"{type(model).__name__} has no converted layer. Call qlr.convert(model) first, or "
            f"pass the inputs of a quantized model to see what rounding costs."
        )
    return done


#: The name of :func:`report` in release 0.1; it goes with 1.0.
conversion = report


def _check_quantized(model: nn.Module) -> None:
    name = type(model).__name__
    if any(isinstance(module, PackedLayer) for module in model.modules()):
        raise AlreadyQuantizedError(
            f"{name} is converted, and has no floats to compare with. Pass the quantized model "
            f"with these inputs, or the converted one alone."
        )
    if not any(isinstance(module, QuantLayer) for module in model.modules()):
        raise NothingToQuantizeError(
            f"{name} is not quantized, so nothing is rounded. Call qlr.quantize(model) first."
        )
