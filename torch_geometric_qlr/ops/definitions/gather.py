"""Sums and extrema along the edges of a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.checks import FLOATS, INTEGERS, Check, differ, finite
from torch_geometric_qlr.ops.definition import Call, Definition
from torch_geometric_qlr.ops.fakes import float_rows, result_rows
from torch_geometric_qlr.ops.groups import CodeMatrix
from torch_geometric_qlr.ops.reference import (
    attention,
    extremum,
    quantize_pack,
    spmm,
    unpack_matrix,
)

__all__ = ["PackedAttention", "PackedExtremum", "PackedSpmm", "Spmm", "check_gather", "written"]


def check_gather(check: Check, a: Arguments) -> None:
    """What the ops have in common that gather packed rows."""
    check.packed(a.matrix)
    check.graph(a.graph)


def _check_sum(check: Check, a: Arguments) -> None:
    check_gather(check, a)
    rows = a.graph.num_rows
    check.weights(a.weights, a.col.size(0), a.packed.size(0))
    check.epilogue(a.epilogue, rows, a.num_cols)
    check.output(a.output, rows, a.num_cols)


def _fake(a: Arguments) -> Tensor:
    return result_rows(a.packed, a.graph.num_rows, a.num_cols, a.output)


def written(y: Tensor, a: Arguments) -> Tensor:
    """A result as it leaves: quantized and packed if the call has a quantizer for it."""
    return y if a.output is None else quantize_pack(finite(y), a.output)


class PackedSpmm(Definition, op="packed_spmm"):
    """:func:`~torch_geometric_qlr.ops.reference.spmm` of packed rows."""

    def check(self, check: Check, a: Arguments) -> None:
        _check_sum(check, a)

    def fake(self, a: Arguments) -> Tensor:
        return _fake(a)

    def compute(self, a: Arguments, call: Call) -> Tensor:
        return written(spmm(a.graph, unpack_matrix(a.matrix), a.weights, a.epilogue), a)


class PackedExtremum(Definition, op="packed_extremum"):
    """:func:`~torch_geometric_qlr.ops.reference.extremum` of packed rows."""

    def check(self, check: Check, a: Arguments) -> None:
        check_gather(check, a)

    def fake(self, a: Arguments) -> Tensor:
        return float_rows(a.packed, a.graph.num_rows, a.num_cols)

    def compute(self, a: Arguments, call: Call) -> Tensor:
        return extremum(a.graph, unpack_matrix(a.matrix), largest=a.largest)


class PackedAttention(Definition, op="packed_attention"):
    """:func:`~torch_geometric_qlr.ops.reference.attention` of packed rows."""

    def check(self, check: Check, a: Arguments) -> None:
        _check_sum(check, a)
        alpha, edges, cols = a.alpha, a.col.size(0), a.num_cols
        check.numbers("alpha", alpha, alpha.numel())
        heads = alpha.size(1) if alpha.dim() == 2 else 0
        if differ(heads and cols % heads, 0) or heads == 0 or differ(alpha.size(0), edges):
            check.fail(
                f"alpha has shape {list(alpha.shape)}, expected [E, H] with E = {edges} edges "
                f"and H a divisor of the {cols} columns"
            )

    def fake(self, a: Arguments) -> Tensor:
        return _fake(a)

    def compute(self, a: Arguments, call: Call) -> Tensor:
        return written(attention(a.graph, unpack_matrix(a.matrix), a.alpha, a.epilogue), a)


class Spmm(Definition, op="spmm"):
    """:func:`~torch_geometric_qlr.ops.reference.spmm` of floats."""

    def check(self, check: Check, a: Arguments) -> None:
        check.matrix("x", a.x, FLOATS | INTEGERS, "of real numbers")
        check.columns(a.x.size(1))
        check.graph(a.graph)
        check.weights(a.weights, a.col.size(0), a.x.size(0))
        check.epilogue(a.epilogue, a.graph.num_rows, a.x.size(1))

    def fake(self, a: Arguments) -> Tensor:
        return float_rows(a.x, a.graph.num_rows, a.x.size(1))

    def compute(self, a: Arguments, call: Call) -> Tensor:
        one, zero = torch.ones((), device=a.x.device), torch.zeros((), device=a.x.device)
        return spmm(a.graph, CodeMatrix(a.x, one, zero), a.weights, a.epilogue)
