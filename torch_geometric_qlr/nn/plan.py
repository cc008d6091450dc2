"""A recipe for people: for every module what happens, at which points, with how many bits, or why
not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch_geometric.nn import MessagePassing

from torch_geometric_qlr.layers.layer_spec import REWRITTEN
from torch_geometric_qlr.layers.pyg import is_uninitialized_parameter
from torch_geometric_qlr.nn.recipe import PointRecipe, Recipe, shown_point
from torch_geometric_qlr.nn.registry import find_spec
from torch_geometric_qlr.text import aligned, as_html, folded

__all__ = ["Plan", "PlanEntry"]

_HEAD = ("module", "layer", "family", "quantized at", "bits (w/a/m)", "note")


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


@dataclass(frozen=True)
class Plan:
    r"""The result of :func:`torch_geometric_qlr.plan`: prints as a table, in which equal layers
    of a deep model are one row.

    Args:
        model (str): Class of the model.
        entries (tuple): One :class:`PlanEntry` per module with parameters or messages.
        rules (dict): How many modules each override matched.
        recipe (Recipe): What is done, which this prints.
    """

    model: str
    entries: tuple[PlanEntry, ...]
    rules: Mapping[str, int]
    recipe: Recipe = field(repr=False, compare=False, default=Recipe(()))

    @classmethod
    def of(cls, model: nn.Module, recipe: Recipe, rules: Mapping[str, int]) -> Plan:
        r"""The plan of a recipe for a model.

        Args:
            model (torch.nn.Module): The model the recipe was made for.
            recipe (Recipe): What is done to it.
            rules (dict): How many modules each override matched.
        """
        return cls(type(model).__name__, tuple(_entries(model, recipe)), rules, recipe)

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

    def _rows(self) -> list[tuple[str, ...]]:
        rows = [
            (e.name or "(model)", e.layer, e.family, _listed(e.points), e.bits, e.note)
            for e in self.entries
        ]
        return [_HEAD, *folded(rows)]

    def _total(self) -> str:
        share = 100 * self.quantized_parameters / max(1, self.parameters)
        sends = [e for e in self.entries if e.family in ("copy", "attention", "edge")]
        kinds = ("source", "message")
        quantized = sum(any(p.partition(":")[0] in kinds for p in e.points) for e in sends)
        total = f"quantized: {share:.1f} % of {self.parameters:,} parameters"
        if sends:
            total += f"; messages of {quantized} of {len(sends)} layers"
        for rule, count in self.rules.items():
            total += f"; rule {rule!r} matched {count} module{'s' if count != 1 else ''}"
        return total

    def __str__(self) -> str:
        return "\n".join([*aligned(self._rows()), self._total()])

    def _repr_html_(self) -> str:
        return as_html(self._rows(), [self._total()])


def _entries(model: nn.Module, recipe: Recipe) -> Iterator[PlanEntry]:
    """One per module with parameters of its own, messages, or something that is quantized."""
    layers = {layer.path: layer for layer in recipe.layers}
    counted: set[int] = set()
    for name, module in model.named_modules():
        own = {n: p for n, p in module.named_parameters(recurse=False) if id(p) not in counted}
        counted.update(map(id, own.values()))
        layer, spec = layers.get(name), find_spec(module)
        found = {} if layer is None else layer.quantizers
        if not found and not own and not isinstance(module, MessagePassing):
            continue
        quantized = {point.name for point in found if point.kind == "weight"}
        note = recipe.kept.get(name, "") if layer is None else layer.note
        kept = ", ".join(n for n in own if n not in quantized) if found else ""
        sizes = {n: 0 if is_uninitialized_parameter(p) else p.numel() for n, p in own.items()}
        yield PlanEntry(
            name=name,
            layer=type(module).__name__,
            family=spec.family if spec is not None and spec.family in REWRITTEN else "-",
            points={str(point): _bits(q) for point, q in found.items()},
            parameters=sum(sizes.values()),
            quantized_parameters=sum(size for n, size in sizes.items() if n in quantized),
            note="; ".join(filter(None, [f"{kept} kept float" if kept else "", note])),
        )


def _bits(found: PointRecipe) -> int:
    return found[0].bits if isinstance(found, tuple) else found.bits


def _listed(points: Mapping[str, int]) -> str:
    """Points for a reader, with a width that no other column has."""
    more = {"edge_weight": f" ({points.get('edge_weight')})"}
    return ", ".join(shown_point(p) + more.get(p, "") for p in points) or "-"
