"""The product of two packed matrices."""

from __future__ import annotations

from torch import Tensor

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.checks import Check
from torch_geometric_qlr.ops.definition import Call, Definition
from torch_geometric_qlr.ops.definitions.gather import written
from torch_geometric_qlr.ops.fakes import result_rows
from torch_geometric_qlr.ops.reference import linear, unpack_matrix

__all__ = ["PackedLinear"]


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
