"""Launches: sums and extrema of packed rows along the edges of a graph."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.fakes import float_rows, packed_rows
from torch_geometric_qlr.ops.groups import Epilogue, Graph, PackedMatrix, QParams
from torch_geometric_qlr.ops.triton.codes import pack_values
from torch_geometric_qlr.ops.triton.configurations import block_words, tiles
from torch_geometric_qlr.ops.triton.forms import (
    Affine,
    After,
    Edges,
    Ending,
    Items,
    Out,
    Rows,
    Sums,
    Tile,
)
from torch_geometric_qlr.ops.triton.kernels.gather import gather_kernel
from torch_geometric_qlr.ops.triton.launch import (
    affine_of,
    after_of,
    axis_of,
    cdiv,
    ending,
    on_device,
    out_of,
    rows_of,
    sources_of,
    vector,
)
from torch_geometric_qlr.ops.triton.rows import launch_all
from torch_geometric_qlr.ops.triton.schedule import Bin
from torch_geometric_qlr.ops.triton.tuning import chosen

__all__ = ["Gather", "packed_attention", "packed_extremum", "packed_spmm"]


def packed_spmm(a: Arguments) -> Tensor:
    """The kernel of the op."""
    weight, factor = a.edge_weight, a.source_weight
    by_source = axis_of(a.scale, a.zero_point) == 0
    if by_source or factor is not None:
        mode = "real"
    elif weight is None:
        mode = "count"
    else:
        mode = "whole" if weight.dtype == torch.int8 else "real"
    edges = Edges(a.col.contiguous(), vector(weight), vector(factor))
    return _gather(a, Sums(mode, by_source), edges, a.epilogue, a.output)


def packed_extremum(a: Arguments) -> Tensor:
    """The kernel of the op."""
    sums = Sums("max" if a.largest else "min", axis_of(a.scale, a.zero_point) == 0)
    return _gather(a, sums, Edges(a.col.contiguous(), None, None), None, None)


def packed_attention(a: Arguments) -> Tensor:
    """The kernel of the op."""
    heads = a.alpha.size(1)
    quads = (a.num_cols // heads) % 4 == 0
    wide = ending(a.col.numel(), heads, -1).wide
    sums = Sums("heads", axis_of(a.scale, a.zero_point) == 0, heads, quads, wide)
    return _gather(a, sums, Edges(a.col.contiguous(), vector(a.alpha), None), a.epilogue, a.output)


def _gather(
    a: Arguments, sums: Sums, edges: Edges, epilogue: Epilogue | None, output: QParams | None
) -> Tensor:
    """Codes of a result leave the kernel that sums, or where its bytes lie otherwise than those of
    the sources, a second one that packs."""
    graph, matrix = a.graph, a.matrix
    fused = output if _is_fused(sums, matrix, output) else None
    y = _launches(graph, matrix, sums, edges, epilogue, fused)
    return y if fused is output or output is None else pack_values(y, output)


def _is_fused(sums: Sums, matrix: PackedMatrix, output: QParams | None) -> bool:
    """Whether each byte of a packed result is made of codes that one program has."""
    if output is None:
        return False
    rows = rows_of(matrix.data.size(0), matrix.num_cols, matrix.bits)
    end = ending(0, matrix.num_cols, -1, output=output)
    if end.unit != rows.unit:
        return end.bits == 8  # whose bytes are in the order of the columns
    return end.bits >= rows.bits or 4 * block_words(rows) % (rows.bits // end.bits * rows.unit) == 0


def _launches(
    graph: Graph,
    matrix: PackedMatrix,
    sums: Sums,
    edges: Edges,
    epilogue: Epilogue | None,
    output: QParams | None,
) -> Tensor:
    n, cols = graph.num_rows, matrix.num_cols
    packed, rows = sources_of(matrix)
    end = ending(n, cols, axis_of(matrix.scale, matrix.zero_point), epilogue, output)
    # Where units differ, the last bytes belong to no column of the sources.
    y = float_rows(packed, n, cols) if output is None else packed_rows(packed, n, cols, output.bits)
    if end.bits and end.unit != rows.unit:
        y.zero_()
    if n == 0 or cols == 0:
        return y.zero_()
    one = Gather(packed.view(torch.int32), edges, affine_of(*matrix[3:]), sums, rows)
    after, out = after_of(epilogue), out_of(y, output)
    with on_device(packed):
        mode = sums.mode if sums.mode in ("max", "min") else "sum"
        launch_all(one.launch, graph.rowptr, mode, after, out, end)
    return y


class Gather(NamedTuple):
    r"""What all launches of a call have in common.

    Args:
        packed (torch.Tensor): The words of the sources.
        edges (Edges): Along which these are gathered.
        affine (Affine): What their codes stand for.
        sums (Sums): What is made of them.
        rows (Rows): How they lie.
    """

    packed: Tensor
    edges: Edges
    affine: Affine
    sums: Sums
    rows: Rows

    def launch(self, part: Bin, after: After, out: Out, end: Ending) -> None:
        """Rows of like degrees, with the best tile that is known."""
        count = part.row.numel()

        def run(tile: Tile) -> None:
            self.launch_as(tile, part, after, out, end)

        choice = tiles(self.sums, self.rows, part.most, count)
        what = (self.sums, self.rows, part.most, count.bit_length(), end.bits)
        run(chosen(what, choice, run, self.packed.device))

    def launch_as(self, tile: Tile, part: Bin, after: After, out: Out, end: Ending) -> None:
        """The same with a tile."""
        count = part.row.numel()
        grid = (cdiv(count, tile.rows), cdiv(self.rows.stride // 4, tile.words))
        gather_kernel[grid](
            self.packed,
            self.edges,
            Items(part.row, part.start, part.stop, count),
            self.affine,
            after,
            out,
            SUMS=self.sums,
            ROWS=self.rows,
            TILE=tile,
            END=end,
            num_warps=tile.warps,
            enable_fp_fusion=False,
        )
