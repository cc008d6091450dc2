"""The ops of namespace ``qlr``: one schema each, and the shape of what they return.

An op has a schema and a fake kernel here, checks of its arguments that all implementations share
(`arguments.py`), the reference implementation on every device
(`registry.py`), and kernels that back ends register on top.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr.ops.arguments import check_arguments
from torch_geometric_qlr.ops.layout import row_layout, storage_bits

__all__ = ["LIBRARY", "NAMES", "SmpOptions", "checked", "reduced_shape"]

LIBRARY = torch.library.Library("qlr", "DEF")

_PACKED = "Tensor packed, SymInt num_cols, int bits, Tensor scale, Tensor zero_point"
_GRAPH = "Tensor rowptr, Tensor col"
_QUANTIZER = "Tensor scale, Tensor zero_point, int bits, bool truncate=False, Tensor? skew=None"
# With out_scale the result is quantized and packed, without it it is float.
_OUTPUT = (
    "Tensor? out_scale=None, Tensor? out_zero_point=None, int out_bits=8, "
    "bool out_truncate=False, Tensor? out_skew=None"
)
_WEIGHTS = "Tensor? edge_weight=None, Tensor? source_weight=None, Tensor? row_scale=None"
_EPILOGUE = "Tensor? bias=None, Tensor? addend=None, float addend_scale=1.0"


class SmpOptions(NamedTuple):
    """What :class:`torch_geometric_qlr.nn.SMP` is told, for ``packed_smp``."""

    mu: float = 9.0
    eta: float = 0.1
    eta_lambda: float = 1e-5
    eta_slack: float = 1e-5
    init_lambda: float = 1e-3
    init_slack: float = 1e-3
    bound: float = 0.0
    primal: str = "paper"
    projection: str = "none"


_SMP = ", ".join(
    f"{type(default).__name__} {name}={default!r}"
    for name, default in SmpOptions._field_defaults.items()
)

_SCHEMAS = (
    f"quantize_pack(Tensor x, {_QUANTIZER}) -> Tensor",
    "pack(Tensor codes, int bits) -> Tensor",
    "unpack(Tensor packed, SymInt num_cols, int bits) -> Tensor",
    f"dequantize_packed({_PACKED}) -> Tensor",
    "index_select(Tensor packed, Tensor index) -> Tensor",
    f"packed_spmm({_GRAPH}, {_PACKED}, {_WEIGHTS}, {_EPILOGUE}, str reduce='sum', "
    f"bool relu=False, {_OUTPUT}) -> Tensor",
    f"packed_propagate({_GRAPH}, {_PACKED}, Tensor step_scale, Tensor step_zero_point, "
    "int step_bits, bool step_truncate=False, Tensor? step_skew=None, Tensor? edge_weight=None, "
    f"float factor=1.0, Tensor? addend=None, float addend_scale=1.0, {_OUTPUT}) -> Tensor",
    f"packed_smp({_GRAPH}, Tensor x, Tensor step_scale, Tensor step_zero_point, int step_bits, "
    "bool step_truncate=False, Tensor? step_skew=None, Tensor? edge_weight=None, "
    f"{_SMP}) -> Tensor",
    f"packed_extremum({_GRAPH}, {_PACKED}, bool largest=True) -> Tensor",
    f"packed_attention({_GRAPH}, {_PACKED}, Tensor alpha, Tensor? bias=None, bool relu=False, "
    f"{_OUTPUT}) -> Tensor",
    f"packed_linear({_PACKED}, Tensor weight, int weight_bits, Tensor weight_scale, "
    f"Tensor weight_zero_point, Tensor? bias=None, bool relu=False, {_OUTPUT}) -> Tensor",
    f"spmm({_GRAPH}, Tensor x, {_WEIGHTS}, {_EPILOGUE}, str reduce='sum', bool relu=False) "
    "-> Tensor",
    f"fake_quantize(Tensor x, {_QUANTIZER}) -> (Tensor, Tensor)",
    "fake_quantize_backward(Tensor grad, Tensor x, Tensor x_hat, Tensor mask, int axis=-1) "
    "-> (Tensor, Tensor)",
)

NAMES = tuple(schema.split("(")[0] for schema in _SCHEMAS)

for _schema in _SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def _rows(like: Tensor, rows: int, cols: int, out_scale: Tensor | None, out_bits: int) -> Tensor:
    """An output of this many rows, float or packed."""
    if out_scale is None:
        return like.new_empty((rows, cols), dtype=torch.float32)
    stride = row_layout(cols, storage_bits(out_bits)).stride
    return like.new_empty((rows, stride), dtype=torch.uint8)


def checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function called with checked arguments, all by name."""
    takes = getattr(torch.ops.qlr, name).default._schema.arguments
    names = [argument.name for argument in takes]
    tensors = [argument.name for argument in takes if str(argument.type) == "Tensor"]

    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(zip(names, args, strict=False), **kwargs)
        check_arguments(name, arguments, tensors)
        return function(**arguments)

    return call


