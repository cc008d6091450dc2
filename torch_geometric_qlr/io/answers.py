"""Whether what a file computes is what its model computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from torch_geometric_qlr.errors import ExportError

__all__ = ["FEW", "TOLERANCE", "Difference", "answer", "compare", "first_line", "shapes_of"]

#: How far a value may be from that of the model, as a share of the largest one.
TOLERANCE = 1e-5

#: The share of values that may be further away. A hidden value beside the middle between two codes
#: may get the other one, where floating point adds in another order.
FEW = 0.01


class Difference(NamedTuple):
    r"""How answers differ.

    Args:
        beyond (float): The share of values that differ by more than 1e-5 of the largest one.
        largest (float): The largest difference, as a share of the largest value; 0 if all values
            are the same.

    Example:
        >>> print(Difference(0.0, 0.0), "and", Difference(0.002, 0.03))
        in every bit and to 1e-05 of their size, but for 0.20 % of the values, by 3.0e-02 at most
    """

    beyond: float
    largest: float

    def __str__(self) -> str:
        if self.largest == 0:
            return "in every bit"
        if self.beyond == 0:
            return f"to {self.largest:.1e} of their size"
        return (
            f"to {TOLERANCE:.0e} of their size, but for {100 * self.beyond:.2f} % of the values, "
            f"by {self.largest:.1e} at most"
        )


def answer(model: Callable[..., Any], inputs: Sequence[Any]) -> list[Tensor]:
    r"""The tensors that a model gives.

    Args:
        model (callable): The model.
        inputs (tuple): Its arguments.
    """
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(model(*inputs)) if isinstance(leaf, Tensor)]


def first_line(error: BaseException) -> str:
    """What an error says first; torch adds many lines to it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shapes_of(inputs: Sequence[Any]) -> str:
    """Of the tensors, for messages."""
    return ", ".join(str(tuple(t.shape)) for t in inputs if isinstance(t, Tensor))


def compare(run: Callable[..., Any], inputs: Sequence[Any], wanted: Sequence[Tensor]) -> Difference:
    r"""Runs what was made, and compares its answers.

    Args:
        run (callable): What the file computes.
        inputs (tuple): Its arguments.
        wanted (list): The answers of the model.

    Raises:
        ExportError: If it fails, or its answers are others.
    """
    where = f"With inputs of shape {shapes_of(inputs)}"
    try:
        found = answer(run, inputs)
    except Exception as error:
        raise ExportError(
            f"{where} the file that was made fails: {first_line(error)} Nothing has been written."
        ) from error
    sizes = [[tuple(t.shape) for t in each] for each in (found, wanted)]
    if sizes[0] != sizes[1]:
        raise ExportError(
            f"{where} the file that was made answers with shapes {sizes[0]}, the model with "
            f"{sizes[1]}. Nothing has been written."
        )
    worst = Difference(0.0, 0.0)
    for at, pair in enumerate(zip(found, wanted, strict=True)):
        difference = _difference(*pair)
        if difference.beyond > FEW:
            raise ExportError(
                f"{where} {100 * difference.beyond:.3g} % of the values of answer {at} of the file "
                f"that was made differ from the model's by more than {TOLERANCE:.0e} of the "
                f"largest, by {difference.largest:.2e} at most. Nothing has been written."
            )
        worst = max(worst, difference)
    return worst


def _difference(found: Tensor, wanted: Tensor) -> Difference:
    if found.numel() == 0:
        return Difference(0.0, 0.0)
    a, b = found.double(), wanted.double()
    size = b[b.isfinite()].abs().amax() if b.isfinite().any() else b.new_ones(())
    off = (a - b).abs() / torch.where(size > 0, size, 1.0)
    same = (a == b) | (a.isnan() & b.isnan())
    off = off.masked_fill(same, 0.0).nan_to_num(torch.inf)
    return Difference(float((off > TOLERANCE).double().mean()), float(off.max()))
