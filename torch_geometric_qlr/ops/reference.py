"""The definition of the arithmetic, in pure torch: exact, obvious and slow.

Everything else in the package (fake quantization, the C++ kernels, the GPU kernels) is tested
against these functions. Integer sums are taken in int64, weighted sums in float64 and rounded to
float32 once, so what is aggregated is the true value to float32 precision. What is done to it then
(mean, row scale, addend, bias, relu, codes) are operations of torch in float32, one after the
other: joined in one op or apart, they give the same bits. Edges are processed in blocks, so memory
stays of the order of the inputs and no :math:`N \\times N` or :math:`E \\times F` tensor is ever
made. Works on every device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torch_geometric_qlr.ops.layout import row_layout, storage_bits

__all__ = [
    "affine_params",
    "attention",
    "dequantize",
    "extremum",
    "fake_quantize",
    "fake_quantize_backward",
    "index_select",
    "linear",
    "pack",
    "quantize",
    "quantize_pack",
    "spmm",
    "truncation_step",
    "unpack",
]

# Codes gathered at once by the edge loop: bounds memory, has no influence on the result.
_BLOCK_ELEMENTS = 1 << 22


def truncation_step(bits: int) -> float:
    r"""The distance :math:`t = 255 / (2^b - 1)` between two kept levels, in 8-bit code units.

    Example:
        >>> [truncation_step(b) for b in (1, 2, 4, 8)]
        [255.0, 85.0, 17.0, 1.0]
    """
    return 255.0 / (2**bits - 1)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    *,
    truncate: bool = False,
    skew: Tensor | None = None,
) -> Tensor:
    r"""Codes of :obj:`x`, rounding half to even.

    .. math::
        c = \mathrm{clamp}(\lfloor x / s + z \rceil, 0, 2^b - 1)

    and, with :obj:`truncate`, through 8 bits first (:math:`t = 255 / (2^b - 1)`):

    .. math::
        q = \mathrm{clamp}(\lfloor x / s + z \rceil, 0, 255), \quad
        c = \mathrm{clamp}(\lfloor (q + k) / t \rceil, 0, 2^b - 1)

    A quotient that is no number has code 0: that of a NaN, or where scale or zero point are NaN.
    The ops refuse values that are not finite, on a CPU.

    Args:
        x (torch.Tensor): The values; computed in float32.
        scale (torch.Tensor): :math:`s`, of shape :math:`()`, :math:`[N, 1]` or :math:`[1, F]`.
        zero_point (torch.Tensor): :math:`z`, broadcastable like :obj:`scale`.
        bits (int): :math:`b`, from 1 to 8.
        truncate (bool): Quantize to 8 bits and keep the top :math:`b` (BT, BT*).
        skew (torch.Tensor, optional): :math:`k` of BT*, a scalar in 8-bit code units.

    Returns:
        torch.Tensor: uint8 codes in the shape of :obj:`x`.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 0.4, 9.0])
        >>> quantize(x, torch.tensor(1.0), torch.tensor(1.0), bits=2)
        tensor([0, 1, 1, 3], dtype=torch.uint8)
    """
    levels = 2**bits - 1
    q = _raw_codes(x, scale, zero_point)
    if not truncate:
        return _clamp(q, levels).to(torch.uint8)
    # A tensor, not a number: CUDA turns a division by a number into a product with its reciprocal.
    step = torch.full((), truncation_step(bits), dtype=torch.float32, device=x.device)
    q = _clamp(q, 255)
    if skew is not None:
        q = q + skew.float()
    return _clamp(torch.round(q / step), levels).to(torch.uint8)


def _raw_codes(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.round(x.float() / scale.float() + zero_point.float())


def _clamp(q: Tensor, top: int) -> Tensor:
    """To 0 .. top, a NaN to 0."""
    return q.nan_to_num(0.0, torch.inf, -torch.inf).clamp(0, top)


def affine_params(
    scale: Tensor, zero_point: Tensor, bits: int, truncate: bool = False
) -> tuple[Tensor, Tensor]:
    r"""The :math:`(S, Z)` with which codes are read back: :math:`\hat x = S (c - Z)`.

    For a truncated tensor :math:`S = t s` and :math:`Z = z / t`, which may be fractional.

    Example:
        >>> affine_params(torch.tensor(0.5), torch.tensor(17.0), bits=4, truncate=True)
        (tensor(8.5000), tensor(1.))
    """
    if not truncate:
        return scale, zero_point
    step = torch.full((), truncation_step(bits), dtype=torch.float32, device=scale.device)
    return scale * step, zero_point / step


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    r""":math:`\hat x = S (c - Z)` in float32.

    Example:
        >>> dequantize(torch.tensor([0, 3], dtype=torch.uint8), torch.tensor(0.5), torch.tensor(1.))
        tensor([-0.5000,  1.0000])
    """
    return scale.float() * (codes.float() - zero_point.float())


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    *,
    truncate: bool = False,
    skew: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The values the codes of :obj:`x` stand for, and where no clamp acted on them.

    A value that is not finite stands for itself, :math:`\hat x = x`, and counts as clamped.

    Args:
        x, scale, zero_point, bits, truncate, skew: As in :func:`quantize`.

    Returns:
        (torch.Tensor, torch.Tensor): :math:`\hat x` in the dtype of :obj:`x`, and a bool mask that
        is true where neither clamp acted.

    Example:
        >>> fake_quantize(torch.tensor([0.4, 9.0]), torch.tensor(1.), torch.tensor(0.), bits=2)
        (tensor([0., 3.]), tensor([ True, False]))
    """
    top = 255 if truncate else 2**bits - 1
    q, finite = _raw_codes(x, scale, zero_point), x.isfinite()
    mask = finite & (q >= 0) & (q <= top)
    codes = quantize(x, scale, zero_point, bits, truncate=truncate, skew=skew)
    if truncate and skew is not None:
        step = torch.full((), truncation_step(bits), dtype=torch.float32, device=x.device)
        c = torch.round((_clamp(q, 255) + skew.float()) / step)
        mask = mask & (c >= 0) & (c <= 2**bits - 1)
    x_hat = dequantize(codes, *affine_params(scale.float(), zero_point.float(), bits, truncate))
    return torch.where(finite, x_hat.to(x.dtype), x), mask


