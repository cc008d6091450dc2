"""Quantized Linear layers, and layers of which only the parameters are quantized."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch_geometric.utils import is_torch_sparse_tensor

from torch_geometric_qlr.nn.layer import QuantLayer

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
        out = super().quantized_forward(self._quantize_input(input), *args, **kwargs)
        return self.quantize_at("linear_output", out)

    def _quantize_input(self, x: Any) -> Any:
        if "input" in self.quantizers and isinstance(x, Tensor) and is_torch_sparse_tensor(x):
            quantize_sparse: Any = self.quantizers["input"].quantize_sparse
            return quantize_sparse(x)
        return self.quantize_at("input", x)


class QuantWeightLayer(QuantLayer):
    r"""A layer of which the parameters are quantized and nothing else: embeddings, recurrent cells,
    attention blocks.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> table = qlr.quantize(torch.nn.Embedding(10, 4), bits=2)
        >>> table(torch.tensor([1])).unique().numel() <= 4
        True
    """

    #: Children whose weight the forward reads without calling them.
    reads_weights_of: tuple[str, ...] = ()

    def quantized_forward(self, *args: Any, **kwargs: Any) -> Any:
        children = [getattr(self, name) for name in self.reads_weights_of if hasattr(self, name)]
        read = [child for child in children if isinstance(child, QuantLayer)]
        for child in read:
            child._quantized_weights = {}
        try:
            return super().quantized_forward(*args, **kwargs)
        finally:
            for child in read:
                child._quantized_weights = None

    @classmethod
    def _namespace(cls, base: type[nn.Module]) -> dict[str, Any]:
        reads = ("out_proj",) if issubclass(base, nn.MultiheadAttention) else ()
        return {"reads_weights_of": reads}


class QuantDictLinearLayer(QuantLayer):
    r"""A :class:`~torch_geometric.nn.HeteroDictLinear` whose Linears are quantized: each is called,
    never fused with the others."""

    lins: nn.ModuleDict

    def quantized_forward(self, x_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: lin(x_dict[key]) for key, lin in self.lins.items() if key in x_dict}