def _packed_rows(x: Tensor, bits: int, **_: Any) -> Tensor:
    return _rows(x, x.size(0), x.size(1), x, bits)


def _unpacked(packed: Tensor, num_cols: int, **_: Any) -> Tensor:
    return packed.new_empty((packed.size(0), num_cols))


def _values(packed: Tensor, num_cols: int, **_: Any) -> Tensor:
    return packed.new_empty((packed.size(0), num_cols), dtype=torch.float32)


def _selected(packed: Tensor, index: Tensor) -> Tensor:
    return packed.new_empty((index.size(0), packed.size(1)))


def _gathered(
    rowptr: Tensor,
    packed: Tensor,
    num_cols: int,
    out_scale: Tensor | None = None,
    out_bits: int = 8,
    **_: Any,
) -> Tensor:
    return _rows(packed, rowptr.size(0) - 1, num_cols, out_scale, out_bits)


def _product(
    packed: Tensor,
    weight: Tensor,
    out_scale: Tensor | None = None,
    out_bits: int = 8,
    **_: Any,
) -> Tensor:
    return _rows(packed, packed.size(0), weight.size(0), out_scale, out_bits)


def _float_gathered(rowptr: Tensor, x: Tensor, **_: Any) -> Tensor:
    return x.new_empty((rowptr.size(0) - 1, x.size(1)), dtype=torch.float32)


def _fake_quantized(x: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    x_hat = torch.empty_like(x, memory_format=torch.contiguous_format)
    return x_hat, torch.empty_like(x_hat, dtype=torch.bool)


def reduced_shape(x: Tensor, axis: int) -> tuple[int, ...]:
    """The shape of one number per tensor (-1), row (0) or column (1)."""
    if axis == -1:
        return ()
    return (x.size(0), 1) if axis == 0 else (1, x.size(1))


def _fake_quantized_backward(
    grad: Tensor, x: Tensor, axis: int = -1, **_: Any
) -> tuple[Tensor, Tensor]:
    reduced = grad.new_empty(reduced_shape(x, axis), dtype=torch.float32)
    return torch.empty_like(grad, memory_format=torch.contiguous_format), reduced


_FAKES: dict[str, Callable[..., Any]] = {
    "quantize_pack": _packed_rows,
    "pack": lambda codes, bits: _packed_rows(codes, bits),
    "unpack": _unpacked,
    "dequantize_packed": _values,
    "index_select": _selected,
    "packed_spmm": _gathered,
    "packed_propagate": _gathered,
    "packed_smp": _float_gathered,
    "packed_extremum": _gathered,
    "packed_attention": _gathered,
    "packed_linear": _product,
    "spmm": _float_gathered,
    "fake_quantize": _fake_quantized,
    "fake_quantize_backward": _fake_quantized_backward,
}

for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"qlr::{_name}", checked(_name, _fake), lib=LIBRARY)
