"""The packed operations on :class:`PackedTensor`: what a converted model calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.ops import QParams as OutputQuantizer
from torch_geometric_qlr.ops import Steps, affine_params, storage_bits
from torch_geometric_qlr.tensor.packed import PackedTensor

__all__ = [
    "OutputQuantizer",
    "Steps",
    "attention",
    "edge_codes",
    "extremum",
    "linear",
    "propagate",
    "smp",
    "sparse_linear",
    "spmm",
]


#: The arguments of a result that stays float.
_FLOAT = (None, None, 8, False, None)


def _wrap(data: Tensor, num_cols: int, out: OutputQuantizer | None) -> Tensor | PackedTensor:
    if out is None:
        return data
    params = affine_params(out.scale, out.zero_point, out.bits, out.truncate)
    return PackedTensor.unchecked(data, num_cols, storage_bits(out.bits), *params)


def _parts(x: PackedTensor) -> tuple[Tensor, int, int, Tensor, Tensor]:
    return x.data, x.num_cols, x.bits, x.scale, x.zero_point


def spmm(
    rowptr: Tensor,
    col: Tensor,
    x: PackedTensor,
    *,
    edge_weight: Tensor | None = None,
    source_weight: Tensor | None = None,
    row_scale: Tensor | None = None,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    addend_scale: float = 1.0,
    reduce: str = "sum",
    relu: bool = False,
    out: OutputQuantizer | None = None,
) -> Tensor | PackedTensor:
    r"""Gathers packed rows along a CSR and sums them up.

    .. math::
        y_i = r_i \sum_{j \in \mathcal{N}(i)} e_{ij} u_j \, \hat x_j + \beta a_i + b

    Without :math:`e` and :math:`u` the sums are exact integers, and so they are where :math:`e` is
    int8, as :func:`edge_codes` makes it with a scale :math:`r` for each row. The normalisation of
    GCN is :math:`u = r = \deg^{-1/2}`.

    Args:
        rowptr (torch.Tensor): CSR offsets :math:`[M + 1]`, best as int64.
        col (torch.Tensor): Source rows :math:`[E]`, best as int32: others are converted per call.
        x (PackedTensor): The source rows, :math:`[N, F]`.
        edge_weight (torch.Tensor, optional): :math:`e`, :math:`[E]`.
        source_weight (torch.Tensor, optional): :math:`u`, :math:`[N]`.
        row_scale (torch.Tensor, optional): :math:`r`, :math:`[M]`.
        bias (torch.Tensor, optional): :math:`b`, :math:`[F]`.
        addend (torch.Tensor, optional): :math:`a`, :math:`[M, F]`: a teleport or self term.
        addend_scale (float): :math:`\beta`.
        reduce (str): :obj:`"sum"` or :obj:`"mean"`.
        relu (bool): Clamp the result at zero.
        out (OutputQuantizer, optional): Quantize and pack the result.

    Returns:
        torch.Tensor or PackedTensor: :math:`[M, F]`.

    Raises:
        InputError: If shapes do not fit or an index is out of range.

    Example:
        >>> codes = torch.tensor([[1, 2], [3, 3]], dtype=torch.uint8)
        >>> x = PackedTensor.from_codes(codes, torch.tensor(0.5), torch.tensor(1.0), bits=2)
        >>> spmm(torch.tensor([0, 2, 2]), torch.tensor([0, 1]), x)
        tensor([[1.0000, 1.5000],
                [0.0000, 0.0000]])
    """
    y = torch.ops.qlr.packed_spmm(
        *(rowptr, col, *_parts(x), edge_weight, source_weight, row_scale),
        *(bias, addend, addend_scale, reduce, relu, *(out or _FLOAT)),
    )
    return _wrap(y, x.num_cols, out)


def edge_codes(
    rowptr: Tensor,
    col: Tensor,
    edge_weight: Tensor,
    *,
    bits: int = 8,
    source_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Weights of edges as integers, with a scale for each row of the graph.

    .. math::
        n_{ij} = \left\lfloor \frac{e_{ij} u_j}{t_i} \right\rceil, \quad
        t_i = \frac{\max_{j \in \mathcal{N}(i)} |e_{ij} u_j|}{2^{b-1} - 1}

    :func:`spmm` takes :math:`n` as its :obj:`edge_weight` and :math:`t` as its :obj:`row_scale`.

    Args:
        rowptr, col, edge_weight: As in :func:`spmm`.
        bits (int): :math:`b`, from 2 to 8.
        source_weight (torch.Tensor, optional): :math:`u`, :math:`[N]`.

    Returns:
        tuple: :math:`n`, int8 :math:`[E]`, and :math:`t`, :math:`[M]`.

    Example:
        >>> edge_codes(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([1.0, 0.25]))
        (tensor([127,  32], dtype=torch.int8), tensor([0.0079]))
    """
    codes, scale = torch.ops.qlr.quantize_edges(rowptr, col, edge_weight, bits, source_weight)
    return codes, scale


