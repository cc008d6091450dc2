"""What a choice of widths costs: bytes, products of bits, or bits per value."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch_geometric_qlr.search.isolated import Place
from torch_geometric_qlr.search.sensitivity import Sensitivity
from torch_geometric_qlr.search.units import Unit

__all__ = ["MEASURES", "Measure", "Option", "totals"]

#: The width of some units.
Choice = Mapping[Unit, int]


class Option(NamedTuple):
    r"""Widths for units that are chosen together.

    Args:
        widths (dict): By unit.
        error (float): The sum of their errors.
        cost (int): What they cost together.
    """

    widths: Choice
    error: float
    cost: int


class Measure(NamedTuple):
    r"""How costs are counted.

    Args:
        cost (callable): Of the widths of some units, a whole number.
        divisor (callable): How much of that is one of what a budget counts.
        is_joint (bool): Whether the units of a layer multiply each other, so that costs add up over
            layers only.
    """

    cost: Callable[[Sensitivity, Choice], int]
    divisor: Callable[[Sensitivity], int]
    is_joint: bool = False

    def options(self, found: Sensitivity) -> list[list[Option]]:
        r"""All that can be chosen, in groups of which each is chosen for itself.

        Args:
            found (Sensitivity): What was measured.
        """
        return [
            [self._option(found, dict(zip(group, widths, strict=True))) for widths in choices]
            for group in self._groups(found.units)
            for choices in (itertools.product(*(found.widths[unit] for unit in group)),)
        ]

    def _groups(self, units: Sequence[Unit]) -> list[list[Unit]]:
        if not self.is_joint:
            return [[unit] for unit in units]
        by_module: dict[str, list[Unit]] = {}
        for unit in units:
            by_module.setdefault(unit.module, []).append(unit)
        return list(by_module.values())

    def _option(self, found: Sensitivity, widths: Choice) -> Option:
        error = sum(found.errors[item] for item in widths.items())
        return Option(widths, error, self.cost(found, widths))


def _nbytes(found: Sensitivity, widths: Choice) -> int:
    return sum(found.nbytes[item] for item in widths.items())


def _value_bits(found: Sensitivity, widths: Choice) -> int:
    return sum(found.values[unit] * bits for unit, bits in widths.items())


def _bitops(found: Sensitivity, widths: Choice) -> int:
    """Of the layers of these units."""
    modules = {unit.module for unit in widths}
    bits: dict[Place, int] = dict(next(iter(found.bits.values())))
    for unit, width in widths.items():
        bits |= {place: found.bits[width][place] for place in unit.places}
    return sum(op.cost(bits) for op in found.operations if op.module in modules)


def _one(found: Sensitivity) -> int:
    return 1


def _num_values(found: Sensitivity) -> int:
    return max(1, sum(found.values.values()))


#: By the name that a user gives.
MEASURES: Mapping[str, Measure] = {
    "bytes": Measure(_nbytes, _one),
    "bitops": Measure(_bitops, _one, is_joint=True),
    "average_bits": Measure(_value_bits, _num_values),
}


def totals(groups: Sequence[Sequence[Option]]) -> tuple[int, int]:
    r"""The least and the most that choices can cost.

    Args:
        groups (list): The options of each group.
    """
    costs = [[option.cost for option in options] for options in groups]
    return sum(map(min, costs)), sum(map(max, costs))
