"""Quantized Linear layers, and layers of which only the parameters are quantized."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import Linear
from torch_geometric.utils import is_torch_sparse_tensor

from torch_geometric_qlr.nn.layer import QuantLayer
from torch_geometric_qlr.nn.registry import find_by_name
from torch_geometric_qlr.nn.sparse_linear import sparse_linear
from torch_geometric_qlr.nn.table import READ_IN_FORWARD

__all__ = ["QuantLinearLayer", "QuantDictLinearLayer", "QuantWeightLayer"]


class QuantLinearLayer(QuantLayer):
    r"""A layer that multiplies its input by a weight: :class:`torch.nn.Linear`,
    :class:`torch_geometric.nn.Linear`, :class:`torch_geometric.nn.HeteroLinear`,
    :class:`torch.nn.Conv1d` and what :func:`torch_geometric_qlr.register_linear` adds.

    .. math::
        \mathbf{X}^{\prime} = \hat{\mathbf{X}} \hat{\mathbf{W}}^{\top} + \mathbf{b}

    A :obj:`torch.sparse` input keeps its pattern: only stored values are quantized.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> qlr.quantize(torch.nn.Linear(4, 2), bits=4)(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """

    def quantized_forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        if self._multiplies_sparse(input):
            out = self._sparse_forward(input)
        else:
            out = super().quantized_forward(self._quantize_input(input), *args, **kwargs)
        return self.quantize_at("linear_output", out)

    def _multiplies_sparse(self, x: Any) -> bool:
        return (
            "input" in self.quantizers
            and self.float_class in (nn.Linear, Linear)
            and isinstance(x, Tensor)
            and is_torch_sparse_tensor(x)
        )

    def _sparse_forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        x = x.coalesce() if x.layout == torch.sparse_coo else x
        values = layer.quantizers["input"].quantize_stored(x)
        return sparse_linear(x, values, layer.weight, layer.bias)

    def _quantize_input(self, x: Any) -> Any:
        if "input" not in self.quantizers or not isinstance(x, Tensor):
            return x
        quantizer: Any = self.quantizers["input"]
        return quantizer.quantize_sparse(x) if is_torch_sparse_tensor(x) else quantizer(x)[0]


class QuantWeightLayer(QuantLayer):
    r"""A layer of which the parameters are quantized and nothing else: embeddings, recurrent cells,
    attention blocks. Or one that reads the weights of its children without calling them.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> table = qlr.quantize(torch.nn.Embedding(10, 4), bits=2)
        >>> table(torch.tensor([1])).unique().numel() <= 4
        True
    """

    #: Child whose weights the forward reads without calling it.
    _reads_weights_of: str | None = None

    def quantized_forward(self, *args: Any, **kwargs: Any) -> Any:
        child = getattr(self, self._reads_weights_of or "", None)
        inside = child.modules() if isinstance(child, nn.Module) else ()
        read = [layer for layer in inside if isinstance(layer, QuantLayer)]
        for layer in read:
            layer._quantized_weights = {}
        try:
            return super().quantized_forward(*args, **kwargs)
        finally:
            for layer in read:
                layer._quantized_weights = None

    @classmethod
    def _namespace(cls, base: type[nn.Module]) -> dict[str, Any]:
        return {"_reads_weights_of": find_by_name(READ_IN_FORWARD, base)}


class QuantDictLinearLayer(QuantLayer):
    r"""A :class:`~torch_geometric.nn.HeteroDictLinear` whose Linears are quantized: each is called,
    never fused with the others."""

    lins: nn.ModuleDict

    def quantized_forward(self, x_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: lin(x_dict[key]) for key, lin in self.lins.items() if key in x_dict}