def propagate(
    rowptr: Tensor,
    col: Tensor,
    x: PackedTensor,
    steps: Sequence[OutputQuantizer] | Steps,
    *,
    edge_weight: Tensor | None = None,
    row_scale: Tensor | None = None,
    factor: float = 1.0,
    addend: Tensor | None = None,
    addend_scale: float = 1.0,
    out: OutputQuantizer | None = None,
) -> Tensor | PackedTensor:
    r"""Several hops in one call: what one of them sums up is quantized, packed and sent on.

    .. math::
        y^{(k)} = f \, r \, E \, \hat x^{(k-1)} + \beta a, \qquad
        x^{(k)} = Q_k \left( y^{(k)} \right), \qquad k = 1, \ldots, K

    With :math:`f = 1 - \alpha`, :math:`\beta = \alpha` and :math:`a` the first features this is
    personalised PageRank. It equals :math:`K` calls of :func:`spmm`, at the cost of one.

    Args:
        rowptr, col, edge_weight, row_scale, addend, addend_scale, out: As in :func:`spmm`; as many
            rows as there are sources.
        x (PackedTensor): The first sources :math:`[N, F]`, with one scale, or one per column.
        steps (list or Steps): How the results of all hops but the last are quantized: per tensor,
            all with the same :obj:`bits` and :obj:`truncate`.
        factor (float): :math:`f`.

    Raises:
        InputError: If shapes do not fit, or the steps differ in width.

    Example:
        >>> codes = torch.tensor([[1], [3]], dtype=torch.uint8)
        >>> x = PackedTensor.from_codes(codes, torch.tensor(1.0), torch.tensor(0.0), bits=2)
        >>> step = OutputQuantizer(torch.tensor(1.0), torch.tensor(0.0), bits=2)
        >>> swap = torch.tensor([0, 1, 2]), torch.tensor([1, 0])
        >>> propagate(*swap, x, [step], factor=0.5)
        tensor([[0.],
                [1.]])
    """
    joined = steps if isinstance(steps, Steps) else Steps.of(steps, x.scale)
    y = torch.ops.qlr.packed_propagate(
        *(rowptr, col, *_parts(x), *joined),
        *(edge_weight, row_scale, factor, addend, addend_scale, *(out or _FLOAT)),
    )
    return _wrap(y, x.num_cols, out)


def smp(
    rowptr: Tensor,
    col: Tensor,
    x: Tensor,
    steps: Sequence[OutputQuantizer] | Steps,
    *,
    edge_weight: Tensor | None = None,
    row_scale: Tensor | None = None,
    **options: Any,
) -> Tensor:
    r"""All steps of smoothness-aware message propagation in one call,

    .. math::
        \mathbf{H}^{\prime} &= (1 - (1 + \mu) \eta) \mathbf{H} + \mu \eta E \, Q_1(\mathbf{H})
        + \eta \mathbf{X}

        \mathbf{H}^{+} &= \mathbf{H}^{\prime} + 2 \eta \lambda E \, Q_2(\mathbf{G}), \quad
        \mathbf{G} = \mathbf{H}^{\prime} - \mathbf{H},

    with the multiplier of :class:`torch_geometric_qlr.nn.SMP`.

    Args:
        rowptr, col, edge_weight, row_scale: As in :func:`spmm`; as many rows as there are
            sources. Both multiply :math:`E`.
        x (torch.Tensor): Features :math:`[N, F]`.
        steps (list or Steps): Two quantizers per step, per tensor, all with the same :obj:`bits`
            and :obj:`truncate`.
        **options (optional): :obj:`mu`, :obj:`eta`, :obj:`eta_lambda`, :obj:`eta_slack`,
            :obj:`init_lambda`, :obj:`init_slack`, :obj:`tau`, :obj:`primal` and
            :obj:`projection`.

    Returns:
        torch.Tensor: :math:`[N, F]`.

    Raises:
        InputError: If shapes do not fit, or the steps differ in width.

    Example:
        >>> x = torch.tensor([[0.0], [3.0]])
        >>> step = OutputQuantizer(torch.tensor(1.0), torch.tensor(0.0), bits=2)
        >>> swap = torch.tensor([0, 1, 2]), torch.tensor([1, 0])
        >>> smp(*swap, x, [step, step], mu=1.0, eta=0.5, init_lambda=0.0)
        tensor([[1.5000],
                [1.5000]])
    """
    joined = steps if isinstance(steps, Steps) else Steps.of(steps, x)
    y: Tensor = torch.ops.qlr.packed_smp(
        *(rowptr, col, x, *joined, edge_weight, row_scale), **options
    )
    return y


