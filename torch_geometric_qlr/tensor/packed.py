"""A matrix of low-bit codes, packed for the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.errors import ConfigError, InputError
from torch_geometric_qlr.expect import expect_tensor
from torch_geometric_qlr.ops import affine_params, storage_bits
from torch_geometric_qlr.ops.checks import Check
from torch_geometric_qlr.tensor.checks import check_codes, check_values
from torch_geometric_qlr.tensor.serial import dense_bits, from_dense_bits, read_state

__all__ = ["PackedTensor"]

_VERSION = 1


@dataclass(frozen=True, eq=False, repr=False)
class PackedTensor:
    r"""A matrix of :math:`b`-bit codes standing for :math:`\hat x = S (c - Z)`.

    A row is a sequence of *units* of 32 bytes, or one unit of 16 bytes if it fits into 16. Within a
    unit the layout is planar: field :math:`k` (the bits :math:`[bk, b(k + 1))`) of byte :math:`j`
    in unit :math:`u` is the code of column

    .. math::
        f = \left( u \cdot \frac{8}{b} + k \right) \cdot \mathrm{unit} + j .

    Unpacking is one shift and one mask for a whole vector register, packing one shift and one *or*.
    Rows follow each other every :attr:`stride` bytes, a multiple of the unit; fields past the last
    column are zero. torch aligns the first row to 64 bytes. At :math:`F = 128` a row has 128, 64,
    32 and 16 bytes at 8, 4, 2 and 1 bits.

    Args:
        data (torch.Tensor): uint8 rows of shape :math:`[N, \mathrm{stride}]`.
        num_cols (int): :math:`F`.
        bits (int): 1, 2, 4 or 8.
        scale (torch.Tensor): :math:`S`, of shape :math:`()`, :math:`[N, 1]` or :math:`[1, F]`.
        zero_point (torch.Tensor): :math:`Z`, of the same shape or of shape :math:`()`. It may be
            fractional, as it is for truncated tensors.

    Raises:
        ConfigError: If :obj:`bits` is not a packed width.
        InputError: If dtype, shape or device do not fit together.

    Example:
        >>> x = torch.tensor([[-1.0, 0.0, 0.6, 2.0]])
        >>> packed = PackedTensor.from_float(x, torch.tensor(1.0), torch.tensor(1.0), bits=2)
        >>> packed.unpack()
        tensor([[0, 1, 2, 3]], dtype=torch.uint8)
        >>> packed.dequantize()
        tensor([[-1.,  0.,  1.,  2.]])
    """

    data: Tensor
    num_cols: int
    bits: int
    scale: Tensor
    zero_point: Tensor

    def __post_init__(self) -> None:
        check = Check("PackedTensor")
        parts = {"data": self.data, "scale": self.scale, "zero_point": self.zero_point}
        for name, part in parts.items():
            if not isinstance(part, Tensor):
                check.fail(f"{name} is {type(part).__name__}, it must be a tensor")
        check.place(parts)
        check.packed_rows(self.data, self.num_cols, self.bits, "data")
        check.params(self.scale, self.zero_point, self.data.size(0), self.num_cols)

    @classmethod
    def unchecked(
        cls, data: Tensor, num_cols: int, bits: int, scale: Tensor, zero_point: Tensor
    ) -> PackedTensor:
        r"""Of parts that an op of this package has returned, or that were checked before.

        Args:
            data, num_cols, bits, scale, zero_point: As the class takes them.

        Example:
            >>> one, x = torch.tensor(1.0), torch.rand(3, 40)
            >>> data = torch.ops.qlr.quantize_pack(x, one, one, 2)
            >>> PackedTensor.unchecked(data, 40, 2, one, one).unpack().shape
            torch.Size([3, 40])
        """
        if torch.compiler.is_compiling():
            return cls(data, num_cols, bits, scale, zero_point)
        new = object.__new__(cls)
        new.__dict__.update(
            data=data, num_cols=num_cols, bits=bits, scale=scale, zero_point=zero_point
        )
        return new

    @classmethod
    def from_float(
        cls,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bits: int,
        *,
        truncate: bool = False,
        skew: Tensor | None = None,
        check: bool = True,
    ) -> PackedTensor:
        r"""Quantizes and packs in one pass.

        Args:
            x (torch.Tensor): A float matrix :math:`[N, F]`.
            scale (torch.Tensor): :math:`s`, before truncation.
            zero_point (torch.Tensor): :math:`z`, before truncation.
            bits (int): From 1 to 8; 3 is stored in 4, and 5 to 7 in 8.
            truncate (bool): Quantize to 8 bits and keep the top :obj:`bits` (BT, BT*).
            skew (torch.Tensor, optional): The threshold shift :math:`k` of BT*.
            check (bool): Refuse NaN and infinite values also on a GPU, at the cost of one pass and
                a synchronisation; without it they get codes at the ends of the range there. On a
                CPU they are refused in any case, while they are quantized.

        Raises:
            InputError: If :obj:`x` is no float matrix, holds NaN or Inf, or the ranges do not fit.

        Example:
            >>> x = torch.rand(100, 64)
            >>> packed = PackedTensor.from_float(x, torch.tensor(1 / 15), torch.tensor(0.0), bits=4)
            >>> packed.data.nbytes / x.nbytes
            0.125
        """
        width = storage_bits(bits)
        for name, value in {"x": x, "scale": scale, "zero_point": zero_point}.items():
            expect_tensor(value, f"PackedTensor.from_float: {name}")
        check_values(x, check)
        data = torch.ops.qlr.quantize_pack(x, scale, zero_point, bits, truncate, skew)
        params = affine_params(scale, zero_point, bits, truncate)
        return cls.unchecked(data, x.size(1), width, *params)

    @classmethod
    def from_codes(
        cls, codes: Tensor, scale: Tensor, zero_point: Tensor, bits: int
    ) -> PackedTensor:
        r"""Packs uint8 codes :math:`[N, F]`, which must be below :math:`2^b`.

        Example:
            >>> codes = torch.tensor([[3, 1]], dtype=torch.uint8)
            >>> PackedTensor.from_codes(codes, torch.tensor(0.5), torch.tensor(0.0), bits=2)
            PackedTensor(shape=[1, 2], bits=2, granularity='tensor', device='cpu', nbytes=24)
        """
        for name, value in {"codes": codes, "scale": scale, "zero_point": zero_point}.items():
            expect_tensor(value, f"PackedTensor.from_codes: {name}")
        check_codes(codes, bits)
        width = storage_bits(bits)
        data = torch.ops.qlr.pack(codes, width)
        return cls(data, codes.size(1), width, scale, zero_point)

    def unpack(self) -> Tensor:
        """The uint8 codes, of shape :math:`[N, F]`."""
        codes: Tensor = torch.ops.qlr.unpack(self.data, self.num_cols, self.bits)
        return codes

    def dequantize(self) -> Tensor:
        r"""The values :math:`S (c - Z)` in float32."""
        parts = self.data, self.num_cols, self.bits, self.scale, self.zero_point
        values: Tensor = torch.ops.qlr.dequantize_packed(*parts)
        return values

    @property
    def shape(self) -> torch.Size:
        """Rows and columns of the values, not of the bytes."""
        return torch.Size((self.data.size(0), self.num_cols))

    def size(self, dim: int) -> int:
        """One of both, as of a tensor."""
        return self.shape[dim]

    def __len__(self) -> int:
        return self.data.size(0)

    @property
    def stride(self) -> int:
        """Bytes from one row to the next."""
        return self.data.size(1)

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.data.device

    @property
    def granularity(self) -> str:
        """What shares a scale and a zero point, ``"tensor"``, ``"row"`` or ``"column"``."""
        shapes = {tuple(self.scale.shape), tuple(self.zero_point.shape)}
        if len(self) != 1 and (len(self), 1) in shapes:
            return "row"
        return "column" if self.num_cols != 1 and (1, self.num_cols) in shapes else "tensor"

    @property
    def nbytes(self) -> int:
        """Bytes in memory, scale and zero point included."""
        return int(self.data.nbytes + self.scale.nbytes + self.zero_point.nbytes)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={list(self.shape)}, bits={self.bits}, "
            f"granularity={self.granularity!r}, device='{self.device}', nbytes={self.nbytes})"
        )

    def _with_rows(self, data: Tensor, index: Tensor | slice) -> PackedTensor:
        scale, zero_point = self.scale, self.zero_point
        if self.granularity == "row":
            scale = scale[index] if scale.numel() > 1 else scale
            zero_point = zero_point[index] if zero_point.numel() > 1 else zero_point
        return PackedTensor(data, self.num_cols, self.bits, scale, zero_point)

    def index_select(self, index: Tensor) -> PackedTensor:
        r"""The rows at :obj:`index`, still packed.

        Raises:
            InputError: If the index is not a vector of integers, or out of range.

        Example:
            >>> codes = torch.tensor([[0], [1], [2]], dtype=torch.uint8)
            >>> packed = PackedTensor.from_codes(codes, torch.tensor(1.), torch.tensor(0.), bits=2)
            >>> packed.index_select(torch.tensor([2, 0])).unpack().flatten()
            tensor([2, 0], dtype=torch.uint8)
        """
        expect_tensor(index, "PackedTensor.index_select: index")
        return self._with_rows(torch.ops.qlr.index_select(self.data, index), index)

    def __getitem__(self, rows: slice) -> PackedTensor:
        """A slice of rows; a view where the step is 1."""
        if not isinstance(rows, slice):
            raise InputError(
                f"PackedTensor is sliced by rows only, got {rows!r}; for arbitrary rows use "
                "index_select"
            )
        return self._with_rows(self.data[rows], rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedTensor:
        """The same on another device."""
        return PackedTensor(
            self.data.to(device, non_blocking=non_blocking),
            self.num_cols,
            self.bits,
            self.scale.to(device, non_blocking=non_blocking),
            self.zero_point.to(device, non_blocking=non_blocking),
        )

    def equal(self, other: PackedTensor) -> bool:
        """Whether codes, scale and zero point are the same, bit for bit."""
        return (
            isinstance(other, PackedTensor)
            and self.shape == other.shape
            and self.bits == other.bits
            and torch.equal(self.data, other.data)
            and torch.equal(self.scale, other.scale)
            and torch.equal(self.zero_point, other.zero_point)
        )

    def to_state(self) -> dict[str, Tensor]:
        r"""A dictionary of tensors for :func:`torch.save`, without any padding.

        The codes are one stream of bits, :math:`\lceil N F b / 8 \rceil` bytes. What
        :func:`torch.load` gives back with :obj:`weights_only=True` is read by :meth:`from_state`.

        Example:
            >>> x = torch.rand(1000, 100)
            >>> packed = PackedTensor.from_float(x, torch.tensor(1 / 3), torch.tensor(0.), bits=2)
            >>> packed.to_state()["codes"].nbytes / x.nbytes
            0.0625
        """
        header = [_VERSION, self.bits, len(self), self.num_cols]
        return {
            "header": torch.tensor(header, dtype=torch.int64),
            "codes": dense_bits(self.unpack(), self.bits).cpu(),
            # Of a part of a tensor torch would save the whole.
            "scale": self.scale.detach().cpu().clone(),
            "zero_point": self.zero_point.detach().cpu().clone(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> PackedTensor:
        r"""Reads what :meth:`to_state` wrote.

        Raises:
            CheckpointError: If an entry is missing, of the wrong kind, cut short, or of another
                version.
        """
        bits, rows, cols, entries = read_state(state, _VERSION)
        codes = from_dense_bits(entries["codes"], bits, rows, cols)
        return cls.from_codes(codes, entries["scale"], entries["zero_point"], bits)

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedTensor.from_state, (self.to_state(),)

    def __eq__(self, other: object) -> bool:
        raise ConfigError("PackedTensor: use a.equal(b); element-wise comparison is not defined")

    __hash__ = object.__hash__
