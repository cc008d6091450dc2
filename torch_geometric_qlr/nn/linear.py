"""Quantized Linear layers, and layers of which only the parameters are quantized."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.utils import is_torch_sparse_tensor

from torch_geometric_qlr.codes.chains import plain
from torch_geometric_qlr.codes.mode import computes_on_codes, has_codes
from torch_geometric_qlr.codes.product import check_width, product, why_no_product
from torch_geometric_qlr.codes.weight_access import weight_codes
from torch_geometric_qlr.codes.weights import PackedWeight
from torch_geometric_qlr.layers.input_gain import find_gain, lacks_gain, take_weight
from torch_geometric_qlr.layers.layer_spec import facts_of
from torch_geometric_qlr.layers.pyg import is_of_pyg
from torch_geometric_qlr.layers.state import STATE
from torch_geometric_qlr.nn.layer import QuantLayer
from torch_geometric_qlr.nn.registry import class_facts
from torch_geometric_qlr.nn.sparse_linear import sparse_linear
from torch_geometric_qlr.quantizers import fake_quantize
from torch_geometric_qlr.quantizers.sparse_values import row_norms
from torch_geometric_qlr.quantizers.torch_state import is_abstract, runs_plainly
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["QuantDictLinearLayer", "QuantLinearLayer", "QuantWeightLayer"]


class QuantLinearLayer(QuantLayer):
    r"""A layer that multiplies its input by a weight: :class:`torch.nn.Linear`,
    :class:`torch_geometric.nn.Linear`, :class:`torch_geometric.nn.HeteroLinear`,
    :class:`torch.nn.Conv1d` and what :func:`torch_geometric_qlr.register_linear` adds.

    .. math::
        \mathbf{X}^{\prime} = \hat{\mathbf{X}} \hat{\mathbf{W}}^{\top} + \mathbf{b}

    A :obj:`torch.sparse` input keeps its pattern: only stored values are quantized. In evaluation
    without gradients it is the integer product

    .. math::
        \mathbf{X}^{\prime} = S_x \, (\mathbf{C}_x - Z_x) \left( S_w (\mathbf{C}_w - Z_w)
        \right)^{\top} + \mathbf{b}

    that the converted layer computes.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> qlr.quantize(torch.nn.Linear(4, 2), bits=4)(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """

    training: bool

    @classmethod
    def _qlr_namespace(cls, base: type[nn.Module]) -> dict[str, Any]:
        return {"_qlr_facts": class_facts(base)}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kw: Any) -> None:
        if prefix + "weight" in state_dict:
            take_weight(self._qlr, state_dict, f"{prefix}{STATE}.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kw)  # type: ignore[misc]

    def _qlr_forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training and self._qlr.lacks_gain():
            _find_gain(self, input)
        if not (args or kwargs) and _multiplies_codes(self, input):
            out: Any = product(self, input)
        elif _multiplies_sparse(self, input):
            out = _sparse_forward(self, input)
        else:
            input = input.dequantize() if isinstance(input, PackedTensor) else plain(input)
            out = super()._qlr_forward(_quantize_input(self, input), *args, **kwargs)
        return self._qlr.quantize_at("linear_output", out)


def _find_gain(layer: Any, x: Any) -> None:
    """Takes the gain of the model's features from a step that trains the weight."""
    learns = lacks_gain(layer) and torch.is_grad_enabled() and runs_plainly()
    if not learns or is_abstract(layer._parameters["weight"]):
        return
    x = x.dequantize() if isinstance(x, PackedTensor) else x
    if isinstance(x, Tensor) and x.is_floating_point() and x.numel() > 0:
        find_gain(layer, row_norms(x.detach()))


def _multiplies_codes(layer: Any, x: Any) -> bool:
    if not computes_on_codes(layer, x) or why_no_product(layer) or not _is_float32(layer):
        return False
    if isinstance(x, PackedTensor):
        return True
    is_sparse = isinstance(x, Tensor) and is_torch_sparse_tensor(x) and x.dtype == torch.float32
    return is_sparse or has_codes(layer, x)


def _is_float32(layer: Any) -> bool:
    """Whether the weight is in the precision of the integer operations; codes always are."""
    weight = layer._parameters.get("weight")
    return weight is None or weight.dtype == torch.float32


def _multiplies_sparse(layer: Any, x: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and is_torch_sparse_tensor(x)
        and "input" in layer._qlr
        and "forward" not in layer._qlr.replaced
        and facts_of(layer).forward.computes == "product"
    )


def _sparse_forward(layer: Any, x: Tensor) -> Tensor:
    check_width(layer, x)
    x = x.coalesce() if x.layout == torch.sparse_coo else x
    values = layer._qlr["input"].quantize_stored(x)
    return sparse_linear(x, values, layer.weight, layer.bias)


def _quantize_input(layer: Any, x: Any) -> Any:
    if "input" not in layer._qlr or not isinstance(x, Tensor):
        return x
    quantizer: Any = layer._qlr["input"]
    return quantizer.quantize_sparse(x) if is_torch_sparse_tensor(x) else quantizer(x)[0]


class QuantWeightLayer(QuantLayer):
    r"""A layer of which the parameters are quantized and nothing else: embeddings, recurrent cells,
    attention blocks. Or one that reads the weights of its children without calling them.

    An embedding looks up rows first and quantizes those, so that the options of
    :class:`torch.nn.Embedding` (sparse gradients, ``max_norm``) mean what they always do.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> table = qlr.quantize(torch.nn.Embedding(10, 4), bits=2)
        >>> table(torch.tensor([1])).unique().numel() <= 4
        True
    """

    @classmethod
    def _qlr_namespace(cls, base: type[nn.Module]) -> dict[str, Any]:
        return {"_qlr_facts": class_facts(base)}

    def _qlr_forward(self, *args: Any, **kwargs: Any) -> Any:
        facts, state = facts_of(self), self._qlr
        if facts.forward.computes == "lookup" and "weight" in state:
            if "forward" not in state.replaced:
                return _look_up(self, *args, **kwargs)
        child = getattr(self, facts.reads_in_forward, None)
        inside = child.modules() if isinstance(child, nn.Module) else ()
        read = [layer._qlr for layer in inside if isinstance(layer, QuantLayer)]
        outer = [(state, state.begin()) for state in read]
        try:
            return super()._qlr_forward(*args, **kwargs)
        finally:
            for state, before in outer:
                state.end(before)


def _look_up(layer: Any, input: Tensor) -> Tensor:
    """Rows of a table, quantized after they were looked up."""
    index = input.reshape(-1)
    if _looks_up_codes(layer, input):
        packed = weight_codes(layer, "weight").packed.index_select(index)
        return packed.dequantize().view(*input.shape, packed.num_cols)
    weight, quantizer = layer._parameters["weight"], layer._qlr["weight"]
    options = (layer.padding_idx, layer.max_norm, layer.norm_type, layer.scale_grad_by_freq)
    rows = F.embedding(index, weight, *options, layer.sparse)
    PackedWeight.start(quantizer, weight)
    scale, zero_point, skew = quantizer.code_params(quantizer.groups.matrix(weight.detach()))
    if quantizer.groups.axis == 0:  # a range per row
        scale, zero_point = scale[index], zero_point[index]
    rows = fake_quantize(
        *(rows, scale, zero_point, quantizer.bits),
        truncate=quantizer.config.truncates,
        skew=skew,
    )
    return rows.view(*input.shape, rows.size(-1))


def _looks_up_codes(layer: Any, index: Tensor) -> bool:
    if isinstance(layer._qlr["weight"], PackedWeight):
        return True
    is_float32 = layer._parameters["weight"].dtype == torch.float32
    return is_float32 and layer.max_norm is None and computes_on_codes(layer, index)


class QuantDictLinearLayer(QuantLayer):
    r"""A :class:`~torch_geometric.nn.HeteroDictLinear` whose Linears are quantized: each is called,
    never fused with the others. A forward that somebody else has written runs as it is."""

    lins: nn.ModuleDict

    def _qlr_forward(self, *args: Any, **kwargs: Any) -> Any:
        written = type(self)._qlr_made.base.forward
        if not is_of_pyg(written) or "forward" in self._qlr.replaced:
            return super()._qlr_forward(*args, **kwargs)
        return self._qlr_call_each(*args, **kwargs)

    def _qlr_call_each(self, x_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: lin(x_dict[key]) for key, lin in self.lins.items() if key in x_dict}
