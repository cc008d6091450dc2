"""The widths that were chosen, and what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch_geometric_qlr.config import QLRConfig
from torch_geometric_qlr.nn.recipe import shown_point
from torch_geometric_qlr.search.output_error import decibels
from torch_geometric_qlr.text import aligned, as_html

__all__ = ["BitChoice", "BitRow"]


@dataclass(frozen=True)
class BitRow:
    r"""The width of one place.

    Args:
        module (str): Name of the layer; :obj:`""` is the model itself.
        point (str): Where in it, as :func:`torch_geometric_qlr.plan` says; several places that
            follow one field of the config have one row.
        bits (int): The width that was chosen.
        bytes (int): What its codes take: a weight with its scales, or the values of one batch.
        cost (float): The error of the output if nothing else is rounded, relative to its energy.
    """

    module: str
    point: str
    bits: int
    bytes: int
    cost: float

    def shown_points(self) -> str:
        """The points for a reader."""
        return ", ".join(map(shown_point, self.point.split(", ")))


@dataclass(frozen=True, repr=False)
class BitChoice:
    r"""The result of :func:`torch_geometric_qlr.search_bits`.

    Args:
        measure (str): What the budget counts.
        budget (float): How much there was.
        spent (float): How much of it is used.
        error (float): The predicted error of the output: the sum of the costs of the rows.
        table (tuple): One :class:`BitRow` for each width.
        pareto (list): Pairs of what is spent and the predicted error, for budgets from the least
            to the most that can be spent; each is the best there is for its budget.
        config (QLRConfig): What to pass to :func:`~torch_geometric_qlr.quantize`.
    """

    measure: str
    budget: float
    spent: float
    error: float
    table: tuple[BitRow, ...]
    pareto: list[tuple[float, float]]
    config: QLRConfig

    @property
    def overrides(self) -> Mapping[str, dict[str, Any] | None]:
        """The widths as rules for :func:`~torch_geometric_qlr.quantize`, by exact names; a model
        that is one layer has the rule :obj:`"re:"`."""
        return dict(self.config.overrides)

    def to_dict(self) -> dict[str, Any]:
        r"""The choice as plain values."""
        return {
            "measure": self.measure,
            "budget": self.budget,
            "spent": self.spent,
            "error": self.error,
            "overrides": self.overrides,
            "table": [dataclasses.asdict(row) for row in self.table],
            "pareto": [list(pair) for pair in self.pareto],
        }

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("module", "point", "bits", "bytes", "cost")]
        rows += [
            (
                row.module or "(model)",
                row.shown_points(),
                str(row.bits),
                f"{row.bytes:,}",
                f"{row.cost:.2g}",
            )
            for row in self.table
        ]
        return rows

    def _total(self) -> str:
        return (
            f"{self.measure}: {self.spent:,.6g} of {self.budget:,.6g}; predicted SQNR of the "
            f"output: {decibels(self.error):.1f} dB"
        )

    def __repr__(self) -> str:
        return "\n".join([*aligned(self._rows()), self._total()])

    def _repr_html_(self) -> str:
        return as_html(self._rows(), [self._total()])
