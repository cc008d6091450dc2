"""A matrix of which each reader has its own codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["Readings"]


class Readings:
    r"""What the quantizers that read a matrix make of it. As a
    :class:`~torch_geometric_qlr.codes.promise.Promise` it goes into a layer in the place of the
    floats, which need not be there.

    Args:
        codes (dict): The codes by the quantizer that makes them; not empty without :obj:`values`.
        values (torch.Tensor, optional): The floats. Then codes are made when a quantizer asks.
    """

    def __init__(self, codes: Mapping[Any, PackedTensor], values: Tensor | None = None) -> None:
        self.codes, self.values = dict(codes), values
        self._is_read, self._parts = False, list[Readings]()

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the matrix."""
        any_of = next(iter(self.codes.values())) if self.values is None else self.values
        return tuple(any_of.shape)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        any_of = next(iter(self.codes.values())) if self.values is None else self.values
        return any_of.device

    def codes_for(self, quantizer: Any) -> PackedTensor:
        r"""The codes for one reader.

        Args:
            quantizer (Quantizer): The reader.
        """
        if quantizer not in self.codes:
            self.codes[quantizer] = quantizer.pack(self._floats())
        return self.codes[quantizer]

    def rows(self, rows: slice) -> Readings:
        r"""Some of the rows, which tell the readers of the whole as well.

        Args:
            rows (slice): Which.
        """
        if self.values is None:
            return Readings({quantizer: codes[rows] for quantizer, codes in self.codes.items()})
        self._parts.append(part := Readings({}, self.values[rows]))
        return part

    @property
    def readers(self) -> list[Any]:
        """The quantizers that have read it, or a part of it."""
        found = [*self.codes, *(quantizer for part in self._parts for quantizer in part.readers)]
        return list(dict.fromkeys(found))

    @property
    def is_read(self) -> bool:
        """Whether somebody else than a quantizer has read the floats, or some of them."""
        return self._is_read or any(part.is_read for part in self._parts)

    def dequantize(self) -> Tensor:
        """The floats themselves."""
        self._is_read = True
        return self._floats()

    def _floats(self) -> Tensor:
        if self.values is None:
            readers = ", ".join(quantizer.path for quantizer in self.codes)
            raise InputError(
                f"A layer reads numbers of which only the codes for {readers} were kept, because "
                f"nothing else had read its first rows. Its code must not depend on the number of "
                f"rows."
            )
        return self.values
