"""Edges sorted by target, as the kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.checks import INDICES, Check, Refused, differ, out_of_range
from torch_geometric_qlr.ops.definition import Call, Definition

__all__ = ["Csr"]

#: Nodes and edges are numbered with 32 bits.
_MAX_COUNT = 2**31 - 1


class Csr(Definition, op="csr"):
    r"""Sorts edges by target; those of one target stay in their order.

    Of edges :math:`[2, E]`, sources and targets, it gives where each target's edges begin, int64
    :math:`[N + 1]`; their sources, int32 :math:`[E]`; and their places among the edges, int32
    :math:`[E]`.

    Example:
        >>> torch.ops.qlr.csr(torch.tensor([[0, 2, 2], [1, 0, 1]]), 3, 3)
        (tensor([0, 1, 3, 3]), tensor([2, 0, 2], dtype=torch.int32), tensor([1, 0, 2],
         dtype=torch.int32))
    """

    loses_gradient = False

    def check(self, check: Check, a: Arguments) -> None:
        edge_index = a.edge_index
        check.dtype("edge_index", edge_index, INDICES, "int32 or int64")
        if edge_index.dim() != 2 or differ(edge_index.size(0), 2):
            check.fail(f"edge_index must have the shape [2, E], got {list(edge_index.shape)}")
        counts = {"num_src": a.num_src, "num_dst": a.num_dst, "E": edge_index.size(1)}
        for name, count in counts.items():
            if type(count) is int and not 0 <= count <= _MAX_COUNT:
                check.fail(f"{name} must be a number from 0 to {_MAX_COUNT}, got {count}")

    def fake(self, a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
        rowptr = a.edge_index.new_empty(a.num_dst + 1, dtype=torch.int64)
        col = a.edge_index.new_empty(a.edge_index.size(1), dtype=torch.int32)
        return rowptr, col, torch.empty_like(col)

    def compute(self, a: Arguments, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        edge_index = a.edge_index
        ends = ("source", edge_index[0], a.num_src), ("target", edge_index[1], a.num_dst)
        for name, nodes, count in ends:
            problem = out_of_range(name, nodes, count)
            if problem:
                raise Refused(problem)
        source, target = edge_index.long()
        perm = torch.sort(target, stable=True).indices
        rowptr = torch.zeros(a.num_dst + 1, dtype=torch.long, device=edge_index.device)
        torch.cumsum(torch.bincount(target, minlength=a.num_dst), 0, out=rowptr[1:])
        return rowptr, source[perm].int(), perm.int()
