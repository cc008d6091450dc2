"""How far an approximation is from what it stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn.conv import MessagePassing

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.expect import expect_module, expect_tensor

__all__ = ["layer_sqnr", "sqnr"]


def sqnr(reference: Tensor, approximation: Tensor) -> Tensor:
    r"""The signal-to-quantization-noise ratio in decibels

    .. math::
        10 \log_{10} \frac{\| \mathbf{x} \|^2}{\| \mathbf{x} - \mathbf{\hat{x}} \|^2},

    6.02 dB for each bit of a quantizer that is well used; infinite for an exact approximation.

    Args:
        reference (torch.Tensor): The exact values :math:`\mathbf{x}`.
        approximation (torch.Tensor): The approximate values :math:`\mathbf{\hat{x}}`, of the same
            shape.

    Raises:
        InputError: If the shapes differ.

    Example:
        >>> sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5]))
        tensor(20.)
    """
    expect_tensor(reference, "sqnr: reference")
    expect_tensor(approximation, "sqnr: approximation")
    if reference.shape != approximation.shape:
        raise InputError(
            f"sqnr: shapes {list(reference.shape)} and {list(approximation.shape)} differ; both "
            "tensors must hold the same values."
        )
    # In double precision: at 8 bits and more the noise is close to what float32 resolves.
    reference = reference.double()
    noise = (reference - approximation.double()).square().sum()
    return (10 * torch.log10(reference.square().sum() / noise)).float()


@torch.no_grad()
def layer_sqnr(
    reference: nn.Module, model: nn.Module, *args: Any, **kwargs: Any
) -> dict[str, Tensor]:
    r"""The :func:`~torch_geometric_qlr.metrics.sqnr` of what each
    :class:`~torch_geometric.nn.conv.MessagePassing` layer of a quantized model returns, against the
    same layer of its float twin.

    An error counts in its own layer and in all that follow, since each model goes its own way.

    Args:
        reference (torch.nn.Module): The float model.
        model (torch.nn.Module): Its quantized twin, with layers of the same names.
        *args (optional): The input of both models.
        **kwargs (optional): Further arguments of both.

    Returns:
        The ratio in decibels by the name of the layer, in the order of the calls. Of a layer that
        is called several times, the last call counts.

    Raises:
        InputError: If the two models do not have the same layers.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.nn import GCN
        >>> model = GCN(4, 8, num_layers=2).eval()
        >>> x, edge_index = torch.randn(3, 4), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> qmodel = qlr.quantize(model, bits=8)
        >>> list(layer_sqnr(model, qmodel, x, edge_index))
        ['convs.0', 'convs.1']
    """
    expect_module(reference, "layer_sqnr")
    expect_module(model, "layer_sqnr")
    exact = _layer_outputs(reference, args, kwargs)
    rounded = _layer_outputs(model, args, kwargs)
    if exact.keys() != rounded.keys():
        raise InputError(
            f"layer_sqnr: the models have different layers, {list(exact)} and {list(rounded)}. "
            f"Pass a model and its quantized twin, uncompiled."
        )
    return {name: sqnr(exact[name], rounded[name]) for name in exact}


def _layer_outputs(model: nn.Module, args: Any, kwargs: Any) -> dict[str, Tensor]:
    """What the layers that propagate return in a forward pass."""
    outputs: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            outputs[name] = out[0] if isinstance(out, tuple) else out

        return hook

    handles = [
        layer.register_forward_hook(watch(name))
        for name, layer in model.named_modules()
        if isinstance(layer, MessagePassing)
    ]
    try:
        model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
