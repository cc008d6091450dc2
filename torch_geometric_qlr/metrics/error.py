"""How far an approximation is from what it stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.errors import InputError

__all__ = ["sqnr"]


def sqnr(reference: Tensor, approximation: Tensor) -> Tensor:
    r"""The signal-to-quantization-noise ratio in decibels

    .. math::
        10 \log_{10} \frac{\| \mathbf{x} \|^2}{\| \mathbf{x} - \mathbf{\hat{x}} \|^2},

    6.02 dB for each bit of a quantizer that is well used; infinite for an exact approximation.

    Args:
        reference (torch.Tensor): The exact values :math:`\mathbf{x}`.
        approximation (torch.Tensor): The approximate values :math:`\mathbf{\hat{x}}`, of the same
            shape.

    Raises:
        InputError: If the shapes differ.

    Example:
        >>> sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5]))
        tensor(20.)
    """
    if reference.shape != approximation.shape:
        raise InputError(
            f"sqnr: shapes {list(reference.shape)} and {list(approximation.shape)} differ; both "
            "tensors must hold the same values."
        )
    # In double precision: at 8 bits and more the noise is close to what float32 resolves.
    reference = reference.double()
    noise = (reference - approximation.double()).square().sum()
    return (10 * torch.log10(reference.square().sum() / noise)).float()
