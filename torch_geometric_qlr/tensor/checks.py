"""What may go into a packed tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_geometric_qlr.errors import InputError

__all__ = ["check_codes", "check_params", "check_values"]


def check_values(x: Tensor, finite: bool) -> None:
    """A float matrix, without NaN and Inf if `finite`."""
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
    if finite and not bool(torch.isfinite(x).all()):
        row, column = (int(i) for i in torch.isfinite(x).logical_not().nonzero()[0])
        raise InputError(
            f"PackedTensor.from_float: x[{row}, {column}] is {x[row, column].item()}; NaN and Inf "
            "have no code. Clean them first, e.g. with torch.nan_to_num."
        )


def check_codes(codes: Tensor, bits: int) -> None:
    """A uint8 matrix whose entries fit into `bits`."""
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise InputError(
            f"PackedTensor.from_codes: codes must be uint8 of shape [N, F], got {codes.dtype} of "
            f"shape {list(codes.shape)}"
        )
    if bits < 8 and codes.numel() and int(codes.max()) >= 2**bits:
        raise InputError(
            f"PackedTensor.from_codes: code {int(codes.max())} does not fit into {bits} bits"
        )


def check_params(
    scale: Tensor, zero_point: Tensor, rows: int, cols: int, device: torch.device
) -> None:
    """A scale and a zero point per tensor, row or column, that agree with each other."""
    allowed = {(), (1, 1), (rows, 1), (1, cols)}
    for name, param in (("scale", scale), ("zero_point", zero_point)):
        if tuple(param.shape) not in allowed:
            raise InputError(
                f"PackedTensor: {name} has shape {list(param.shape)}; for [{rows}, {cols}] values "
                f"it is [] per tensor, [{rows}, 1] per row or [1, {cols}] per column"
            )
        if not param.is_floating_point():
            raise InputError(f"PackedTensor: {name} is {param.dtype}, it must be floating point")
        if param.device != device:
            raise InputError(f"PackedTensor: {name} is on {param.device}, the codes on {device}")
    if scale.numel() > 1 and zero_point.numel() > 1 and scale.shape != zero_point.shape:
        raise InputError(
            f"PackedTensor: scale of shape {list(scale.shape)} and zero_point of shape "
            f"{list(zero_point.shape)} run along different dimensions"
        )
