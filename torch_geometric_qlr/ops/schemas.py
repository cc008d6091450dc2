"""The ops of namespace ``qlr``: one schema each, and the shape of what they return.

The schemas stand in `schemas.inc`, which C++ includes and this module reads. An op has a fake
kernel here, checks of its arguments that all implementations share (`arguments.py`), the reference
implementation on every device (`registry.py`), and kernels that back ends register on top.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr.ops import compressed_rows, observed, row_ranges
from torch_geometric_qlr.ops.arguments import check_arguments
from torch_geometric_qlr.ops.layout import row_layout, storage_bits
from torch_geometric_qlr.ops.no_gradient import refuse_gradient

__all__ = ["LIBRARY", "NAMES", "SIGNATURES", "Signature", "SmpOptions"]

# A program in C++ that runs Python may have defined the ops already.
LIBRARY = torch.library.Library("qlr", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag,)


def _read() -> tuple[str, ...]:
    """The lines between the marks of a C++ string literal."""
    text = Path(__file__).with_name("schemas.inc").read_text(encoding="utf-8")
    return tuple(text.splitlines()[1:-1])


class SmpOptions(NamedTuple):
    """What :class:`torch_geometric_qlr.nn.SMP` is told, for ``packed_smp``."""

    mu: float
    eta: float
    eta_lambda: float
    eta_slack: float
    init_lambda: float
    init_slack: float
    tau: float
    primal: str
    projection: str


def _rows(like: Tensor, rows: int, cols: int, out_scale: Tensor | None, out_bits: int) -> Tensor:
    """An output of this many rows, float or packed."""
    if out_scale is None:
        return like.new_empty((rows, cols), dtype=torch.float32)
    stride = row_layout(cols, storage_bits(out_bits)).stride
    return like.new_empty((rows, stride), dtype=torch.uint8)


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


def _reduced_shape(x: Tensor, axis: int) -> tuple[int, ...]:
    """The shape of one number per tensor (-1), row (0) or column (1)."""
    if axis == -1:
        return ()
    return (x.size(0), 1) if axis == 0 else (1, x.size(1))


def _fake_quantized_backward(
    grad: Tensor, x: Tensor, axis: int = -1, **_: Any
) -> tuple[Tensor, Tensor]:
    reduced = grad.new_empty(_reduced_shape(x, axis), dtype=torch.float32)
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
    "quantize_rows": row_ranges.fake,
    "csr": compressed_rows.fake,
    "fake_quantize": _fake_quantized,
    "fake_quantize_backward": _fake_quantized_backward,
    "observed_quantize": observed.fake,
    "observed_quantize_backward": observed.fake_backward,
}


class Signature:
    """An op as its schema has it.

    Args:
        text (str): The schema.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = text.partition("(")[0]
        #: The op that answers for its kernel (`companions.py`). It takes the same, words as the
        #: numbers of their bytes (csrc/torch/detour.cpp).
        self.companion = f"{self.name}_in_python"
        if not hasattr(torch.ops.qlr, self.name):
            LIBRARY.define(text, tags=_TAGS)
        spelled = re.sub(r"\bstr (\w+)='\w*'", r"int[] \1=[]", text)
        LIBRARY.define(spelled.replace(self.name, self.companion, 1), tags=_TAGS)
        self.overload = getattr(torch.ops.qlr, self.name).default
        schema = self.overload._schema
        self.results = len(schema.returns)
        #: Those that must be tensors: the dispatcher takes :obj:`None` for any.
        self.tensors = [a.name for a in schema.arguments if str(a.type) == "Tensor"]
        self._defaults = {a.name: a.default_value for a in schema.arguments}
        self._words = [a.name for a in schema.arguments if str(a.type) == "str"]

    def bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments of a call by name, in the order of the schema."""
        return {**self._defaults, **dict(zip(self._defaults, args, strict=False)), **kwargs}

    def spell(self, arguments: dict[str, Any]) -> list[Any]:
        """Arguments in the order and form in which the companion takes them."""
        spelled = {name: list(arguments[name].encode()) for name in self._words}
        return list({**arguments, **spelled}.values())

    def read(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the op, from those of its companion."""
        arguments = self.bind(args, kwargs)
        for name in self._words:
            arguments[name] = bytes(arguments[name]).decode(errors="replace")
        return arguments

    def on_cpu(self, arguments: dict[str, Any]) -> bool:
        """Whether that is where the first tensor is."""
        first = arguments[self.tensors[0]]
        return first is not None and first.device.type == "cpu"

    def fake(self, arguments: dict[str, Any]) -> Any:
        """What has the shape of the result."""
        refuse_gradient(self.name, arguments.values())
        check_arguments(self.name, arguments, self.tensors)
        return _FAKES[self.name](**arguments)


SIGNATURES = {op.name: op for op in map(Signature, _read())}
NAMES = tuple(SIGNATURES)
