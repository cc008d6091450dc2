"""Weights of edges in few bits, with a scale for each target node."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_geometric_qlr.ops.reference import row_codes
from torch_geometric_qlr.quantizers.torch_state import follows_tangents
from torch_geometric_qlr.tensor import functional as packed

__all__ = ["EdgeWeightQuant"]


class EdgeWeightQuant(nn.Module):
    r"""Weights of edges as integers, times a scale for each target node:

    .. math::
        t_i = \frac{\max_{j \in \mathcal{N}(i)} |w_{ij}|}{2^{b-1} - 1}, \qquad
        n_{ij} = \left\lfloor \frac{w_{ij}}{t_i} \right\rceil, \qquad
        \hat w_{ij} = t_i n_{ij},

    rounding half to even. Gradients pass straight through. It has no parameters: a scale is that of
    the weights at hand. With one scale per target the hubs of a graph keep their edges: a weight
    rounds to zero only where it is :math:`2^b - 2` times smaller than the largest one beside it.

    With sources that have a scale :math:`s_j` per node, it is :math:`w_{ij} s_j` that becomes
    integers, so that sums are integers of integers there too, and :math:`\hat w_{ij} = t_i n_{ij} /
    s_j`.

    Args:
        bits (int): :math:`b`, from 2 to 8.

    Shapes:
        - **input:** weights :math:`(|\mathcal{E}|)`, targets :math:`(|\mathcal{E}|)`
        - **output:** weights :math:`(|\mathcal{E}|)`

    Example:
        >>> weight, target = torch.tensor([1.0, 0.25, 2.0]), torch.tensor([0, 0, 1])
        >>> EdgeWeightQuant(bits=4)(weight, target, num_targets=2)
        tensor([1.0000, 0.2857, 2.0000])
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(
        self, weight: Tensor, target: Tensor, num_targets: int, source_scale: Tensor | None = None
    ) -> Tensor:
        r"""The weights that codes stand for, bit for bit.

        Args:
            weight (torch.Tensor): Weights :math:`w`, one for each edge, in any order.
            target (torch.Tensor): The node that each edge leads to.
            num_targets (int): Number of these nodes.
            source_scale (torch.Tensor, optional): :math:`s_j` of the source of each edge.
                (default: :obj:`None`)
        """
        value = self._rounded(weight, target, num_targets, source_scale).view_as(weight)
        if not weight.is_floating_point():
            return value
        value = value.to(weight.dtype)
        if not (weight.requires_grad or follows_tangents()):
            return value
        # What is added is zero, so that the value stays what it is.
        return value + (weight - weight.detach())

    @torch.no_grad()
    def _rounded(
        self, weight: Tensor, target: Tensor, num_targets: int, source_scale: Tensor | None
    ) -> Tensor:
        w = weight.detach().float().reshape(-1)
        if source_scale is not None:
            w = w * source_scale
        codes, scale = row_codes(w, target, num_targets, self.bits)
        value = codes * scale[target]
        return value if source_scale is None else value / source_scale

    def codes(
        self, rowptr: Tensor, col: Tensor, weight: Tensor, source_scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""The codes :math:`n`, int8, and the scales :math:`t`, as a kernel takes them.

        Args:
            rowptr, col (torch.Tensor): Offsets and sources of the edges, compressed by targets.
            weight (torch.Tensor): Their weights :math:`w`.
            source_scale (torch.Tensor, optional): :math:`s`, one for each source *node*.
                (default: :obj:`None`)

        Example:
            >>> rowptr, col = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 1])
            >>> EdgeWeightQuant(bits=4).codes(rowptr, col, torch.tensor([1.0, 0.25, 2.0]))
            (tensor([7, 2, 7], dtype=torch.int8), tensor([0.1429, 0.2857]))
        """
        return packed.edge_codes(rowptr, col, weight, bits=self.bits, source_weight=source_scale)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
