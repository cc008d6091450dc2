"""Attention coefficients: a softmax over the edges that lead to a node."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.utils import softmax

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.checks import FLOATS, INTEGERS, Check, differ
from torch_geometric_qlr.ops.definition import Call, Definition
from torch_geometric_qlr.ops.fakes import float_rows

__all__ = ["EdgeSoftmax"]


class EdgeSoftmax(Definition, op="edge_softmax"):
    r"""Logits of edges and heads, and their softmax over the edges of each row.

    .. math::
        \alpha_{ij,h} = \frac{\exp \ell_{ij,h}}{\sum_{k \in \mathcal{N}(i)} \exp \ell_{ik,h}}, \quad
        \ell_{ij,h} = \mathrm{LeakyReLU}(x_{j,h} + t_{i,h} + e_{ij,h})

    with :obj:`x` of the sources, :math:`[N, H]`, and where they are given :obj:`target`,
    :math:`[M, H]`, and :obj:`edge`, :math:`[E, H]`, in the order of the rows. Gives
    :math:`[E, H]`, in this order as well: what ``packed_attention`` takes as :obj:`alpha`.

    Example:
        >>> rowptr, col = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 0])
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> torch.ops.qlr.edge_softmax(rowptr, col, x).flatten()
        tensor([0.2689, 0.7311, 1.0000])
    """

    def check(self, check: Check, a: Arguments) -> None:
        check.graph(a.graph)
        check.matrix("x", a.x, FLOATS | INTEGERS, "of real numbers")
        rows = {"target": a.graph.num_rows, "edge": a.col.size(0)}
        for name, count in rows.items():
            given, shape = a.values[name], (count, a.x.size(1))
            if given is None:
                continue
            check.matrix(name, given, FLOATS | INTEGERS, "of real numbers")
            if any(differ(*sizes) for sizes in zip(given.shape, shape, strict=True)):
                check.fail(f"{name} has shape {list(given.shape)}, expected {list(shape)}")

    def fake(self, a: Arguments) -> Tensor:
        return float_rows(a.x, a.col.size(0), a.x.size(1))

    def compute(self, a: Arguments, call: Call) -> Tensor:
        rows, edges = a.graph.num_rows, a.col.size(0)
        row = torch.arange(rows, device=a.col.device)
        row = row.repeat_interleave(a.rowptr.long().diff(), output_size=edges)
        logits = a.x.float().index_select(0, a.col)
        if a.target is not None:
            logits = logits + a.target.float().index_select(0, row)
        if a.edge is not None:
            logits = logits + a.edge.float()
        logits = torch.nn.functional.leaky_relu(logits, a.negative_slope)
        return softmax(logits, row, num_nodes=rows)
