"""Values to codes and back."""

from __future__ import annotations

from torch import Tensor

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.checks import (
    BYTES,
    FLOATS,
    INDICES,
    Check,
    NotFinite,
    Refused,
    code_too_large,
    finite,
    place_not_finite,
)
from torch_geometric_qlr.ops.definition import Call, Definition
from torch_geometric_qlr.ops.fakes import float_rows, packed_rows
from torch_geometric_qlr.ops.layout import row_layout, storage_bits
from torch_geometric_qlr.ops.reference import dequantize, pack, quantize_pack, unpack

__all__ = ["DequantizePacked", "IndexSelect", "Pack", "QuantizePack", "Unpack", "finite_values"]


def finite_values(x: Tensor) -> Tensor:
    """An argument that is to be quantized as it is, so that a NaN in it has a place."""
    try:
        return finite(x)
    except NotFinite:
        raise Refused(place_not_finite(x)) from None


class QuantizePack(Definition, op="quantize_pack"):
    """:func:`~torch_geometric_qlr.ops.reference.quantize_pack`."""

    def check(self, check: Check, a: Arguments) -> None:
        storage_bits(a.bits)
        check.matrix("x", a.x, FLOATS, "floating point")
        check.columns(a.x.size(1))
        check.params(a.scale, a.zero_point, a.x.size(0), a.x.size(1))
        check.skew("skew", a.skew)

    def fake(self, a: Arguments) -> Tensor:
        return packed_rows(a.x, a.x.size(0), a.x.size(1), a.bits)

    def compute(self, a: Arguments, call: Call) -> Tensor:
        return quantize_pack(finite_values(a.x), a.quantizer)

    def not_finite(self, a: Arguments) -> str:
        return place_not_finite(a.x)


class Pack(Definition, op="pack"):
    """:func:`~torch_geometric_qlr.ops.reference.pack`, of codes that fit."""

    loses_gradient = False

    def check(self, check: Check, a: Arguments) -> None:
        check.matrix("codes", a.codes, BYTES, "uint8")
        check.columns(a.codes.size(1))
        row_layout(a.codes.size(1), a.bits)

    def fake(self, a: Arguments) -> Tensor:
        return packed_rows(a.codes, a.codes.size(0), a.codes.size(1), a.bits)

    def compute(self, a: Arguments, call: Call) -> Tensor:
        codes, bits = a.codes, a.bits
        if codes.device.type == "cpu" and codes.numel() and int(codes.max()) >= 2**bits:
            raise Refused(code_too_large(codes, bits))
        return pack(codes & (2**bits - 1), bits)


class Unpack(Definition, op="unpack"):
    """:func:`~torch_geometric_qlr.ops.reference.unpack`."""

    loses_gradient = False

    def check(self, check: Check, a: Arguments) -> None:
        check.packed_rows(a.packed, a.num_cols, a.bits)

    def fake(self, a: Arguments) -> Tensor:
        empty: Tensor = a.packed.new_empty((a.packed.size(0), a.num_cols))
        return empty

    def compute(self, a: Arguments, call: Call) -> Tensor:
        return unpack(a.packed, a.num_cols, a.bits)


class DequantizePacked(Definition, op="dequantize_packed"):
    """The values that codes stand for."""

    def check(self, check: Check, a: Arguments) -> None:
        check.packed(a.matrix)

    def fake(self, a: Arguments) -> Tensor:
        return float_rows(a.packed, a.packed.size(0), a.num_cols)

    def compute(self, a: Arguments, call: Call) -> Tensor:
        return dequantize(call("unpack", a.packed, a.num_cols, a.bits), a.scale, a.zero_point)


class IndexSelect(Definition, op="index_select"):
    """Packed rows at an index, without unpacking them."""

    loses_gradient = False

    def check(self, check: Check, a: Arguments) -> None:
        check.matrix("packed", a.packed, BYTES, "uint8")
        check.dtype("index", a.index, INDICES, "int32 or int64 (of a mask: mask.nonzero())")
        if a.index.dim() != 1:
            check.fail(f"index must be a vector, got shape {list(a.index.shape)}")

    def fake(self, a: Arguments) -> Tensor:
        empty: Tensor = a.packed.new_empty((a.index.size(0), a.packed.size(1)))
        return empty

    def compute(self, a: Arguments, call: Call) -> Tensor:
        rows: Tensor = a.packed.index_select(0, a.index.long())
        return rows
