"""What gets a width of its own: the points of a layer that follow one field of its config."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from torch_geometric_qlr.config import QLRConfig
from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.nn.planner import make_plan
from torch_geometric_qlr.nn.recipe import Point, PointRecipe
from torch_geometric_qlr.search.isolated import Place

__all__ = ["Unit", "check_config", "check_widths", "units_of", "widths_at"]

#: A width for each field, by which the points of a plan tell which one they follow.
_TOLD_BY = {"input_bits": 2, "activation_bits": 3, "message_bits": 5, "weight_bits": 7}
_FIELDS = {bits: field for field, bits in _TOLD_BY.items()}
#: Of logits, which keep more bits than they are asked to.
_FIELD_OF_KIND = {"weight": "weight_bits", "source": "message_bits"}


class Unit(NamedTuple):
    r"""Points of one layer that have one width.

    Args:
        module (str): Name of the layer.
        field (str): The field of :class:`~torch_geometric_qlr.QLRConfig` that sets it.
        points (tuple): Where it acts.
    """

    module: str
    field: str
    points: tuple[Point, ...]

    @property
    def places(self) -> list[Place]:
        """Its points with the name of the layer."""
        return [Place(self.module, point) for point in self.points]

    @property
    def rule(self) -> str:
        """The override that holds for its layer. The model itself has no name: of patterns, the
        empty one matches it alone."""
        return self.module or "re:"

    def __str__(self) -> str:
        return ", ".join(str(point) for point in self.points)


def units_of(model: nn.Module, config: QLRConfig) -> list[Unit]:
    r"""What has a width to be searched, in the order of the model. Weights of edges and an output
    with :obj:`output_bits` keep theirs.

    Args:
        model (torch.nn.Module): The float model.
        config (QLRConfig): What to quantize, without widths.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.nn import GCN
        >>> for unit in units_of(GCN(8, 16, num_layers=1), qlr.QLRConfig()):
        ...     print(unit.module, unit.field, unit)
        convs.0 message_bits source:x
        convs.0.lin input_bits input
        convs.0.lin weight_bits weight:weight
    """
    probe = config.replace(**_TOLD_BY)
    units: dict[tuple[str, str], list[Point]] = {}
    for layer in make_plan(model, probe).recipe.layers:
        for point, found in layer.quantizers.items():
            if point.kind == "edge_weight" or (point.kind == "output" and _is_given(config)):
                continue
            field = _FIELDS.get(_bits(found)) or _FIELD_OF_KIND[point.kind]
            units.setdefault((layer.path, field), []).append(point)
    return [Unit(module, field, tuple(points)) for (module, field), points in units.items()]


def widths_at(model: nn.Module, config: QLRConfig, bits: int) -> dict[Place, int]:
    r"""The width of each point if all fields ask for one width. Logits may have more.

    Args:
        model (torch.nn.Module): The float model.
        config (QLRConfig): What to quantize, without widths.
        bits (int): What is asked for.
    """
    recipe = make_plan(model, config.replace(bits=bits)).recipe
    return {
        Place(layer.path, point): _bits(found)
        for layer in recipe.layers
        for point, found in layer.quantizers.items()
    }


def check_widths(bits: Iterable[int]) -> tuple[int, ...]:
    r"""The widths to choose from, in order.

    Args:
        bits (iterable): As a user gives them.

    Raises:
        ConfigError: If there are none, or one is not from 1 to 8.
    """
    given = tuple(bits) if isinstance(bits, Iterable) else (bits,)
    wrong = [b for b in given if isinstance(b, bool) or not isinstance(b, int) or not 1 <= b <= 8]
    if wrong or not given:
        raise ConfigError(
            f"search_bits: bits is {bits!r}; expected widths from 1 to 8 to choose from, such as "
            f"(2, 4, 8)."
        )
    return tuple(sorted(set(given)))


def check_config(config: QLRConfig) -> None:
    r"""Refuses a config that sets what is searched.

    Args:
        config (QLRConfig): What a user has asked for.

    Raises:
        ConfigError: If it has widths, or overrides that are more than :obj:`None`.
    """
    given = [name for name in ("bits", *_TOLD_BY) if name in config.to_dict()]
    if given:
        raise ConfigError(
            f"search_bits: {', '.join(given)} would set widths that are searched. Leave them out, "
            f"and say with bits=(2, 4, 8) which ones to choose from."
        )
    rules = [rule for rule, fields in config.overrides.items() if fields is not None]
    if rules:
        raise ConfigError(
            f"search_bits: the override {rules[0]!r} has fields; here an override may only keep a "
            f"layer in floating point, with None. Add others to the overrides that are found."
        )


def _is_given(config: QLRConfig) -> bool:
    return config.output_bits is not None


def _bits(found: PointRecipe) -> int:
    return found[0].bits if isinstance(found, tuple) else found.bits
