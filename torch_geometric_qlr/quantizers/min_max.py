"""Codes of values whose range is all that they span, found without a model and without learning."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.errors import ConfigError, InputError
from torch_geometric_qlr.ops import storage_bits
from torch_geometric_qlr.ops.range_grid import range_grid
from torch_geometric_qlr.quantizers.statistics import Groups, value_range
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["MinMax"]

_GRANULARITIES = ("node", "feature", "tensor")


class MinMax:
    r"""Packs matrices of features, each number in the range

    .. math::
        \alpha = \min(0, \min x), \qquad \beta = \max(0, \max x)

    of its row, its column, or the whole. The codes are those of a
    :class:`~torch_geometric_qlr.quantizers.LearnedRangeQuant` whose multiplier is one.

    Args:
        bits (int): Width of a code, 1 to 8.
        granularity (str): One range per :obj:`"node"`, that is per row, per :obj:`"feature"`, or
            for the whole :obj:`"tensor"`. (default: :obj:`"node"`)

    Raises:
        ConfigError: If either is none of these.

    Example:
        >>> x = torch.tensor([[0.0, 0.9, 3.0], [-1.0, 0.0, 2.0]])
        >>> MinMax(bits=2).pack(x).dequantize()
        tensor([[ 0.,  1.,  3.],
                [-1.,  0.,  2.]])
    """

    def __init__(self, bits: int, granularity: str = "node") -> None:
        if granularity not in _GRANULARITIES:
            listed = ", ".join(map(repr, _GRANULARITIES))
            raise ConfigError(f"granularity={granularity!r} is unknown; choose one of {listed}.")
        storage_bits(bits)
        self.bits, self.granularity = bits, granularity

    def __repr__(self) -> str:
        return f"{type(self).__name__}(bits={self.bits}, granularity={self.granularity!r})"

    @property
    def is_static(self) -> bool:
        """Whether one range, or one per column, serves all rows."""
        return self.granularity != "node"

    def range_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The ends :math:`\alpha, \beta` of a matrix's ranges.

        Args:
            x (torch.Tensor): Features :math:`(N, F)`.
        """
        return value_range(x, Groups(self.granularity).axis)

    def pack(self, x: Tensor, ends: tuple[Tensor, Tensor] | None = None) -> PackedTensor:
        r"""The codes of a matrix.

        Args:
            x (torch.Tensor): Features :math:`(N, F)`.
            ends (tuple, optional): The ends of its ranges, if they are not its own: values outside
                get the code of the nearer end.

        Raises:
            InputError: If it is no float matrix, or holds NaN or Inf.
        """
        if not isinstance(x, Tensor) or x.layout != torch.strided or x.dim() != 2:
            shown = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"features are a dense matrix [N, F], not of {shown}")
        if not x.is_floating_point():
            raise InputError(f"features are {x.dtype}, not floating point. Cast them: x.float().")
        x = x.detach().float()
        scale, zero_point = self.grid(*(ends or self.range_of(x)))
        return PackedTensor.from_float(x, scale, zero_point, self.bits)

    def grid(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        r"""Scale and zero point of ranges.

        Args:
            lo, hi (torch.Tensor): Their ends.
        """
        return range_grid(lo, hi, self.bits, truncate=False, aligned=False, own=not self.is_static)
