"""The dry run: for every module what happens, at which points, with how many bits, or why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.nn.layer_spec import LayerSpec

__all__ = ["Plan", "PlanEntry", "Site"]


@dataclass(frozen=True)
class PlanEntry:
    r"""What happens to one module.

    Args:
        name (str): Qualified name; :obj:`""` is the model itself.
        layer (str): Its class.
        family (str): Its message family, :obj:`"linear"`, :obj:`"weights"` or :obj:`"-"`.
        points (dict): Where it is quantized, and to how many bits.
        parameters (int): Number of values in its own parameters.
        quantized_parameters (int): How many of those are quantized.
        note (str): Why something stays in floating point, and other remarks.
    """

    name: str
    layer: str
    family: str
    points: Mapping[str, int]
    parameters: int
    quantized_parameters: int
    note: str

    @property
    def bits(self) -> str:
        """Widths as weight/activation/message, with a dash where nothing is quantized."""
        if not self.points:
            return "-"
        widths = [
            [b for p, b in self.points.items() if p.partition(":")[0] in kinds]
            for kinds in (("weight",), ("input", "linear_output", "output"), ("source", "message"))
        ]
        return "/".join(str(min(w)) if w else "-" for w in widths)


@dataclass
class Site:
    """A module that is going to be rewritten: its quantizers, and how many ranges each holds."""

    name: str
    layer: nn.Module
    spec: LayerSpec
    points: dict[str, QuantizerConfig] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)

    def path(self, point: str) -> str:
        """A point as error messages name it: :obj:`"convs.0.lin.weight"`."""
        kind, _, name = point.partition(":")
        return f"{self.name or type(self.layer).__name__}.{name or kind}"


@dataclass(frozen=True)
class Plan:
    r"""The result of :func:`torch_geometric_qlr.plan`: prints as a table.

    Args:
        model (str): Class of the model.
        entries (tuple): One :class:`PlanEntry` per module with parameters or messages.
        rules (dict): How many modules each override matched.
    """

    model: str
    entries: tuple[PlanEntry, ...]
    rules: Mapping[str, int]
    sites: tuple[Site, ...] = field(repr=False, compare=False, default=())

    @property
    def parameters(self) -> int:
        """Values in all parameters, each counted once."""
        return sum(e.parameters for e in self.entries)

    @property
    def quantized_parameters(self) -> int:
        """Values in quantized parameters."""
        return sum(e.quantized_parameters for e in self.entries)

    def to_dict(self) -> dict[str, Any]:
        r"""The plan as plain values."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "quantized_parameters": self.quantized_parameters,
            "rules": dict(self.rules),
            "modules": [
                {
                    "name": e.name,
                    "layer": e.layer,
                    "family": e.family,
                    "points": dict(e.points),
                    "parameters": e.parameters,
                    "quantized_parameters": e.quantized_parameters,
                    "note": e.note,
                }
                for e in self.entries
            ],
        }

    def __str__(self) -> str:
        head = ("module", "layer", "family", "quantized at", "bits (w/a/m)", "note")
        rows = [
            (e.name or "(model)", e.layer, e.family, _listed(e.points), e.bits, e.note)
            for e in self.entries
        ]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        ]
        share = 100 * self.quantized_parameters / max(1, self.parameters)
        sends = [e for e in self.entries if e.family in ("copy", "attention", "edge")]
        kinds = ("source", "message")
        quantized = sum(any(p.partition(":")[0] in kinds for p in e.points) for e in sends)
        total = f"quantized: {share:.1f} % of {self.parameters:,} parameters"
        if sends:
            total += f"; messages of {quantized} of {len(sends)} layers"
        for rule, count in self.rules.items():
            total += f"; rule {rule!r} matched {count} module{'s' if count != 1 else ''}"
        return "\n".join([*lines, total])


def _listed(points: Mapping[str, int]) -> str:
    """Points for a reader: the usual argument or parameter of a point goes without saying."""
    short = {"source:x": "source", "weight:weight": "weight"}
    return ", ".join(short.get(p, p.removeprefix("weight:")) for p in points) or "-"
