"""The ops answered by `reference.py`: unpack, compute as defined, quantize and pack again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.ops import compressed_rows, observed, reference, row_ranges
from torch_geometric_qlr.ops.checks import NotFinite, Refused, code_too_large, place_not_finite
from torch_geometric_qlr.ops.schemas import SmpOptions

__all__ = ["IMPLEMENTATIONS"]

_OUTPUT = ("out_scale", "out_zero_point", "out_bits", "out_truncate", "out_skew")


def _finite(y: Tensor) -> Tensor:
    """What is to be quantized. On another device than a CPU a look at it would make the host wait:
    there a NaN gets code 0, and an infinity the code at its end of the range."""
    if y.device.type == "cpu" and not bool(y.isfinite().all()):
        raise NotFinite
    return y


def _finish(y: Tensor, output: dict[str, Any]) -> Tensor:
    """Quantizes and packs a float result if an output quantizer is given."""
    scale = output.get("out_scale")
    if scale is None:
        return y
    y = _finite(y)
    return reference.quantize_pack(
        y,
        scale,
        output["out_zero_point"],
        output.get("out_bits", 8),
        truncate=output.get("out_truncate", False),
        skew=output.get("out_skew"),
    )


def _split(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of the operation and of its output."""
    output = {name: kwargs.pop(name) for name in _OUTPUT if name in kwargs}
    return kwargs, output


def _quantize_pack(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    truncate: bool = False,
    skew: Tensor | None = None,
) -> Tensor:
    try:
        x = _finite(x)
    except NotFinite:
        raise Refused(place_not_finite(x)) from None
    return reference.quantize_pack(x, scale, zero_point, bits, truncate=truncate, skew=skew)