def fake_quantize_backward(
    grad: Tensor, x: Tensor, x_hat: Tensor, mask: Tensor, axis: int = -1
) -> tuple[Tensor, Tensor]:
    r"""Straight-through gradients of :func:`fake_quantize`.

    .. math::
        g_x = g \cdot [\text{in range}], \quad
        g_\rho = \sum g \cdot (\hat x - x [\text{in range}])

    With :math:`s = \gamma s_0`, the gradient of :math:`\gamma` is :math:`g_\rho / \gamma` and that
    of :math:`s` is :math:`g_\rho / s`, for plain and truncated tensors alike. Where :obj:`x` is not
    finite, nothing is added to either.

    Args:
        grad (torch.Tensor): :math:`g`, the gradient of :math:`\hat x`.
        x (torch.Tensor): The input of the forward pass.
        x_hat (torch.Tensor): Its first output.
        mask (torch.Tensor): Its second output.
        axis (int): -1 for a scale per tensor, 0 per row, 1 per column.

    Returns:
        (torch.Tensor, torch.Tensor): :math:`g_x`, and :math:`g_\rho` in float32 in the shape of the
        scale: :math:`()`, :math:`[N, 1]` or :math:`[1, F]`. Sums are taken in float64.

    Example:
        >>> g, x = torch.ones(2), torch.tensor([0.4, 9.0])
        >>> x_hat, mask = fake_quantize(x, torch.tensor(1.), torch.tensor(0.), bits=2)
        >>> fake_quantize_backward(g, x, x_hat, mask)
        (tensor([1., 0.]), tensor(2.6000))
    """
    passed = torch.where(mask, x, 0).double()
    residual = torch.where(x.isfinite(), grad.double() * (x_hat.double() - passed), 0)
    if axis == -1:
        reduced = residual.sum()
    else:
        reduced = residual.sum(dim=1 - axis, keepdim=True)
    return torch.where(mask, grad, 0), reduced.float()


