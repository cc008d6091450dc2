"""What a quantizer knows about its tensor: the range, and the skewness."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["value_range", "skewness", "Groups"]


class Groups:
    r"""How a tensor is cut into groups that share a range, always seen as a matrix.

    Args:
        granularity (str): :obj:`"tensor"`, :obj:`"channel"`, :obj:`"feature"` or :obj:`"node"`.
        channel_dim (int): With :obj:`"channel"`, the dimension of the output channels: 0 or -1.

    Example:
        >>> Groups("feature").matrix(torch.zeros(5, 2, 3)).shape
        torch.Size([10, 3])
    """

    def __init__(self, granularity: str, channel_dim: int = 0) -> None:
        self.rows_first = granularity == "channel" and channel_dim == 0
        by_row = self.rows_first or granularity == "node"
        #: -1: one range, 0: one per row of the matrix, 1: one per column.
        self.axis = -1 if granularity == "tensor" else 0 if by_row else 1

    def matrix(self, x: Tensor) -> Tensor:
        """The tensor as a matrix with one group per row or column."""
        if x.dim() == 2 or self.axis == -1:
            return x
        if x.dim() < 2:
            return x.reshape(-1, 1) if self.rows_first else x.reshape(1, -1)
        return x.reshape(x.size(0), -1) if self.rows_first else x.reshape(-1, x.size(-1))

    def shape(self, num_groups: int) -> tuple[int, ...]:
        """Shape of a range over that many groups."""
        return () if self.axis == -1 else (num_groups, 1) if self.axis == 0 else (1, num_groups)


def value_range(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    r""":math:`\alpha = \min(0, \min x)` and :math:`\beta = \max(0, \max x)`, in float32: zero stays
    representable.

    Args:
        x (torch.Tensor): A non-empty tensor; a matrix unless :obj:`axis` is -1.
        axis (int): -1 over the tensor, 0 per row, 1 per column.

    Example:
        >>> value_range(torch.tensor([[1.0, -2.0]]), axis=-1)
        (tensor(-2.), tensor(1.))
    """
    if axis == -1:
        lo, hi = x.aminmax()
    else:
        lo, hi = x.aminmax(dim=1 - axis, keepdim=True)
    return lo.float().clamp_max(0.0), hi.float().clamp_min(0.0)


def skewness(x: Tensor, numel: int | None = None) -> Tensor:
    r"""Fisher's moment coefficient of skewness
    :math:`\mathbb{E}[(x - \mu)^3] / \mathbb{E}[(x - \mu)^2]^{3/2}`, a scalar in float32; 0 for a
    constant tensor.

    Args:
        x (torch.Tensor): A tensor, or the stored values of a sparse one.
        numel (int, optional): Number of entries with the zeros that are not stored.
            (default: those of :obj:`x`)

    Example:
        >>> skewness(torch.tensor([0.0, 0.0, 0.0, 4.0])).item() > 1
        True
        >>> skewness(torch.tensor([4.0]), numel=4).item() > 1
        True
    """
    numel = numel or max(1, x.numel())
    zeros = numel - x.numel()
    mean = x.float().sum() / numel
    centered = x.float() - mean
    squared = centered * centered
    variance = (squared.sum() + zeros * mean.square()) / numel
    third = (squared.mul_(centered).sum() - zeros * mean.pow(3)) / numel
    return torch.where(variance > 0, third / variance.clamp_min(1e-30).pow(1.5), 0.0)
