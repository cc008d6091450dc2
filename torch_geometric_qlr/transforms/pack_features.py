"""Features as the first layer of a model would round them, packed once for many calls."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from torch_geometric_qlr.errors import InputError, NothingToQuantizeError, QLRWarning
from torch_geometric_qlr.expect import expect_module
from torch_geometric_qlr.layers.state import state_of
from torch_geometric_qlr.nn.layer import QuantLayer
from torch_geometric_qlr.nn.planner import readers_of_input
from torch_geometric_qlr.quantizers import Quantizer
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["input_quantizers", "pack_features"]


def pack_features(model: nn.Module, x: Tensor) -> PackedTensor:
    r"""Node features as packed codes, to be passed to a converted model in the place of the floats.

    The codes are those that the model's first layer makes of the floats, so the model answers the
    same. Features that do not change need not be rounded in every call, and take :math:`b / 32` of
    the memory.

    Args:
        model (torch.nn.Module): A model from :func:`~torch_geometric_qlr.convert`.
        x (torch.Tensor): Features :math:`(N, F)`, float32.

    Raises:
        NothingToQuantizeError: If no layer quantizes the features that enter the model.
        InputError: If :obj:`x` is no float matrix, or holds NaN or Inf.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.nn import GCN
        >>> x, edge_index = torch.rand(3, 64), torch.tensor([[0, 1], [1, 2]])
        >>> model = qlr.quantize(GCN(64, 16, num_layers=2, out_channels=4), bits=4).eval()
        >>> _ = model(x, edge_index)
        >>> model = qlr.convert(model)
        >>> features = qlr.pack_features(model, x)
        >>> features.bits, features.data.nbytes / x.nbytes
        (4, 0.125)
        >>> torch.equal(model(features, edge_index), model(x, edge_index))
        True
    """
    if not isinstance(x, Tensor) or x.dim() != 2 or not x.is_floating_point():
        shown = f"{x.dtype} of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"pack_features: x must be a matrix of floats [N, F], got {shown}.")
    (path, quantizer), *others = input_quantizers(model).items()
    packed = quantizer.pack(x.float())
    different = [other for other, q in others if not packed.equal(q.pack(x.float()))]
    if different:
        listed = ", ".join(different)
        warnings.warn(
            f"pack_features: the features are rounded as {path} does; {listed} "
            f"would round them otherwise, so the answers can differ by that.",
            QLRWarning,
            stacklevel=2,
        )
    # The numbers of a fixed range are the model's.
    own = packed.scale.clone(), packed.zero_point.clone()
    return PackedTensor(packed.data, packed.num_cols, packed.bits, *own)


def input_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    r"""What quantizes the features that enter a model, by its path; the first is the first layer's.

    Args:
        model (torch.nn.Module): A quantized or converted model.

    Raises:
        NothingToQuantizeError: If nothing does.
    """
    expect_module(model, "pack_features")
    found = {
        f"{name}.{point}" if name else point: _first(state_of(layer)[point])
        for name, layer, point in readers_of_input(model)
        if isinstance(layer, QuantLayer) and point in state_of(layer)
    }
    if not found:
        raise NothingToQuantizeError(
            f"{type(model).__name__}: no layer quantizes the features that enter it. Quantize and "
            f"convert the model first, with input_bits of at most 8."
        )
    return found


def _first(found: Any) -> Quantizer:
    first: Any = found[0] if isinstance(found, nn.ModuleList) else found
    quantizer: Quantizer = first
    return quantizer
