"""What travels together among the arguments of ops, each group with one name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr.errors import InputError

__all__ = [
    "CodeMatrix",
    "Epilogue",
    "Graph",
    "PackedMatrix",
    "QParams",
    "Steps",
    "Weights",
]


class Graph(NamedTuple):
    r"""Edges sorted by target, as compressed rows.

    Args:
        rowptr (torch.Tensor): Where each target's edges begin, :math:`[M + 1]`.
        col (torch.Tensor): Their sources, :math:`[E]`.
    """

    rowptr: Tensor
    col: Tensor

    @property
    def num_rows(self) -> int:
        """Targets."""
        return self.rowptr.size(0) - 1


class PackedMatrix(NamedTuple):
    r"""Packed codes :math:`c` that stand for :math:`S (c - Z)`.

    Args:
        data (torch.Tensor): Rows as :func:`~torch_geometric_qlr.ops.row_layout` has them.
        num_cols (int): Codes in a row.
        bits (int): 1, 2, 4 or 8.
        scale (torch.Tensor): :math:`S`, of shape :math:`()`, :math:`[N, 1]` or :math:`[1, F]`.
        zero_point (torch.Tensor): :math:`Z`, likewise; may be fractional.
    """

    data: Tensor
    num_cols: int
    bits: int
    scale: Tensor
    zero_point: Tensor


class CodeMatrix(NamedTuple):
    r"""The same before it is packed.

    Args:
        codes (torch.Tensor): uint8 :math:`[N, F]`, or values whose scale is 1.
        scale (torch.Tensor): As in :class:`PackedMatrix`.
        zero_point (torch.Tensor): Likewise.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor


class Weights(NamedTuple):
    r"""What messages are multiplied by.

    Args:
        edge_weight (torch.Tensor, optional): One number per edge, :math:`[E]`.
        source_weight (torch.Tensor, optional): One per source row, :math:`[N]`.
    """

    edge_weight: Tensor | None = None
    source_weight: Tensor | None = None


class Epilogue(NamedTuple):
    r"""What is done to a sum on its way out, in this order.

    Args:
        reduce (str): :obj:`"sum"` or :obj:`"mean"`.
        row_scale (torch.Tensor, optional): Multiplies rows, :math:`[M]`.
        addend (torch.Tensor, optional): Is added, :math:`[M, F]`.
        addend_scale (float): After it was multiplied by this.
        bias (torch.Tensor, optional): Is added to each row, :math:`[F]`.
        relu (bool): Clamps at zero.
    """

    reduce: str = "sum"
    row_scale: Tensor | None = None
    addend: Tensor | None = None
    addend_scale: float = 1.0
    bias: Tensor | None = None
    relu: bool = False


class QParams(NamedTuple):
    r"""Parameters of a quantizer, by which values become codes; of a result, before it is written.

    Args:
        scale (torch.Tensor): :math:`s`, of shape :math:`()`, :math:`[N, 1]` or :math:`[1, F]`.
        zero_point (torch.Tensor): :math:`z`, likewise.
        bits (int): From 1 to 8.
        truncate (bool): Quantize to 8 bits and keep the top ones (BT, BT*).
        skew (torch.Tensor, optional): :math:`k` of BT*, a scalar in 8-bit code units.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int
    truncate: bool = False
    skew: Tensor | None = None

    def named(self, prefix: str) -> dict[str, Any]:
        r"""As keyword arguments of an op.

        Example:
            >>> list(QParams(torch.tensor(1.0), torch.tensor(0.0), 4).named("out_"))
            ['out_scale', 'out_zero_point', 'out_bits', 'out_truncate', 'out_skew']
        """
        return {prefix + name: value for name, value in self._asdict().items()}


class Steps(QParams):
    r"""Quantizers per tensor that follow each other, as vectors of their numbers.

    Args:
        scale (torch.Tensor): :math:`s` of each, :math:`[K]`.
        zero_point (torch.Tensor): :math:`z` of each, :math:`[K]`.
        bits (int): From 1 to 8, of all.
        truncate (bool): Through 8 bits, all of them.
        skew (torch.Tensor, optional): :math:`k` of each, :math:`[K]`.
    """

    __slots__ = ()

    @classmethod
    def of(cls, steps: Sequence[QParams], like: Tensor) -> Steps:
        r"""Joins quantizers.

        Args:
            steps (list): Per tensor, all with the same :obj:`bits` and :obj:`truncate`.
            like (torch.Tensor): Says where empty vectors are.

        Raises:
            InputError: If they have several numbers each, or differ in width.

        Example:
            >>> step = QParams(torch.tensor(1.0), torch.tensor(0.0), 4)
            >>> Steps.of([step, step], step.scale).scale
            tensor([1., 1.])
        """
        widths = {(step.bits, step.truncate) for step in steps} or {(8, False)}
        if len(widths) > 1 or any(step.scale.numel() != 1 for step in steps):
            raise InputError("steps must share bits and truncation, and be per tensor")
        ((bits, truncate),) = widths
        skews = [step.skew for step in steps if step.skew is not None]
        if skews and len(skews) < len(steps):
            raise InputError("all steps have a skew, or none")
        scale = _joined([step.scale for step in steps], like)
        zero_point = _joined([step.zero_point for step in steps], like)
        return cls(scale, zero_point, bits, truncate, _joined(skews, like) if skews else None)

    def each(self) -> list[QParams]:
        r"""One by one.

        Example:
            >>> [step.scale.item() for step in Steps(torch.ones(2), torch.zeros(2), 4).each()]
            [1.0, 1.0]
        """
        skews: Any = [None] * self.scale.numel() if self.skew is None else self.skew
        return [
            QParams(scale, zero_point, self.bits, self.truncate, skew)
            for scale, zero_point, skew in zip(
                self.scale.float(), self.zero_point.float(), skews, strict=True
            )
        ]


def _joined(params: Sequence[Tensor], like: Tensor) -> Tensor:
    """One vector of numbers."""
    return torch.stack([p.reshape(()) for p in params]) if params else like.new_empty(0)
