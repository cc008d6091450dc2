"""The ops answered by the C++ kernels.

Each function takes the instruction set and what the schema says, checked. It raises
:class:`Unsupported` where no kernel serves the combination; `registry.py` then asks the reference.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.ops.arguments import check_values
from torch_geometric_qlr.ops.checks import (
    PROJECTIONS,
    NotFinite,
    Refused,
    code_too_large,
    place_not_finite,
)
from torch_geometric_qlr.ops.cpu_args import Arguments, Unsupported, call_library
from torch_geometric_qlr.ops.layout import row_layout, storage_bits
from torch_geometric_qlr.ops.library import Graph, Packed, Quantizer, Smp, load_library
from torch_geometric_qlr.ops.memory import empty
from torch_geometric_qlr.ops.reference import affine_params
from torch_geometric_qlr.ops.schemas import SmpOptions, reduced_shape

__all__ = ["KERNELS"]


def _run(isa: int) -> tuple[int, int]:
    return torch.get_num_threads(), isa


def _quantize_pack(
    isa: int,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    truncate: bool = False,
    skew: Tensor | None = None,
) -> Tensor:
    args, (rows, cols) = Arguments(), x.shape
    quantizer = args.quantizer(scale, zero_point, bits, truncate, skew, rows)
    out = empty((rows, row_layout(cols, storage_bits(bits)).stride), torch.uint8)
    to = (quantizer, out.data_ptr(), *_run(isa))
    try:
        call_library("qlr_quantize_pack", args.floats(x), rows, cols, *to)
    except NotFinite:
        raise Refused(place_not_finite(x)) from None
    return out


def _pack(isa: int, codes: Tensor, bits: int) -> Tensor:
    args, (rows, cols) = Arguments(), codes.shape
    out = empty((rows, row_layout(cols, bits).stride), torch.uint8)
    to = (out.data_ptr(), *_run(isa))
    try:
        call_library("qlr_pack", args.address(codes), rows, cols, bits, *to)
    except Refused:
        raise Refused(code_too_large(codes, bits)) from None
    return out


def _unpack(isa: int, packed: Tensor, num_cols: int, bits: int) -> Tensor:
    args = Arguments()
    source = Packed(args.address(packed), packed.size(0), num_cols, bits, -1, None, None)
    out = empty((packed.size(0), num_cols), torch.uint8)
    call_library("qlr_unpack", source, out.data_ptr(), *_run(isa))
    return out


def _dequantize_packed(
    isa: int, packed: Tensor, num_cols: int, bits: int, scale: Tensor, zero_point: Tensor
) -> Tensor:
    args = Arguments()
    source = args.packed(packed, num_cols, bits, scale, zero_point)
    out = empty((packed.size(0), num_cols), torch.float32)
    call_library("qlr_dequantize", source, out.data_ptr(), *_run(isa))
    return out


def _index_select(isa: int, packed: Tensor, index: Tensor) -> Tensor:
    args = Arguments()
    rows, stride = packed.shape
    out = empty((index.numel(), stride), torch.uint8)
    index_at = args.address(index.to(torch.int64))
    call_library(
        "qlr_index_select",
        *(args.address(packed), rows, stride, index_at, index.numel(), out.data_ptr()),
        torch.get_num_threads(),
    )
    return out


def _packed_spmm(
    isa: int,
    rowptr: Tensor,
    col: Tensor,
    packed: Tensor,
    num_cols: int,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    edge_weight: Tensor | None = None,
    source_weight: Tensor | None = None,
    **epilogue_arguments: Any,
) -> Tensor:
    args = Arguments()
    source = args.packed(packed, num_cols, bits, scale, zero_point)
    if source.axis == 0:  # a scale per source row is a source weight
        weight = scale.expand(packed.size(0), 1).reshape(-1).float()
        source_weight = weight if source_weight is None else weight * source_weight.view(-1)
    graph = args.graph(rowptr, col, packed.size(0), edge_weight, source_weight)
    epilogue, out = args.epilogue(graph.rows, num_cols, **epilogue_arguments)
    call_library("qlr_packed_spmm", graph, source, epilogue, *_run(isa))
    return out


def _prepare(args: Arguments, graph: Graph, isa: int) -> None:
    """Before several hops: the weights in the form in which the kernels multiply by them."""
    library, _ = load_library()
    if library is None or not graph.edge_weight:
        return
    digits = empty((4 * (2 * graph.rows + graph.edges // 4),), torch.int32)
    if library.qlr_edge_digits(graph, digits.data_ptr(), *_run(isa)) == 0:
        graph.digits = args.address(digits)


def _packed_propagate(
    isa: int,
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
    args = Arguments()
    source = args.packed(packed, num_cols, bits, scale * factor, zero_point)
    if source.axis == 0:
        raise Unsupported("several hops from rows with a range of their own each")
    graph, rows = args.graph(rowptr, col, packed.size(0), edge_weight), packed.size(0)
    term: dict[str, Any] = {"addend": addend, "addend_scale": addend_scale}
    steps = args.steps(step_scale, step_zero_point, step_bits, step_truncate, step_skew)
    if steps:
        _prepare(args, graph, isa)
    # Between hops: as it is quantized, and as the next hop reads it.
    numbers = step_scale.float(), step_zero_point.float()
    next_scale, next_zero = affine_params(*numbers, step_bits, step_truncate)
    scale_at, zero_at = args.floats(next_scale * factor), args.floats(next_zero)
    between, _ = args.epilogue(rows, num_cols, **term)
    width = storage_bits(step_bits)
    shape = (rows, row_layout(num_cols, width).stride)
    buffers = [empty(shape, torch.uint8) for _ in steps[:2]]
    between.out = None
    for k, step in enumerate(steps):
        between.packed = buffers[k % 2].data_ptr()
        between.quantizer = ctypes.pointer(step)
        call_library("qlr_packed_spmm", graph, source, between, *_run(isa))
        graph.checked = 1
        at = (scale_at + 4 * k, zero_at + 4 * k)
        source = Packed(between.packed, rows, num_cols, width, -1, *at)
    last, out = args.epilogue(rows, num_cols, **term, **output)
    call_library("qlr_packed_spmm", graph, source, last, *_run(isa))
    return out


def _packed_smp(
    isa: int,
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
    args, (rows, cols), told = Arguments(), x.shape, SmpOptions(**options)
    graph = args.graph(rowptr, col, rows, edge_weight)
    steps = args.steps(step_scale, step_zero_point, step_bits, step_truncate, step_skew)
    if not steps:
        check_values({"rowptr": rowptr, "col": col, "x": x})
        return x.float().clone()
    _prepare(args, graph, isa)
    # As the gather reads the codes.
    numbers = step_scale.float(), step_zero_point.float()
    scale, zero_point = affine_params(*numbers, step_bits, step_truncate)
    scale_at, zero_at = args.floats(scale), args.floats(zero_point)
    width = storage_bits(step_bits)
    codes = empty((rows, row_layout(cols, width).stride), torch.uint8)
    sources = [
        Packed(codes.data_ptr(), rows, cols, width, -1, scale_at + 4 * k, zero_at + 4 * k)
        for k in range(len(steps))
    ]
    kept = 1 - (1 + told.mu) * told.eta
    smp = Smp(
        *(len(steps) // 2, kept if abs(kept) > 1e-12 else 0.0, told.mu * told.eta, told.eta),
        *(told.eta_lambda, told.eta_slack, told.init_lambda, told.init_slack, told.bound),
        *(told.primal == "lagrangian", PROJECTIONS[told.projection]),
    )
    work, out = empty((3, rows, cols), torch.float32), empty((rows, cols), torch.float32)
    call_library(
        "qlr_packed_smp",
        *(graph, args.floats(x), cols),
        *((Quantizer * len(steps))(*steps), (Packed * len(sources))(*sources), smp),
        *(work.data_ptr(), out.data_ptr(), *_run(isa)),
    )
    return out


def _packed_extremum(
    isa: int,
    rowptr: Tensor,
    col: Tensor,
    packed: Tensor,
    num_cols: int,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    largest: bool = True,
) -> Tensor:
    args = Arguments()
    source = args.packed(packed, num_cols, bits, scale, zero_point)
    graph = args.graph(rowptr, col, packed.size(0))
    epilogue, out = args.epilogue(graph.rows, num_cols)
    call_library("qlr_packed_extremum", graph, source, largest, epilogue, *_run(isa))
    return out


def _packed_attention(
    isa: int,
    rowptr: Tensor,
    col: Tensor,
    packed: Tensor,
    num_cols: int,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    alpha: Tensor,
    **epilogue_arguments: Any,
) -> Tensor:
    args = Arguments()
    source = args.packed(packed, num_cols, bits, scale, zero_point)
    graph = args.graph(rowptr, col, packed.size(0))
    epilogue, out = args.epilogue(graph.rows, num_cols, **epilogue_arguments)
    to = (args.floats(alpha), alpha.size(1), epilogue, *_run(isa))
    call_library("qlr_packed_attention", graph, source, *to)
    return out


def _packed_linear(
    isa: int,
    packed: Tensor,
    num_cols: int,
    bits: int,
    scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    weight_bits: int,
    weight_scale: Tensor,
    weight_zero_point: Tensor,
    **epilogue_arguments: Any,
) -> Tensor:
    args = Arguments()
    source = args.packed(packed, num_cols, bits, scale, zero_point)
    factor = args.packed(weight, num_cols, weight_bits, weight_scale, weight_zero_point)
    epilogue, out = args.epilogue(packed.size(0), weight.size(0), **epilogue_arguments)
    call_library("qlr_packed_linear", source, factor, epilogue, *_run(isa))
    return out


def _spmm(
    isa: int,
    rowptr: Tensor,
    col: Tensor,
    x: Tensor,
    edge_weight: Tensor | None = None,
    source_weight: Tensor | None = None,
    **epilogue_arguments: Any,
) -> Tensor:
    args, (rows, cols) = Arguments(), x.shape
    graph = args.graph(rowptr, col, rows, edge_weight, source_weight)
    epilogue, out = args.epilogue(graph.rows, cols, **epilogue_arguments)
    call_library("qlr_float_spmm", graph, args.floats(x), rows, cols, epilogue, *_run(isa))
    return out


def _as_matrix(x: Tensor) -> tuple[int, int]:
    """Rows and columns of the contiguous tensor; any split serves a scale per tensor."""
    return (x.size(0), x.size(1)) if x.dim() == 2 else (1, x.numel())


def _fake_quantize(
    isa: int,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    truncate: bool = False,
    skew: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if x.dtype != torch.float32:
        raise Unsupported
    args, (rows, cols) = Arguments(), _as_matrix(x)
    quantizer = args.quantizer(scale, zero_point, bits, truncate, skew, rows)
    x_hat = empty(x.shape, torch.float32)
    mask = empty(x.shape, torch.bool)
    call_library(
        "qlr_fake_quantize",
        *(args.floats(x), rows, cols, quantizer, x_hat.data_ptr(), mask.data_ptr()),
        *_run(isa),
    )
    return x_hat, mask


def _fake_quantize_backward(
    isa: int, grad: Tensor, x: Tensor, x_hat: Tensor, mask: Tensor, axis: int = -1
) -> tuple[Tensor, Tensor]:
    if not grad.dtype == x.dtype == x_hat.dtype == torch.float32:
        raise Unsupported
    args, (rows, cols) = Arguments(), _as_matrix(x)
    grad_x = empty(x.shape, torch.float32)
    reduced = torch.empty(reduced_shape(x, axis), dtype=torch.float32)
    call_library(
        "qlr_fake_quantize_backward",
        *(args.floats(grad), args.floats(x), args.floats(x_hat), args.address(mask)),
        *(rows, cols, axis, grad_x.data_ptr(), reduced.data_ptr()),
        *_run(isa),
    )
    return grad_x, reduced


KERNELS: dict[str, Callable[..., Any]] = {
    "quantize_pack": _quantize_pack,
    "pack": _pack,
    "unpack": _unpack,
    "dequantize_packed": _dequantize_packed,
    "index_select": _index_select,
    "packed_spmm": _packed_spmm,
    "packed_propagate": _packed_propagate,
    "packed_smp": _packed_smp,
    "packed_extremum": _packed_extremum,
    "packed_attention": _packed_attention,
    "packed_linear": _packed_linear,
    "spmm": _spmm,
    "fake_quantize": _fake_quantize,
    "fake_quantize_backward": _fake_quantize_backward,
}
