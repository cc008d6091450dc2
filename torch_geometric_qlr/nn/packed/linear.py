"""Converted Linear layers, and layers of which only the weights are packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import Linear
from torch_geometric.utils import is_torch_sparse_tensor

from torch_geometric_qlr.nn.linear import QuantLinearLayer, QuantWeightLayer
from torch_geometric_qlr.nn.packed.deferred import Epilogue, Stage, stage_of
from torch_geometric_qlr.nn.packed.layer import PackedLayer
from torch_geometric_qlr.nn.packed.scope import backend_scope, defer
from torch_geometric_qlr.nn.packed.weights import PackedWeight
from torch_geometric_qlr.quantizers import FrozenRange
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor
from torch_geometric_qlr.tensor import functional as packed

__all__ = ["PackedLinearLayer", "PackedWeightLayer", "scaled", "why_no_product"]

_FORWARDS = (nn.Linear.forward, Linear.forward)


def why_no_product(layer: QuantLinearLayer) -> str:
    """Why a Linear cannot multiply codes, or an empty string if it can."""
    if layer.float_class.forward not in _FORWARDS:
        return "it is not a plain x W^T + b"
    missing = [name for name in ("input", "weight") if name not in layer.quantizers]
    if missing:
        return f"its {' and '.join(missing)} stays in floating point"
    quantizer: Any = layer.quantizers["input"]
    if quantizer.config.granularity == "feature":
        return "its input has a range per feature, which does not leave the integer product"
    return ""


class PackedLinearLayer(PackedLayer, QuantLinearLayer):
    r"""A Linear that multiplies integer codes,

    .. math::
        \mathbf{X}^{\prime} = S_x \, (\mathbf{C}_x - Z_x) \left( S_w (\mathbf{C}_w - Z_w)
        \right)^{\top} + \mathbf{b}.

    It takes float features, a :class:`~torch_geometric_qlr.tensor.PackedTensor`, whose codes are
    used as they are, and :obj:`torch.sparse` features, of which it reads the stored values only.
    """

    bias: Tensor | None

    def pack_input(self, x: Tensor) -> PackedTensor:
        r"""The input as this layer would quantize it, to be passed in its place from then on.

        Args:
            x (torch.Tensor): Features :math:`(N, F)`.
        """
        quantizer = self.quantizers["input"]
        assert isinstance(quantizer, FrozenRange)
        return quantizer.pack(x)

    def quantized_forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        if self.reason:
            input = input.dequantize() if isinstance(input, PackedTensor) else input
            return super().quantized_forward(input, *args, **kwargs)
        if isinstance(input, Tensor) and is_torch_sparse_tensor(input):
            out = defer(self._times_sparse(input))
        elif isinstance(input, PackedTensor) or input.dim() == 2:
            out = defer(self._times(stage_of(input)))
        else:
            rows = self._times(Stage.of_value(input.reshape(-1, input.size(-1))))
            out = rows.value().view(*input.shape[:-1], rows.shape[1])
        return self.quantize_at("linear_output", out)

    def _times(self, stage: Stage) -> Stage:
        codes = stage.codes(self.quantizers["input"])  # type: ignore[arg-type]
        weight, backend = self._weight.packed, self.backend

        def run(e: Epilogue, out: OutputQuantizer | None) -> Any:
            with backend_scope(backend):
                x, w = scaled(codes, e.factor), stretched(weight, e.column)
                return packed.linear(x, w, bias=e.bias, relu=e.relu, out=out)

        shape, epilogue = (codes.size(0), weight.size(0)), Epilogue(bias=self.bias)
        return Stage(run, shape, codes.device, epilogue, stretches=True, owner=self)

    def _times_sparse(self, x: Tensor) -> Stage:
        quantizer: Any = self.quantizers["input"]
        x = quantizer.quantize_sparse(x)
        x = x if x.layout == torch.sparse_csr else x.to_sparse_csr()
        rowptr, col, values = x.crow_indices(), x.col_indices(), x.values()
        weight, backend = self._weight.transposed(), self.backend

        def run(e: Epilogue, out: OutputQuantizer | None) -> Any:
            value = values if e.factor == 1.0 else values * e.factor
            with backend_scope(backend):
                return packed.sparse_linear(
                    rowptr, col, value, weight, bias=e.bias, relu=e.relu, out=out
                )

        shape = (x.size(0), weight.size(1))
        return Stage(run, shape, x.device, Epilogue(bias=self.bias), owner=self)

    @property
    def _weight(self) -> PackedWeight:
        weight = self.quantizers["weight"]
        assert isinstance(weight, PackedWeight)
        return weight


def scaled(x: PackedTensor, factor: float, column: Tensor | None = None) -> PackedTensor:
    """The values of a packed tensor times a constant, and one for every column."""
    if factor == 1.0 and column is None:
        return x
    scale, zero_point = x.scale * factor, x.zero_point
    if column is not None:
        scale, zero_point = torch.broadcast_tensors(scale * column.view(1, -1), zero_point)
    return PackedTensor(x.data, x.num_cols, x.bits, scale, zero_point)


def stretched(x: PackedTensor, row: Tensor | None) -> PackedTensor:
    """The same with a constant for every row."""
    if row is None:
        return x
    scale, zero_point = torch.broadcast_tensors(x.scale * row.view(-1, 1), x.zero_point)
    return PackedTensor(x.data, x.num_cols, x.bits, scale, zero_point)


class PackedWeightLayer(PackedLayer, QuantWeightLayer):
    r"""A layer whose weights are stored as packed codes and unpacked while it computes; an
    embedding looks up packed rows and unpacks only those."""

    def quantized_forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.float_class is nn.Embedding and self.max_norm is None:  # type: ignore[attr-defined]
            return self._look_up(*args, **kwargs)
        return super().quantized_forward(*args, **kwargs)

    def _look_up(self, input: Tensor) -> Tensor:
        table = self.quantizers["weight"]
        assert isinstance(table, PackedWeight)
        rows = table.packed.index_select(input.reshape(-1))
        return rows.dequantize().view(*input.shape, rows.num_cols)
