"""Where each code lies inside a packed row. The one place that knows it, beside `csrc/layout.h`."""

from __future__ import annotations

from dataclasses import dataclass

from torch_geometric_qlr.errors import ConfigError

__all__ = ["PACKED_BITS", "RowLayout", "row_layout", "storage_bits"]

PACKED_BITS = (1, 2, 4, 8)


@dataclass(frozen=True)
class RowLayout:
    r"""The planar layout of one row of :obj:`num_cols` codes of :obj:`bits` bits.

    A row is a sequence of *units* of :obj:`unit` bytes. Field :math:`k` (the bits
    :math:`[bk, b(k + 1))`) of byte :math:`j` in unit :math:`u` holds the code of column

    .. math::
        f = u \cdot \mathrm{unit} \cdot \frac{8}{b} + k \cdot \mathrm{unit} + j

    so that a kernel unpacks a whole vector register with one shift and one mask, and packs it with
    one shift and one *or*. Fields past the last column are zero.

    Args:
        num_cols (int): The number of codes in a row.
        bits (int): 1, 2, 4 or 8.
        unit (int): 16 for rows that fit into 16 bytes, 32 for all others.
        stride (int): The bytes from one row to the next, a multiple of :obj:`unit`.
    """

    num_cols: int
    bits: int
    unit: int
    stride: int

    @property
    def fields(self) -> int:
        """Codes in a byte."""
        return 8 // self.bits

    @property
    def codes_per_unit(self) -> int:
        """Codes in a unit."""
        return self.unit * self.fields

    @property
    def units(self) -> int:
        """Units in a row."""
        return self.stride // self.unit


def row_layout(num_cols: int, bits: int) -> RowLayout:
    r"""The layout every packed row of this shape has.

    Args:
        num_cols (int): The number of codes in a row.
        bits (int): The bits of storage: 1, 2, 4 or 8.

    Raises:
        ConfigError: If :obj:`bits` is not a packed width, or :obj:`num_cols` is negative.

    Example:
        >>> row_layout(64, bits=2)
        RowLayout(num_cols=64, bits=2, unit=16, stride=16)
        >>> row_layout(128, bits=4).stride
        64
    """
    if isinstance(bits, bool | float | str | None) or bits not in PACKED_BITS:
        raise ConfigError(f"packed storage has 1, 2, 4 or 8 bits, not {bits}; see storage_bits()")
    if type(num_cols) is int and num_cols < 0:
        raise ConfigError(f"rows have 0 columns or more, not {num_cols}")
    # Rows of 16 bytes are kept at 16: half the footprint of a 32-byte row decides cache residency.
    if num_cols * bits <= 128:
        return RowLayout(num_cols, bits, 16, 16)
    return RowLayout(num_cols, bits, 32, 32 * ((num_cols * bits + 255) // 256))


def storage_bits(bits: int) -> int:
    r"""The packed width that holds codes of :obj:`bits` bits: the next of 1, 2, 4, 8.

    Example:
        >>> [storage_bits(b) for b in (1, 2, 3, 4, 5, 8)]
        [1, 2, 4, 4, 8, 8]
    """
    if isinstance(bits, bool | float | str | None) or not 1 <= bits <= 8:
        raise ConfigError(f"bits must be an integer from 1 to 8, got {bits!r}")
    return next(width for width in PACKED_BITS if width >= bits)