def extremum(rowptr: Tensor, col: Tensor, x: PackedTensor, *, largest: bool = True) -> Tensor:
    r"""Element-wise maximum (or minimum) over packed neighbour rows; 0 without neighbours.

    Codes are compared where one scale serves all rows; the scale must be positive.

    Example:
        >>> codes = torch.tensor([[1, 2], [3, 0]], dtype=torch.uint8)
        >>> x = PackedTensor.from_codes(codes, torch.tensor(1.0), torch.tensor(1.0), bits=2)
        >>> extremum(torch.tensor([0, 2]), torch.tensor([0, 1]), x)
        tensor([[2., 1.]])
    """
    y: Tensor = torch.ops.qlr.packed_extremum(rowptr, col, *_parts(x), largest)
    return y


def attention(
    rowptr: Tensor,
    col: Tensor,
    x: PackedTensor,
    alpha: Tensor,
    *,
    bias: Tensor | None = None,
    relu: bool = False,
    out: OutputQuantizer | None = None,
) -> Tensor | PackedTensor:
    r"""Sums packed neighbour rows with one coefficient per edge and head.

    Args:
        rowptr, col, x: As in :func:`spmm`; the columns of :obj:`x` are the heads, one after the
            other.
        alpha (torch.Tensor): Coefficients :math:`[E, H]`.
        bias, relu, out: As in :func:`spmm`.

    Example:
        >>> codes = torch.tensor([[1, 2, 3, 3]], dtype=torch.uint8)
        >>> x = PackedTensor.from_codes(codes, torch.tensor(1.0), torch.tensor(1.0), bits=2)
        >>> attention(torch.tensor([0, 1]), torch.tensor([0]), x, torch.tensor([[1.0, 0.5]]))
        tensor([[0., 1., 1., 1.]])
    """
    y = torch.ops.qlr.packed_attention(
        *(rowptr, col, *_parts(x), alpha, bias, relu, *(out or _FLOAT)),
    )
    return _wrap(y, x.num_cols, out)


def linear(
    x: PackedTensor,
    weight: PackedTensor,
    *,
    bias: Tensor | None = None,
    relu: bool = False,
    out: OutputQuantizer | None = None,
) -> Tensor | PackedTensor:
    r"""The product :math:`\hat x \hat w^{\top} + b` of packed matrices, exact in integers.

    Args:
        x (PackedTensor): :math:`[M, K]`, with a scale per tensor or row.
        weight (PackedTensor): :math:`[O, K]`, with a scale per tensor or output (row).
        bias (torch.Tensor, optional): :math:`[O]`.
        relu (bool): Clamp the result at zero.
        out (OutputQuantizer, optional): Quantize and pack the result.

    Raises:
        InputError: If the inner sizes differ.

    Example:
        >>> codes = torch.tensor([[1, 2]], dtype=torch.uint8)
        >>> x = PackedTensor.from_codes(codes, torch.tensor(1.0), torch.tensor(1.0), bits=2)
        >>> linear(x, x)
        tensor([[1.]])
    """
    if x.num_cols != weight.num_cols:
        raise InputError(
            f"linear: x has {x.num_cols} columns and the weight {weight.num_cols}; they must agree"
        )
    y = torch.ops.qlr.packed_linear(
        *_parts(x),
        *(weight.data, weight.bits, weight.scale, weight.zero_point),
        *(bias, relu, *(out or _FLOAT)),
    )
    return _wrap(y, weight.data.size(0), out)


def sparse_linear(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    weight: PackedTensor,
    *,
    bias: Tensor | None = None,
    relu: bool = False,
    out: OutputQuantizer | None = None,
) -> Tensor | PackedTensor:
    r"""Sparse features times a packed weight, e.g. a bag of words in the first layer.

    A row of features picks rows of the transposed weight, so this is :func:`spmm` with the values
    of the features as edge weights; zeros cost nothing.

    Args:
        rowptr, col, value: The features :math:`[M, K]` as CSR; without :obj:`value` all are 1.
        weight (PackedTensor): The *transposed* weight :math:`[K, O]`, with a scale per tensor or
            per output (column).
        bias, relu, out: As in :func:`spmm`.

    Example:
        >>> codes = torch.tensor([[1, 2], [3, 3]], dtype=torch.uint8)
        >>> weight = PackedTensor.from_codes(codes, torch.tensor(1.0), torch.tensor(1.0), bits=2)
        >>> sparse_linear(torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([0.5]), weight)
        tensor([[1., 1.]])
    """
    return spmm(rowptr, col, weight, edge_weight=value, bias=bias, relu=relu, out=out)
