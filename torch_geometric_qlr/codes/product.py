"""Products of packed features with packed weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.index import index2ptr

from torch_geometric_qlr.codes.chains import codes_of, handed_out, may_wait
from torch_geometric_qlr.codes.stage import NO_EPILOGUE, Epilogue, Stage
from torch_geometric_qlr.codes.weight_access import weight_codes
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.layers.layer_spec import facts_of
from torch_geometric_qlr.layers.state import LayerState, state_of, where_is
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor
from torch_geometric_qlr.tensor import functional as packed

__all__ = ["check_width", "product", "why_no_product"]


def why_no_product(layer: Any) -> str:
    r"""Why a quantized Linear cannot multiply codes, or an empty string if it can.

    Args:
        layer (torch.nn.Module): The layer.
    """
    state = state_of(layer)
    if not state.converted:
        return _obstacle(layer, state)
    reason: str = state.remembered("product", (), lambda: _obstacle(layer, state))
    return reason


def _obstacle(layer: Any, state: LayerState) -> str:
    if "forward" in state.replaced:
        return "its forward was replaced on the object"
    if facts_of(layer).forward.computes != "product":
        return "it is not a plain x W^T + b"
    missing = [name for name in ("input", "weight") if name not in state]
    if missing:
        return f"its {' and '.join(missing)} stays in floating point"
    if state.quantizer_at("input").config.granularity == "feature":
        return "its input has a range per feature, which does not leave the integer product"
    return ""


def product(layer: Any, x: Any) -> Tensor:
    r"""What a quantized Linear gives for dense, packed or sparse features.

    Args:
        layer (torch.nn.Module): The layer.
        x (torch.Tensor or PackedTensor): The features.
    """
    if isinstance(x, Tensor) and x.layout != torch.strided:
        return handed_out(_of_sparse(layer, x))
    out = _at_once(layer, x) if type(x) is Tensor else None
    if out is not None:
        return out
    if isinstance(x, PackedTensor) or x.dim() == 2:
        return handed_out(_of_codes(layer, codes_of(x, state_of(layer)["input"])))
    rows = x.reshape(-1, x.size(-1))
    stage = _of_codes(layer, codes_of(rows, state_of(layer)["input"]))
    return stage.value().view(*x.shape[:-1], stage.shape[1])


def _at_once(layer: Any, x: Tensor) -> Tensor | None:
    """The product of floats in one op; :obj:`None` if codes have to be made first, as for a result
    that may wait for what follows it."""
    state = state_of(layer)
    quantizer: Any = state._modules["input"]
    if not quantizer.is_frozen or state.backend != "auto":
        return None
    weight = weight_codes(layer, "weight")
    if x.size(-1) != weight.num_cols or may_wait(x.size(0), weight.data.size(0)):
        return None
    grid = quantizer.row_grid(x)
    if grid is None:
        return None
    factor = (weight.data, weight.bits, weight.scale, weight.zero_point)
    try:
        out: Tensor = torch.ops.qlr.quantize_linear(x, *grid, *factor, layer.bias)
    except InputError as error:
        raise InputError(f"{where_is(layer)}: {error}") from None
    return out


def _of_codes(layer: Any, codes: PackedTensor) -> Stage:
    state, weight, own_bias = state_of(layer), weight_codes(layer, "weight").packed, layer.bias

    def run(e: Epilogue, out: OutputQuantizer | None) -> Any:
        if e is NO_EPILOGUE:  # as in a small model always
            return packed.linear(codes, weight, bias=own_bias, out=out)
        return packed.linear(
            codes,
            _stretched(weight, e.column),
            bias=_joined(own_bias, e),
            relu=e.relu,
            out=out,
        )

    shape = (codes.data.size(0), weight.data.size(0))
    return Stage(run, shape, codes.data.device, state, biases=own_bias is None, stretches=True)


def check_width(layer: Any, x: Tensor) -> None:
    """Refuses sparse features that are not as wide as the weight."""
    width = layer.weight.size(-1)
    if x.dim() != 2 or x.size(-1) != width:
        raise InputError(
            f"{where_is(layer)}: the features have the shape {list(x.shape)}, and the weight takes "
            f"[N, {width}]. Pass features of {width} columns."
        )


def _of_sparse(layer: Any, x: Tensor) -> Stage:
    check_width(layer, x)
    state = state_of(layer)
    x = state.quantizer_at("input").quantize_sparse(x)
    rowptr, col, values = _compressed(x)
    weight, own_bias = weight_codes(layer, "weight").transposed(), layer.bias

    def run(e: Epilogue, out: OutputQuantizer | None) -> Any:
        bias = _joined(own_bias, e)
        return packed.sparse_linear(rowptr, col, values, weight, bias=bias, relu=e.relu, out=out)

    shape = (x.size(0), weight.size(1))
    return Stage(run, shape, x.device, state, biases=own_bias is None)


def _compressed(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the values of each row begin, their columns, and they themselves. Not as a matrix of
    torch, which warns of the first one."""
    if x.layout == torch.sparse_csr:
        return x.crow_indices(), x.col_indices(), x.values()
    x = x.to_sparse_coo().coalesce()
    row, col = x.indices()
    return index2ptr(row, x.size(0)), col, x.values()


def _joined(own: Tensor | None, e: Epilogue) -> Tensor | None:
    """The layer's own bias and what follows it: one of them, or batch norm's factor and shift."""
    if own is None or (e.bias is None and e.column is None):
        return own if e.bias is None else e.bias
    assert e.column is not None and e.bias is not None
    return torch.addcmul(e.bias, e.column, own)


def _stretched(x: PackedTensor, row: Tensor | None) -> PackedTensor:
    """The values of a packed tensor times a constant for every row."""
    if row is None:
        return x
    scale, zero_point = torch.broadcast_tensors(x.scale * row.view(-1, 1), x.zero_point)
    return PackedTensor.unchecked(x.data, x.num_cols, x.bits, scale, zero_point)