def pack(codes: Tensor, bits: int) -> Tensor:
    r"""Codes :math:`[N, F]` to packed rows :math:`[N, \mathrm{stride}]`, see :class:`RowLayout`.

    Example:
        >>> pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), bits=2).shape
        torch.Size([1, 16])
    """
    layout = row_layout(codes.size(1), bits)
    padded = codes.new_zeros((codes.size(0), layout.units * layout.codes_per_unit))
    padded[:, : codes.size(1)] = codes
    planes = padded.view(-1, layout.units, layout.fields, layout.unit)
    packed = codes.new_zeros((codes.size(0), layout.units, layout.unit))
    for k in range(layout.fields):
        packed |= planes[:, :, k] << (bits * k)
    return packed.view(codes.size(0), layout.stride)


def unpack(packed: Tensor, num_cols: int, bits: int) -> Tensor:
    r"""Packed rows back to uint8 codes :math:`[N, F]`, the inverse of :func:`pack`.

    Example:
        >>> unpack(pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), bits=2), 3, bits=2)
        tensor([[1, 2, 3]], dtype=torch.uint8)
    """
    layout = row_layout(num_cols, bits)
    units = packed.view(-1, layout.units, layout.unit)
    planes = [(units >> (bits * k)) & (2**bits - 1) for k in range(layout.fields)]
    codes = torch.stack(planes, dim=2).view(packed.size(0), layout.units * layout.codes_per_unit)
    return codes[:, :num_cols].contiguous()


def index_select(packed: Tensor, index: Tensor) -> Tensor:
    r"""Packed rows at :obj:`index`, without unpacking them.

    Example:
        >>> index_select(torch.zeros(4, 16, dtype=torch.uint8), torch.tensor([3, 0])).shape
        torch.Size([2, 16])
    """
    return packed.index_select(0, index.long())