def _quantize_rows(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    try:
        x = _finite(x)
    except NotFinite:
        raise Refused(place_not_finite(x)) from None
    return row_ranges.quantize_rows(x, *args, **kwargs)


def _dequantize_packed(
    packed: Tensor, num_cols: int, bits: int, scale: Tensor, zero_point: Tensor
) -> Tensor:
    return reference.dequantize(reference.unpack(packed, num_cols, bits), scale, zero_point)


def _packed_spmm(
    rowptr: Tensor,
    col: Tensor,
    packed: Tensor,
    num_cols: int,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    **kwargs: Any,
) -> Tensor:
    kwargs, output = _split(kwargs)
    codes = reference.unpack(packed, num_cols, bits)
    return _finish(reference.spmm(rowptr, col, codes, scale, zero_point, **kwargs), output)


def _packed_propagate(
    rowptr: Tensor,
    col: Tensor,
    packed: Tensor,
    num_cols: int,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    step_scale: Tensor,
    step_zero_point: Tensor,
    step_bits: int,
    step_truncate: bool = False,
    step_skew: Tensor | None = None,
    edge_weight: Tensor | None = None,
    factor: float = 1.0,
    addend: Tensor | None = None,
    addend_scale: float = 1.0,
    **output: Any,
) -> Tensor:
    codes = reference.unpack(packed, num_cols, bits)

    def hop(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return reference.spmm(
            rowptr,
            col,
            codes,
            scale * factor,
            zero_point,
            edge_weight=edge_weight,
            addend=addend,
            addend_scale=addend_scale,
        )

    skews: Any = [None] * step_scale.numel() if step_skew is None else step_skew
    for s, z, skew in zip(step_scale.float(), step_zero_point.float(), skews, strict=True):
        y = _finite(hop(codes, scale, zero_point))
        codes = reference.quantize(y, s, z, step_bits, truncate=step_truncate, skew=skew)
        scale, zero_point = reference.affine_params(s, z, step_bits, step_truncate)
    _, result = _split(output)
    return _finish(hop(codes, scale, zero_point), result)


def _packed_smp(
    rowptr: Tensor,
    col: Tensor,
    x: Tensor,
    step_scale: Tensor,
    step_zero_point: Tensor,
    step_bits: int,
    step_truncate: bool = False,
    step_skew: Tensor | None = None,
    edge_weight: Tensor | None = None,
    **options: Any,
) -> Tensor:
    def hop(k: int, values: Tensor) -> Tensor:
        s, z = step_scale[k].float(), step_zero_point[k].float()
        skew = None if step_skew is None else step_skew[k]
        codes = reference.quantize(
            _finite(values), s, z, step_bits, truncate=step_truncate, skew=skew
        )
        scale, zero_point = reference.affine_params(s, z, step_bits, step_truncate)
        return reference.spmm(rowptr, col, codes, scale, zero_point, edge_weight=edge_weight)

    told, h = SmpOptions(**options), x.float()
    x, bound = h, told.tau * col.numel()
    multiplier, slack = torch.full((), told.init_lambda), torch.full((), told.init_slack)
    for k in range(0, step_scale.numel(), 2):
        after = (1 - (1 + told.mu) * told.eta) * h + told.mu * told.eta * hop(k, h) + told.eta * x
        change = after - h
        moved = hop(k + 1, change)
        residual = change - moved
        direction = residual if told.primal == "lagrangian" else moved
        h = after + 2 * told.eta * multiplier.to(x.device) * direction
        trace = (change * residual).sum(dtype=torch.float64).float().cpu()
        slack = slack + 2 * told.eta_slack * multiplier * slack
        multiplier = multiplier + told.eta_lambda * (bound - slack.square() - trace)
        if told.projection == "nonnegative":
            multiplier = multiplier.clamp(min=0)
        elif told.projection == "nonpositive":
            multiplier = multiplier.clamp(max=0)
    return h.clone() if h is x else h


def _pack(codes: Tensor, bits: int) -> Tensor:
    if codes.device.type == "cpu" and codes.numel() and int(codes.max()) >= 2**bits:
        raise Refused(code_too_large(codes, bits))
    return reference.pack(codes & (2**bits - 1), bits)


def _packed_extremum(
    rowptr: Tensor,
    col: Tensor,
    packed: Tensor,
    num_cols: int,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    largest: bool = True,
) -> Tensor:
    codes = reference.unpack(packed, num_cols, bits)
    return reference.extremum(rowptr, col, codes, scale, zero_point, largest=largest)


def _packed_attention(
    rowptr: Tensor,
    col: Tensor,
    packed: Tensor,
    num_cols: int,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    alpha: Tensor,
    **kwargs: Any,
) -> Tensor:
    kwargs, output = _split(kwargs)
    codes = reference.unpack(packed, num_cols, bits)
    y = reference.attention(rowptr, col, codes, scale, zero_point, alpha, **kwargs)
    return _finish(y, output)


def _packed_linear(
    packed: Tensor,
    num_cols: int,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    weight_bits: int,
    weight_scale: Tensor,
    weight_zero_point: Tensor,
    **kwargs: Any,
) -> Tensor:
    kwargs, output = _split(kwargs)
    codes = reference.unpack(packed, num_cols, bits)
    weight_codes = reference.unpack(weight, num_cols, weight_bits)
    y = reference.linear(
        codes, scale, zero_point, weight_codes, weight_scale, weight_zero_point, **kwargs
    )
    return _finish(y, output)


def _spmm(rowptr: Tensor, col: Tensor, x: Tensor, **kwargs: Any) -> Tensor:
    one, zero = torch.ones((), device=x.device), torch.zeros((), device=x.device)
    return reference.spmm(rowptr, col, x, one, zero, **kwargs)


def _fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    truncate: bool = False,
    skew: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    x_hat, mask = reference.fake_quantize(x, scale, zero_point, bits, truncate=truncate, skew=skew)
    # A range of shape [1, 1] serves any tensor, and is no reason to change its shape.
    return x_hat.reshape(x.shape).contiguous(), mask.reshape(x.shape).contiguous()


def _fake_quantize_backward(
    grad: Tensor, x: Tensor, x_hat: Tensor, mask: Tensor, axis: int = -1
) -> tuple[Tensor, Tensor]:
    grad_x, reduced = reference.fake_quantize_backward(grad, x, x_hat, mask, axis)
    return grad_x.contiguous(), reduced


def _observed_quantize(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    return observed.observed_quantize(_finite(x), *args, **kwargs)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "quantize_pack": _quantize_pack,
    "pack": _pack,
    "unpack": reference.unpack,
    "dequantize_packed": _dequantize_packed,
    "index_select": reference.index_select,
    "packed_spmm": _packed_spmm,
    "packed_propagate": _packed_propagate,
    "packed_smp": _packed_smp,
    "packed_extremum": _packed_extremum,
    "packed_attention": _packed_attention,
    "packed_linear": _packed_linear,
    "spmm": _spmm,
    "quantize_rows": _quantize_rows,
    "csr": compressed_rows.csr,
    "fake_quantize": _fake_quantize,
    "fake_quantize_backward": _fake_quantize_backward,
    "observed_quantize": _observed_quantize,
    "observed_quantize_backward": observed.observed_quantize_backward,
}
