"""What may go into a packed tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.ops.checks import place_not_finite

__all__ = ["check_codes", "check_values"]


def check_values(x: Tensor, finite: bool) -> None:
    """A float matrix, without NaN and Inf if `finite`: on a CPU the op sees to that."""
    if x.layout != torch.strided or x.dim() != 2:
        raise InputError(
            f"PackedTensor.from_float: x must be a dense matrix [N, F], got {x.layout} of shape "
            f"{list(x.shape)}"
        )
    if not x.is_floating_point():
        raise InputError(
            f"PackedTensor.from_float: x is {x.dtype}, not floating point. Cast it with x.float(), "
            "or pack ready-made codes with from_codes."
        )
    if finite and x.device.type != "cpu" and not bool(torch.isfinite(x).all()):
        raise InputError(f"PackedTensor.from_float: {place_not_finite(x)}")


def check_codes(codes: Tensor, bits: int) -> None:
    """A uint8 matrix whose entries fit into `bits`. On a CPU the op looks at them as it packs."""
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise InputError(
            f"PackedTensor.from_codes: codes must be uint8 of shape [N, F], got {codes.dtype} of "
            f"shape {list(codes.shape)}"
        )
    if codes.device.type != "cpu" and codes.numel() and int(codes.max()) >= 2**bits:
        raise InputError(
            f"PackedTensor.from_codes: code {int(codes.max())} does not fit into {bits} bits"
        )
