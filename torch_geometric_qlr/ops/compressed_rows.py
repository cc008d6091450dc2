"""Edges sorted by target, as the kernels read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.ops.checks import INDICES, Check, Refused, differ

__all__ = ["check", "csr", "fake", "out_of_range"]

#: Nodes and edges are numbered with 32 bits.
_MAX_COUNT = 2**31 - 1


def csr(edge_index: Tensor, num_src: int, num_dst: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Sorts edges by target; those of one target stay in their order.

    Args:
        edge_index (torch.Tensor): Sources and targets :math:`[2, E]`.
        num_src (int): Number of source nodes, below :math:`2^{31}`, as :math:`E` is.
        num_dst (int): Number of target nodes.

    Returns:
        tuple: Where each target's edges begin, int64 :math:`[N + 1]`; their sources, int32
        :math:`[E]`; and their places in :obj:`edge_index`, int32 :math:`[E]`.

    Example:
        >>> csr(torch.tensor([[0, 2, 2], [1, 0, 1]]), 3, 3)
        (tensor([0, 1, 3, 3]), tensor([2, 0, 2], dtype=torch.int32), tensor([1, 0, 2],
         dtype=torch.int32))
    """
    ends = ("source", edge_index[0], num_src), ("target", edge_index[1], num_dst)
    for name, nodes, count in ends:
        problem = out_of_range(name, nodes, count)
        if problem:
            raise Refused(problem)
    source, target = edge_index.long()
    perm = torch.sort(target, stable=True).indices
    rowptr = torch.zeros(num_dst + 1, dtype=torch.long, device=edge_index.device)
    torch.cumsum(torch.bincount(target, minlength=num_dst), 0, out=rowptr[1:])
    return rowptr, source[perm].int(), perm.int()


def out_of_range(name: str, nodes: Tensor, count: int) -> str:
    r"""What is wrong with the nodes at one end of the edges, if some of them are not there.

    Args:
        name (str): The end.
        nodes (torch.Tensor): Indices :math:`[E]`.
        count (int): How many nodes there are.

    Example:
        >>> out_of_range("source", torch.tensor([0, 7]), 4)[:45]
        'edge_index names source nodes from 0 to 7, bu'
    """
    if not nodes.numel():
        return ""
    low, high = (int(bound) for bound in nodes.aminmax())
    if 0 <= low and high < count:
        return ""
    return (
        f"edge_index names {name} nodes from {low} to {high}, but there are {count}. Check the "
        f"number of rows of x, or reindex the edges"
    )


def check(check: Check, edge_index: Tensor, num_src: Any, num_dst: Any) -> None:
    """What is checked of its arguments."""
    check.dtype("edge_index", edge_index, INDICES, "int32 or int64")
    if edge_index.dim() != 2 or differ(edge_index.size(0), 2):
        check.fail(f"edge_index must have the shape [2, E], got {list(edge_index.shape)}")
    for name, count in (("num_src", num_src), ("num_dst", num_dst), ("E", edge_index.size(1))):
        if type(count) is int and not 0 <= count <= _MAX_COUNT:
            check.fail(f"{name} must be a number from 0 to {_MAX_COUNT}, got {count}")


def fake(edge_index: Tensor, num_src: Any, num_dst: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes of its results."""
    rowptr = edge_index.new_empty(num_dst + 1, dtype=torch.int64)
    col = edge_index.new_empty(edge_index.size(1), dtype=torch.int32)
    return rowptr, col, torch.empty_like(col)