def _edge_blocks(rowptr: Tensor, col: Tensor, width: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of edges as (slice of edges, target rows, source rows)."""
    num_rows = rowptr.numel() - 1
    degree = rowptr.long().diff()
    target = torch.arange(num_rows, device=col.device).repeat_interleave(
        degree, output_size=col.numel()
    )
    size = max(1, _BLOCK_ELEMENTS // max(1, width))
    for start in range(0, col.numel(), size):
        block = slice(start, start + size)
        yield block, target[block], col[block].long()


def _epilogue(
    y: Tensor,
    rowptr: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    addend: Tensor | None,
    addend_scale: float,
    reduce: str,
    relu: bool,
) -> Tensor:
    """The float64 aggregate, rounded to float32, to the output."""
    y = y.float()
    if reduce == "mean":
        y = y / rowptr.long().diff().clamp(min=1).unsqueeze(1).float()
    if row_scale is not None:
        y = y * row_scale.float().reshape(-1, 1)
    if addend is not None:
        y = y + addend_scale * addend.float()
    if bias is not None:
        y = y + bias.float().reshape(-1)
    return y.relu() if relu else y


def spmm(
    rowptr: Tensor,
    col: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    edge_weight: Tensor | None = None,
    source_weight: Tensor | None = None,
    row_scale: Tensor | None = None,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    addend_scale: float = 1.0,
    reduce: str = "sum",
    relu: bool = False,
) -> Tensor:
    r"""Gathers quantized rows along a CSR, sums them up and applies an affine epilogue.

    .. math::
        y_i = r_i \sum_{j \in \mathcal{N}(i)} e_{ij} u_j \, S (c_j - Z) + \beta a_i + b

    with edge weights :math:`e`, source weights :math:`u`, row scale :math:`r`, addend :math:`a`
    and bias :math:`b`, each optional; a mean also divides the sum by the number of neighbours.

    Args:
        rowptr (torch.Tensor): CSR offsets :math:`[M + 1]`.
        col (torch.Tensor): Source rows :math:`[E]`.
        codes (torch.Tensor): uint8 codes :math:`[N, F]`, or values if :obj:`scale` is 1.
        scale (torch.Tensor): :math:`S`, of shape :math:`()`, :math:`[N, 1]` or :math:`[1, F]`.
        zero_point (torch.Tensor): :math:`Z`, likewise; may be fractional.
        edge_weight (torch.Tensor, optional): :math:`e`, of shape :math:`[E]`.
        source_weight (torch.Tensor, optional): :math:`u`, of shape :math:`[N]`.
        row_scale (torch.Tensor, optional): :math:`r`, of shape :math:`[M]`.
        bias (torch.Tensor, optional): :math:`b`, of shape :math:`[F]`.
        addend (torch.Tensor, optional): :math:`a`, of shape :math:`[M, F]`.
        addend_scale (float): :math:`\beta`.
        reduce (str): :obj:`"sum"` or :obj:`"mean"`.
        relu (bool): Clamp the result at zero.

    Example:
        >>> rowptr, col = torch.tensor([0, 2, 2]), torch.tensor([0, 1])
        >>> codes = torch.tensor([[1, 2], [3, 3]], dtype=torch.uint8)
        >>> spmm(rowptr, col, codes, torch.tensor(0.5), torch.tensor(1.0))
        tensor([[1.0000, 1.5000],
                [0.0000, 0.0000]])
    """
    num_rows = rowptr.numel() - 1
    y = torch.zeros((num_rows, codes.size(1)), dtype=torch.float64, device=codes.device)
    weight = None if source_weight is None else source_weight.double().reshape(-1, 1)
    scale, zero_point = scale.double(), zero_point.double()
    for block, target, source in _edge_blocks(rowptr, col, codes.size(1)):
        message = codes[source].double()
        # Sums of small integers are exact in float64, so subtracting Z first loses nothing.
        message = message - (zero_point[source] if _per_row(zero_point, codes) else zero_point)
        message = message * (scale[source] if _per_row(scale, codes) else scale)
        if weight is not None:
            message = message * weight[source]
        if edge_weight is not None:
            message = message * edge_weight.reshape(-1)[block].double().unsqueeze(1)
        y.index_add_(0, target, message)
    return _epilogue(y, rowptr, row_scale, bias, addend, addend_scale, reduce, relu)


def _per_row(param: Tensor, codes: Tensor) -> bool:
    """Whether a scale or zero point has one entry per row of the codes."""
    return param.dim() == 2 and param.size(1) == 1 and param.size(0) == codes.size(0) != 1


def extremum(
    rowptr: Tensor,
    col: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    largest: bool = True,
) -> Tensor:
    r"""Element-wise maximum (or minimum) of quantized neighbour rows; 0 without neighbours.

    Example:
        >>> rowptr, col = torch.tensor([0, 2, 2]), torch.tensor([0, 1])
        >>> codes = torch.tensor([[1, 2], [3, 0]], dtype=torch.uint8)
        >>> extremum(rowptr, col, codes, torch.tensor(1.0), torch.tensor(1.0))
        tensor([[2., 1.],
                [0., 0.]])
    """
    values = dequantize(codes, scale, zero_point)
    num_rows = rowptr.numel() - 1
    y = values.new_full((num_rows, codes.size(1)), float("-inf") if largest else float("inf"))
    for _, target, source in _edge_blocks(rowptr, col, codes.size(1)):
        index = target.view(-1, 1).expand(-1, codes.size(1))
        y.scatter_reduce_(0, index, values[source], "amax" if largest else "amin")
    isolated = rowptr.long().diff().eq(0).view(-1, 1)
    return y.masked_fill(isolated, 0.0)


def attention(
    rowptr: Tensor,
    col: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    alpha: Tensor,
    *,
    bias: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    r"""Gathers quantized rows of several heads with one coefficient per edge and head.

    .. math::
        y_{i,h,:} = \sum_{j} \alpha_{ij,h} \, S (c_{j,h,:} - Z) + b_{h,:}

    Args:
        rowptr, col, codes, scale, zero_point: As in :func:`spmm`, with :math:`F = H C` columns,
            head by head.
        alpha (torch.Tensor): Coefficients :math:`[E, H]`.
        bias (torch.Tensor, optional): :math:`b`, of shape :math:`[HC]`.
        relu (bool): Clamp the result at zero.

    Example:
        >>> rowptr, col = torch.tensor([0, 1]), torch.tensor([0])
        >>> codes = torch.tensor([[1, 2, 3, 3]], dtype=torch.uint8)
        >>> attention(rowptr, col, codes, torch.tensor(1.), torch.tensor(1.),
        ...           torch.tensor([[1.0, 0.5]]))
        tensor([[0., 1., 1., 1.]])
    """
    num_rows, heads = rowptr.numel() - 1, alpha.size(1)
    scale, zero_point = scale.double(), zero_point.double()
    y = torch.zeros((num_rows, codes.size(1)), dtype=torch.float64, device=codes.device)
    for block, target, source in _edge_blocks(rowptr, col, codes.size(1)):
        message = codes[source].double()
        message = message - (zero_point[source] if _per_row(zero_point, codes) else zero_point)
        message = message * (scale[source] if _per_row(scale, codes) else scale)
        weight = alpha[block].double().repeat_interleave(codes.size(1) // heads, dim=1)
        y.index_add_(0, target, message * weight)
    return _epilogue(y, rowptr, None, bias, None, 1.0, "sum", relu)


def linear(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor,
    *,
    bias: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    r"""The product of two quantized matrices, affine in both.

    .. math::
        y = S_x (c_x - Z_x) \left( S_w (c_w - Z_w) \right)^{\top} + b

    Args:
        codes (torch.Tensor): uint8 codes :math:`[M, K]`.
        scale, zero_point (torch.Tensor): Of shape :math:`()`, :math:`[M, 1]` or :math:`[1, K]`.
        weight (torch.Tensor): uint8 codes :math:`[O, K]`.
        weight_scale, weight_zero_point (torch.Tensor): Of shape :math:`()`, :math:`[O, 1]` or
            :math:`[1, K]`.
        bias (torch.Tensor, optional): Of shape :math:`[O]`.
        relu (bool): Clamp the result at zero.

    Example:
        >>> codes = torch.tensor([[1, 2]], dtype=torch.uint8)
        >>> one = torch.tensor(1.0)
        >>> linear(codes, one, one, codes, one, one)
        tensor([[1.]])
    """
    x = (codes.double() - zero_point.double()) * scale.double()
    w = (weight.double() - weight_zero_point.double()) * weight_scale.double()
    y = (x @ w.t()).float()
    if bias is not None:
        y = y + bias.float().reshape(-1)
    return y.relu() if relu else y


def quantize_pack(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    *,
    truncate: bool = False,
    skew: Tensor | None = None,
) -> Tensor:
    r""":func:`quantize`, then :func:`pack` at :func:`storage_bits`.

    Example:
        >>> quantize_pack(torch.rand(3, 100), torch.tensor(0.1), torch.tensor(0.), bits=3).shape
        torch.Size([3, 64])
    """
    codes = quantize(x, scale, zero_point, bits, truncate=truncate, skew=skew)
    return pack(codes, storage_bits(bits))
