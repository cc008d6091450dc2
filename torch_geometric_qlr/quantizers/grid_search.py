"""Where a learned range starts: the best of a grid on the first batch."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.ops import QParams
from torch_geometric_qlr.ops.reference import fake_quantize

__all__ = ["best_candidate", "candidate_errors", "search_multiplier"]

# A sample of the rows places one multiplier as well as all of them do, at a fixed cost.
_MAX_ELEMENTS = 1 << 18


def search_multiplier(
    x: Tensor,
    scale0: Tensor,
    zero_point: Tensor,
    skew: Tensor | None,
    config: QuantizerConfig,
    axis: int,
) -> Tensor:
    r"""The multiplier :math:`\gamma \in \{1/m, 2/m, \dots, 1\}` with the least mean absolute error.

    .. math::
        \gamma^* = \mathrm{arg\,min}_\gamma \; \mathbb{E} \, | \hat x_\gamma - x |

    Args:
        x (torch.Tensor): The first batch; a matrix unless :obj:`scale0` is a scalar.
        scale0 (torch.Tensor): The scale at :math:`\gamma = 1`.
        zero_point (torch.Tensor): The zero point.
        skew (torch.Tensor, optional): Shift of BT*.
        config (QuantizerConfig): Width, truncation and size of the grid.
        axis (int): -1 for one multiplier, 0 for one per row, 1 for one per column.

    Returns:
        torch.Tensor: :math:`()`, :math:`[N, 1]` or :math:`[1, F]`. The largest wins a tie.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 2.0, 3.0, 3.0, 4.0])
        >>> config = QuantizerConfig(bits=2)
        >>> search_multiplier(x, x.max() / 3, torch.tensor(0.0), None, config, axis=-1)
        tensor(0.8000)
    """
    return best_candidate(candidate_errors(x, scale0, zero_point, skew, config, axis))


def candidate_errors(
    x: Tensor,
    scale0: Tensor,
    zero_point: Tensor,
    skew: Tensor | None,
    config: QuantizerConfig,
    axis: int,
) -> Tensor:
    r"""The mean absolute error of each candidate, from the smallest multiplier to 1, as for
    :func:`search_multiplier`: :math:`[m]`, :math:`[m, N, 1]` or :math:`[m, 1, F]`."""
    if axis == -1 and x.numel() > _MAX_ELEMENTS:
        step = -(-x.numel() // _MAX_ELEMENTS)
        x = x[::step]
        if scale0.dim() == 2 and scale0.size(0) > 1:
            scale0, zero_point = scale0[::step], zero_point[::step]
    errors = []
    for candidate in range(1, config.search_candidates + 1):
        gamma = candidate / config.search_candidates
        how = QParams(scale0 * gamma, zero_point, config.bits, config.truncates, skew)
        x_hat, _ = fake_quantize(x, how)
        error = (x_hat - x).abs_().float()
        errors.append(error.mean() if axis == -1 else error.mean(dim=1 - axis, keepdim=True))
    return torch.stack(errors)


def best_candidate(errors: Tensor) -> Tensor:
    r"""The multiplier with the least error. The largest wins a tie, and where nothing is a number.

    Args:
        errors (torch.Tensor): From :func:`candidate_errors`.

    Example:
        >>> best_candidate(torch.tensor([0.5, 0.2, 0.2, 0.3]))
        tensor(0.7500)
    """
    count = errors.size(0)
    best_gamma, best_error = torch.ones_like(errors[0]), errors[-1]
    for candidate in range(count - 1, 0, -1):
        error = errors[candidate - 1]
        better = error < best_error
        best_gamma = torch.where(better, candidate / count, best_gamma)
        best_error = torch.where(better, error, best_error)
    return best_gamma
