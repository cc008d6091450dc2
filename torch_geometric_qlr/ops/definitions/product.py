"""Products with a packed weight."""

from __future__ import annotations

from torch import Tensor

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.checks import FLOATS, Check, place_not_finite
from torch_geometric_qlr.ops.definition import Call, Definition
from torch_geometric_qlr.ops.definitions.gather import written
from torch_geometric_qlr.ops.fakes import float_rows, result_rows
from torch_geometric_qlr.ops.layout import storage_bits
from torch_geometric_qlr.ops.reference import affine_params, linear, unpack_matrix

__all__ = ["PackedLinear", "QuantizeLinear"]


class PackedLinear(Definition, op="packed_linear"):
    """:func:`~torch_geometric_qlr.ops.reference.linear` of packed matrices."""

    def check(self, check: Check, a: Arguments) -> None:
        check.packed(a.matrix)
        check.packed(a.factor_matrix, "weight_")
        check.numbers("bias", a.bias, a.weight.size(0))
        check.output(a.output, a.packed.size(0), a.weight.size(0))

    def fake(self, a: Arguments) -> Tensor:
        return result_rows(a.packed, a.packed.size(0), a.weight.size(0), a.output)

    def compute(self, a: Arguments, call: Call) -> Tensor:
        x, weight = unpack_matrix(a.matrix), unpack_matrix(a.factor_matrix)
        return written(linear(x, weight, a.epilogue), a)


class QuantizeLinear(Definition, op="quantize_linear"):
    r"""Floats times a packed weight: ``packed_linear`` of the codes of ``quantize_pack``, or,
    without a zero point, of ``quantize_rows``, whose multiplier then is the scale. A kernel makes
    the codes of a few rows at a time, and keeps none.

    Example:
        >>> one, x = torch.tensor(1.0), torch.tensor([[1.0, 3.0]])
        >>> weight = torch.ops.qlr.quantize_pack(x, one, one, 4)
        >>> grid = one, one, 4, False, False, None
        >>> torch.ops.qlr.quantize_linear(x, *grid, weight, 4, one, one)
        tensor([[10.]])
    """

    def check(self, check: Check, a: Arguments) -> None:
        storage_bits(a.bits)
        check.matrix("x", a.x, FLOATS, "floating point")
        check.columns(a.x.size(1))
        if a.zero_point is None:
            check.dtype("scale", a.scale, FLOATS, "floating point")
            check.numbers("scale", a.scale, 1)
        else:
            check.params(a.scale, a.zero_point, a.x.size(0), a.x.size(1))
        check.skew("skew", a.skew)
        check.packed(a.factor_matrix, "weight_")
        check.numbers("bias", a.bias, a.weight.size(0))

    def fake(self, a: Arguments) -> Tensor:
        return float_rows(a.x, a.x.size(0), a.weight.size(0))

    def compute(self, a: Arguments, call: Call) -> Tensor:
        if a.zero_point is None:
            how = (a.scale, a.bits, a.truncate, a.aligned, a.skew)
            packed, *params = call("quantize_rows", a.x, *how)
        else:
            packed = call("quantize_pack", a.x, *a.quantizer)
            params = affine_params(a.scale.float(), a.zero_point.float(), a.bits, a.truncate)
        codes = (packed, a.x.size(1), storage_bits(a.bits), *params)
        weight = (a.weight, a.weight_bits, a.weight_scale, a.weight_zero_point)
        out: Tensor = call("packed_linear", *codes, *weight, a.bias, a.relu)
        return out

    def not_finite(self, a: Arguments) -> str:
        return place_not_finite(a.x)
