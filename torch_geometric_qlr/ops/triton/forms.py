"""What kernels are called with, in groups: numbers that they are compiled for, and tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = [
    "After",
    "Affine",
    "Edges",
    "Ending",
    "Items",
    "Out",
    "Rows",
    "Sums",
    "Tile",
]

# Constants ########################################################################################


class Rows(NamedTuple):
    r"""The layout of packed rows.

    Args:
        cols (int): Codes in a row.
        bits (int): 1, 2, 4 or 8.
        unit (int): Bytes of a unit.
        stride (int): Bytes of a row.
        used (int): Fields of a byte that hold a column in some unit.
        wide (bool): Whether the bytes of all rows need 64 bits to be numbered.
    """

    cols: int
    bits: int
    unit: int
    stride: int
    used: int
    wide: bool


class Ending(NamedTuple):
    r"""How results leave a kernel.

    Args:
        cols (int): Columns of the result.
        axis (int): What scales of the sources run along: -1 none, 0 rows, 1 columns.
        mean (bool): Divide by the number of edges.
        relu (bool): Clamp at zero.
        wide (bool): Whether 64 bits are needed to number the elements of the result.
        bits (int): Of storage for codes; 0 leaves floats.
        levels (int): The largest code.
        unit (int): Bytes of a unit of the packed result.
        stride (int): Bytes of its rows.
        truncate (bool): Quantize through 8 bits.
        out_axis (int): What scales of the result run along.
    """

    cols: int
    axis: int = -1
    mean: bool = False
    relu: bool = False
    wide: bool = False
    bits: int = 0
    levels: int = 1
    unit: int = 1
    stride: int = 1
    truncate: bool = False
    out_axis: int = -1


class Sums(NamedTuple):
    r"""What is made of the rows that are gathered.

    Args:
        mode (str): :obj:`"count"` adds up codes, :obj:`"whole"` codes times int8, :obj:`"real"`
            codes times floats, :obj:`"heads"` the same with a float for each head; :obj:`"max"`
            and :obj:`"min"`.
        by_source (bool): Whether each source has a scale and a zero point of its own.
        heads (int): Numbers per edge.
        quads (bool): Whether no head ends within four columns that begin at a multiple of four.
        wide (bool): Whether 64 bits are needed to number the coefficients of all edges and heads.
    """

    mode: str
    by_source: bool = False
    heads: int = 1
    quads: bool = True
    wide: bool = False


class Tile(NamedTuple):
    r"""The work of one program of a gather. It decides about time and never about results.

    Args:
        rows (int): Rows of the result.
        groups (int): Lane groups of a row, which share its edges.
        words (int): Words of 32 bits that each of them reads of a source.
        unroll (int): Edges that it has under way, a multiple of four.
        planes (int): Bits of its counters: it has fewer than :math:`2^{planes}` edges.
        warps (int): Warps of the program.
    """

    rows: int
    groups: int
    words: int
    unroll: int
    planes: int
    warps: int


# Tensors ##########################################################################################


class Affine(NamedTuple):
    """What codes of sources stand for."""

    scale: Any
    zero: Any


class Edges(NamedTuple):
    """Their sources, the weights of edges and those of sources."""

    col: Any
    weight: Any
    factor: Any


class Items(NamedTuple):
    """Rows of the result, or pieces of long ones: which one, its first edge, the one after its
    last, and how many there are."""

    row: Any
    start: Any
    stop: Any
    count: Any


class After(NamedTuple):
    """As :class:`~torch_geometric_qlr.ops.groups.Epilogue`."""

    row_scale: Any
    addend: Any
    addend_scale: Any
    bias: Any


class Out(NamedTuple):
    """The result, and how it is quantized."""

    data: Any
    scale: Any
    zero: Any
    skew: Any
