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

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from torch_geometric_qlr.ops.groups import (
    CodeMatrix,
    Epilogue,
    Graph,
    PackedMatrix,
    QParams,
    Weights,
)
from torch_geometric_qlr.ops.layout import row_layout, storage_bits

__all__ = [
    "affine_params",
    "attention",
    "dequantize",
    "edge_codes",
    "extremum",
    "fake_quantize",
    "fake_quantize_backward",
    "finish",
    "linear",
    "pack",
    "quantize",
    "quantize_pack",
    "row_codes",
    "spmm",
    "truncation_step",
    "unpack",
    "unpack_matrix",
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


def quantize(x: Tensor, how: QParams) -> Tensor:
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
        x (torch.Tensor): The values :math:`x`; computed in float32.
        how (QParams): Scale :math:`s`, zero point :math:`z`, width :math:`b`, and :math:`k` of
            BT*.

    Returns:
        torch.Tensor: uint8 codes in the shape of :obj:`x`.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 0.4, 9.0])
        >>> quantize(x, QParams(torch.tensor(1.0), torch.tensor(1.0), bits=2))
        tensor([0, 1, 1, 3], dtype=torch.uint8)
    """
    levels = 2**how.bits - 1
    q = _raw_codes(x, how)
    if not how.truncate:
        return _clamp(q, levels).to(torch.uint8)
    return _clamp(_cut(q, how), levels).to(torch.uint8)


def _raw_codes(x: Tensor, how: QParams) -> Tensor:
    return torch.round(x.float() / how.scale.float() + how.zero_point.float())


def _cut(q: Tensor, how: QParams) -> Tensor:
    """Codes of 8 bits to levels of fewer, before they are clamped to these."""
    # A tensor, not a number: CUDA turns a division by a number into a product with its reciprocal.
    step = torch.full((), truncation_step(how.bits), dtype=torch.float32, device=q.device)
    q = _clamp(q, 255)
    if how.skew is not None:
        q = q + how.skew.float()
    return torch.round(q / step)


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


def fake_quantize(x: Tensor, how: QParams) -> tuple[Tensor, Tensor]:
    r"""The values the codes of :obj:`x` stand for, and where no clamp acted on them.

    A value that is not finite stands for itself, :math:`\hat x = x`, and counts as clamped.

    Args:
        x, how: As in :func:`quantize`.

    Returns:
        (torch.Tensor, torch.Tensor): :math:`\hat x` in the dtype of :obj:`x`, and a bool mask that
        is true where neither clamp acted.

    Example:
        >>> how = QParams(torch.tensor(1.), torch.tensor(0.), bits=2)
        >>> fake_quantize(torch.tensor([0.4, 9.0]), how)
        (tensor([0., 3.]), tensor([ True, False]))
    """
    top = 255 if how.truncate else 2**how.bits - 1
    q, finite = _raw_codes(x, how), x.isfinite()
    mask = finite & (q >= 0) & (q <= top)
    if how.truncate and how.skew is not None:
        c = _cut(q, how)
        mask = mask & (c >= 0) & (c <= 2**how.bits - 1)
    scale, zero_point = how.scale.float(), how.zero_point.float()
    read_back = affine_params(scale, zero_point, how.bits, how.truncate)
    x_hat = dequantize(quantize(x, how), *read_back)
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
        >>> x_hat, mask = fake_quantize(x, QParams(torch.tensor(1.), torch.tensor(0.), bits=2))
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


def _edge_blocks(graph: Graph, width: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of edges as (slice of edges, target rows, source rows)."""
    degree = graph.rowptr.long().diff()
    target = torch.arange(graph.num_rows, device=degree.device).repeat_interleave(
        degree, output_size=graph.col.numel()
    )
    size = max(1, _BLOCK_ELEMENTS // max(1, width))
    for start in range(0, graph.col.numel(), size):
        block = slice(start, start + size)
        yield block, target[block], graph.col[block].long()


def _sum_of_messages(
    graph: Graph, matrix: CodeMatrix, weighted: Callable[[Tensor, slice, Tensor], Tensor]
) -> Tensor:
    """Values of source rows in float64, weighted, and summed up by target."""
    codes, scale, zero_point = matrix.codes, matrix.scale.double(), matrix.zero_point.double()
    y = torch.zeros((graph.num_rows, codes.size(1)), dtype=torch.float64, device=codes.device)
    for block, target, source in _edge_blocks(graph, codes.size(1)):
        message = codes[source].double()
        # Sums of small integers are exact in float64, so subtracting Z first loses nothing.
        message = message - (zero_point[source] if _per_row(zero_point, codes) else zero_point)
        message = message * (scale[source] if _per_row(scale, codes) else scale)
        y.index_add_(0, target, weighted(message, block, source))
    return y


def _per_row(param: Tensor, codes: Tensor) -> bool:
    """Whether a scale or zero point has one entry per row of the codes."""
    return param.dim() == 2 and param.size(1) == 1 and param.size(0) == codes.size(0) != 1


def finish(y: Tensor, after: Epilogue, graph: Graph | None = None) -> Tensor:
    r"""What follows a sum: the float64 one is rounded to float32 first.

    Args:
        y (torch.Tensor): The sums :math:`[M, F]`.
        after (Epilogue): What is done to them.
        graph (Graph, optional): Whose neighbours a mean counts.

    Example:
        >>> finish(torch.tensor([[-1.5, 1.0]]), Epilogue(bias=torch.ones(2), relu=True))
        tensor([[0., 2.]])
    """
    y = y.float()
    if after.reduce == "mean" and graph is not None:
        y = y / graph.rowptr.long().diff().clamp(min=1).unsqueeze(1).float()
    if after.row_scale is not None:
        y = y * after.row_scale.float().reshape(-1, 1)
    if after.addend is not None:
        y = y + after.addend_scale * after.addend.float()
    if after.bias is not None:
        y = y + after.bias.float().reshape(-1)
    return y.relu() if after.relu else y


#: Weights of edges that are no larger than this are none.
_NO_WEIGHT = 1e-30


def edge_codes(graph: Graph, weights: Weights, bits: int) -> tuple[Tensor, Tensor]:
    r"""Weights of edges as integers :math:`n`, with a scale :math:`t` for each row of the graph.

    .. math::
        n_{ij} = \left\lfloor \frac{e_{ij} u_j}{t_i} \right\rceil, \quad
        t_i = \frac{\max_{j \in \mathcal{N}(i)} |e_{ij} u_j|}{2^{b-1} - 1}

    Args:
        graph (Graph): Of :math:`M` rows.
        weights (Weights): :math:`e`, and :math:`u` if the sources have weights.
        bits (int): :math:`b`, from 2 to 8.

    Returns:
        (torch.Tensor, torch.Tensor): Codes, int8 :math:`[E]`, and scales :math:`[M]`.

    Example:
        >>> graph = Graph(torch.tensor([0, 2]), torch.tensor([0, 1]))
        >>> edge_codes(graph, Weights(torch.tensor([1.0, -0.5])), bits=8)
        (tensor([127, -64], dtype=torch.int8), tensor([0.0079]))
    """
    assert weights.edge_weight is not None
    w = weights.edge_weight.float().reshape(-1)
    if weights.source_weight is not None:
        w = w * weights.source_weight.float().reshape(-1)[graph.col.long()]
    degree = graph.rowptr.long().diff()
    target = torch.arange(graph.num_rows, device=w.device).repeat_interleave(
        degree, output_size=w.numel()
    )
    return row_codes(w, target, graph.num_rows, bits)


def row_codes(w: Tensor, target: Tensor, num_rows: int, bits: int) -> tuple[Tensor, Tensor]:
    r"""What :func:`edge_codes` gives, for edges in any order.

    Args:
        w (torch.Tensor): Weights, float32 :math:`[E]`.
        target (torch.Tensor): The row that each belongs to, :math:`[E]`.
        num_rows (int): :math:`M`.
        bits (int): From 2 to 8.

    Example:
        >>> row_codes(torch.tensor([1.0, 3.0, -0.5]), torch.tensor([1, 0, 1]), 2, bits=8)
        (tensor([127, 127, -64], dtype=torch.int8), tensor([0.0236, 0.0079]))
    """
    zeros = w.new_zeros(num_rows)
    largest = zeros.scatter_reduce(0, target, w.abs(), "amax")
    nothing = zeros.index_add(0, target, 0 * w)  # NaN where there is more
    has_any = largest > _NO_WEIGHT
    scale = torch.where(has_any, largest / (2 ** (bits - 1) - 1), 1.0) + nothing
    codes = torch.where(has_any[target], w / scale[target], 0.0)
    return codes.round().nan_to_num(0.0).to(torch.int8), scale


_NO_WEIGHTS, _NO_EPILOGUE = Weights(), Epilogue()


def spmm(
    graph: Graph,
    matrix: CodeMatrix,
    weights: Weights = _NO_WEIGHTS,
    after: Epilogue = _NO_EPILOGUE,
) -> Tensor:
    r"""Gathers quantized rows along a CSR, sums them up and applies an affine epilogue.

    .. math::
        y_i = r_i \sum_{j \in \mathcal{N}(i)} e_{ij} u_j \, S (c_j - Z) + \beta a_i + b

    with edge weights :math:`e`, source weights :math:`u`, row scale :math:`r`, addend :math:`a`
    and bias :math:`b`, each optional; a mean also divides the sum by the number of neighbours.

    Args:
        graph (Graph): Of :math:`M` rows.
        matrix (CodeMatrix): The sources, :math:`[N, F]`.
        weights (Weights): :math:`e` and :math:`u`.
        after (Epilogue): :math:`r`, :math:`a`, :math:`\beta`, :math:`b`, mean and ReLU.

    Example:
        >>> graph = Graph(torch.tensor([0, 2, 2]), torch.tensor([0, 1]))
        >>> codes = torch.tensor([[1, 2], [3, 3]], dtype=torch.uint8)
        >>> spmm(graph, CodeMatrix(codes, torch.tensor(0.5), torch.tensor(1.0)))
        tensor([[1.0000, 1.5000],
                [0.0000, 0.0000]])
    """
    of_source, of_edge = weights.source_weight, weights.edge_weight
    column = None if of_source is None else of_source.double().reshape(-1, 1)

    def weighted(message: Tensor, block: slice, source: Tensor) -> Tensor:
        if column is not None:
            message = message * column[source]
        if of_edge is not None:
            message = message * of_edge.reshape(-1)[block].double().unsqueeze(1)
        return message

    return finish(_sum_of_messages(graph, matrix, weighted), after, graph)


def extremum(graph: Graph, matrix: CodeMatrix, *, largest: bool = True) -> Tensor:
    r"""Element-wise maximum (or minimum) of quantized neighbour rows; 0 without neighbours.

    Example:
        >>> graph = Graph(torch.tensor([0, 2, 2]), torch.tensor([0, 1]))
        >>> codes = torch.tensor([[1, 2], [3, 0]], dtype=torch.uint8)
        >>> extremum(graph, CodeMatrix(codes, torch.tensor(1.0), torch.tensor(1.0)))
        tensor([[2., 1.],
                [0., 0.]])
    """
    values = dequantize(*matrix)
    cols = values.size(1)
    y = values.new_full((graph.num_rows, cols), float("-inf") if largest else float("inf"))
    for _, target, source in _edge_blocks(graph, cols):
        index = target.view(-1, 1).expand(-1, cols)
        y.scatter_reduce_(0, index, values[source], "amax" if largest else "amin")
    isolated = graph.rowptr.long().diff().eq(0).view(-1, 1)
    return y.masked_fill(isolated, 0.0)


def attention(
    graph: Graph, matrix: CodeMatrix, alpha: Tensor, after: Epilogue = _NO_EPILOGUE
) -> Tensor:
    r"""Gathers quantized rows of several heads with one coefficient per edge and head.

    .. math::
        y_{i,h,:} = \sum_{j} \alpha_{ij,h} \, S (c_{j,h,:} - Z) + b_{h,:}

    Args:
        graph (Graph): As in :func:`spmm`.
        matrix (CodeMatrix): With :math:`F = H C` columns, head by head.
        alpha (torch.Tensor): Coefficients :math:`[E, H]`.
        after (Epilogue): With :math:`b`, of shape :math:`[HC]`.

    Example:
        >>> graph = Graph(torch.tensor([0, 1]), torch.tensor([0]))
        >>> codes = torch.tensor([[1, 2, 3, 3]], dtype=torch.uint8)
        >>> matrix = CodeMatrix(codes, torch.tensor(1.0), torch.tensor(1.0))
        >>> attention(graph, matrix, torch.tensor([[1.0, 0.5]]))
        tensor([[0., 1., 1., 1.]])
    """

    def weighted(message: Tensor, block: slice, source: Tensor) -> Tensor:
        of_head = alpha[block].double()
        return message * of_head.repeat_interleave(message.size(1) // alpha.size(1), dim=1)

    return finish(_sum_of_messages(graph, matrix, weighted), after)


def linear(x: CodeMatrix, weight: CodeMatrix, after: Epilogue = _NO_EPILOGUE) -> Tensor:
    r"""The product of two quantized matrices, affine in both.

    .. math::
        y = S_x (c_x - Z_x) \left( S_w (c_w - Z_w) \right)^{\top} + b

    Args:
        x (CodeMatrix): :math:`[M, K]`.
        weight (CodeMatrix): :math:`[O, K]`.
        after (Epilogue): With :math:`b`, of shape :math:`[O]`.

    Example:
        >>> codes = torch.tensor([[1, 2]], dtype=torch.uint8)
        >>> x = CodeMatrix(codes, torch.tensor(1.0), torch.tensor(1.0))
        >>> linear(x, x)
        tensor([[1.]])
    """
    values, factors = (
        (m.codes.double() - m.zero_point.double()) * m.scale.double() for m in (x, weight)
    )
    return finish(values @ factors.t(), after)


def quantize_pack(x: Tensor, how: QParams) -> Tensor:
    r""":func:`quantize`, then :func:`pack` at :func:`storage_bits`.

    Example:
        >>> how = QParams(torch.tensor(0.1), torch.tensor(0.0), bits=3)
        >>> quantize_pack(torch.rand(3, 100), how).shape
        torch.Size([3, 64])
    """
    return pack(quantize(x, how), storage_bits(how.bits))


def unpack_matrix(matrix: PackedMatrix) -> CodeMatrix:
    r""":func:`unpack`, with what reads the codes back.

    Example:
        >>> data = pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), bits=2)
        >>> unpack_matrix(PackedMatrix(data, 3, 2, torch.tensor(1.0), torch.tensor(0.0))).codes
        tensor([[1, 2, 3]], dtype=torch.uint8)
    """
    codes = unpack(matrix.data, matrix.num_cols, matrix.bits)
    return CodeMatrix(codes, matrix.scale, matrix.zero_point)
