"""Weights of edges in few bits, with a scale for each row of a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.checks import Check
from torch_geometric_qlr.ops.definition import Call, Definition
from torch_geometric_qlr.ops.groups import Weights
from torch_geometric_qlr.ops.reference import edge_codes

__all__ = ["QuantizeEdges"]


class QuantizeEdges(Definition, op="quantize_edges"):
    r"""Integers in place of the weights of edges, which a sum multiplies by exactly.

    .. math::
        n_{ij} = \left\lfloor \frac{e_{ij} u_j}{t_i} \right\rceil, \quad
        t_i = \frac{\max_{j \in \mathcal{N}(i)} |e_{ij} u_j|}{2^{b-1} - 1}

    rounding half to even. A row whose weights are all below :math:`10^{-30}` has codes of zero and
    :math:`t_i = 1`; one with a weight that is not finite has codes of zero and a :math:`t_i` that
    is no number. Gives the codes, int8 :math:`[E]`, and :math:`t`, :math:`[M]`: what
    ``packed_spmm`` takes as :obj:`edge_weight` and :obj:`row_scale`.

    Example:
        >>> rowptr, col = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 0])
        >>> torch.ops.qlr.quantize_edges(rowptr, col, torch.tensor([0.7, -0.2, 2.0]), bits=4)
        (tensor([ 7, -2,  7], dtype=torch.int8), tensor([0.1000, 0.2857]))
    """

    def check(self, check: Check, a: Arguments) -> None:
        if type(a.bits) is not int or not 2 <= a.bits <= 8:
            raise ConfigError(f"{check.where}: bits must be 2 to 8, got {a.bits!r}")
        check.graph(a.graph)
        check.numbers("edge_weight", a.edge_weight, a.col.size(0))
        if a.source_weight is not None:
            check.numbers("source_weight", a.source_weight, a.source_weight.numel())

    def fake(self, a: Arguments) -> tuple[Tensor, Tensor]:
        codes = a.col.new_empty(a.col.size(0), dtype=torch.int8)
        return codes, a.col.new_empty(a.graph.num_rows, dtype=torch.float32)

    def compute(self, a: Arguments, call: Call) -> tuple[Tensor, Tensor]:
        return edge_codes(a.graph, a.group(Weights), a.bits)
