"""Launches: sums of rows of floats along the edges of a graph."""

from __future__ import annotations

from torch import Tensor

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.fakes import float_rows
from torch_geometric_qlr.ops.triton.configurations import float_tile
from torch_geometric_qlr.ops.triton.forms import After, Edges, Ending, Items, Out
from torch_geometric_qlr.ops.triton.kernels.floats import float_kernel
from torch_geometric_qlr.ops.triton.launch import (
    after_of,
    cdiv,
    dense,
    ending,
    on_device,
    out_of,
    vector,
)
from torch_geometric_qlr.ops.triton.rows import launch_all
from torch_geometric_qlr.ops.triton.schedule import Bin

__all__ = ["spmm"]


def spmm(a: Arguments) -> Tensor:
    """The kernel of the op."""
    x = dense(a.x)
    n, cols = a.graph.num_rows, x.size(1)
    y = float_rows(x, n, cols)
    if y.numel() == 0:
        return y
    edges = Edges(a.col.contiguous(), vector(a.edge_weight), vector(a.source_weight))
    wide = ending(x.size(0), cols, -1).wide

    def launch(part: Bin, after: After, out: Out, end: Ending) -> None:
        count = part.row.numel()
        tile = float_tile(cols, part.most, count)
        float_kernel[(cdiv(count, tile.rows), cdiv(cols, tile.words))](
            x,
            edges,
            Items(part.row, part.start, part.stop, count),
            after,
            out,
            WIDE=wide,
            TILE=tile,
            END=end,
            num_warps=tile.warps,
            enable_fp_fusion=False,
        )

    with on_device(x):
        end = ending(n, cols, -1, a.epilogue)
        launch_all(launch, a.rowptr, "sum", after_of(a.epilogue), out_of(y, None), end)
    return y
