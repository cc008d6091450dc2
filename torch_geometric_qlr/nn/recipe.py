"""What is done to each layer of a model: made once, applied once, saved as it is.

The planner makes a :class:`Recipe` from a model and a config, ``rewrite.apply_recipe`` does what
it says, ``read_back.recipe_of`` reads it off the layers again, and a file holds what
:meth:`Recipe.to_dict` gives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch_geometric_qlr.config import POINTS, QuantizerConfig
from torch_geometric_qlr.layers.state import parameter_of, weight_key
from torch_geometric_qlr.nn.propagation.smooth import SmoothOptions

__all__ = [
    "Codes",
    "EdgeWeights",
    "LayerRecipe",
    "Point",
    "Ranges",
    "Recipe",
    "Route",
    "SmoothRecipe",
    "shown_point",
]


#: The usual argument or parameter of a point, which goes without saying.
_USUAL = {"source:x": "source", "weight:weight": "weight"}


def shown_point(point: str) -> str:
    r"""A point for a reader.

    Args:
        point (str): As :class:`Point` spells it.

    Example:
        >>> [shown_point(point) for point in ("source:x", "source:h", "weight:att")]
        ['source', 'source:h', 'att']
    """
    return _USUAL.get(point, point.removeprefix("weight:"))


class Point(NamedTuple):
    r"""A place of a layer where a tensor is quantized.

    Args:
        kind (str): One of :data:`torch_geometric_qlr.config.POINTS`.
        name (str): The parameter of a weight, the argument of :obj:`propagate` of a source.

    Example:
        >>> str(Point("source", "x")), Point("source", "x").key, Point("weight", "att").key
        ('source:x', 'source_x', 'att')
        >>> Point("source", "x").path("convs.0", hop=1), Point("weight", "att").path("convs.0")
        ('convs.0.x (source, hop 1)', 'convs.0.att')
    """

    kind: str
    name: str = ""

    @classmethod
    def of_key(cls, key: str) -> Point:
        """The point of a quantizer by its :attr:`key`."""
        if key.startswith("source_"):
            return cls("source", key.removeprefix("source_"))
        if key in POINTS and key != "weight":
            return cls(key)
        return cls("weight", parameter_of(key))

    @property
    def key(self) -> str:
        """The name of its quantizer in ``layer.quantizers`` and in every ``state_dict``."""
        if self.kind == "weight":
            return weight_key(self.name)
        return f"source_{self.name}" if self.kind == "source" else self.kind

    @property
    def is_per_hop(self) -> bool:
        """Whether it is passed once in every hop."""
        return self.kind in ("source", "message", "aggregate")

    def path(self, layer: str, hop: int | None = None) -> str:
        r"""How error messages name its quantizer.

        Args:
            layer (str): Name of the layer.
            hop (int, optional): Its place among those of several hops.
        """
        label = "" if hop is None else f", hop {hop}"
        if self.kind == "source":
            return f"{layer}.{self.name} (source{label})"
        return f"{layer}.{self.name or self.kind}{label}"

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


@dataclass(frozen=True)
class Ranges:
    r"""A quantizer with ranges.

    Args:
        config (QuantizerConfig): Width, truncation, granularity and the like.
        groups (int): How many ranges it holds.
        channel_dim (int): Dimension of the output channels, 0 or -1, if each has a range.
    """

    config: QuantizerConfig
    groups: int = 1
    channel_dim: int = -1

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.config.bits


@dataclass(frozen=True)
class Codes:
    r"""A weight that is codes, in place of its quantizer.

    Args:
        bits (int): Width of a code.
        shape (tuple): Shape of the weight.
        matrix (tuple): Rows and columns of the codes.
    """

    bits: int
    shape: tuple[int, ...]
    matrix: tuple[int, int]


@dataclass(frozen=True)
class EdgeWeights:
    r"""The rounding of weights of edges, which has no ranges.

    Args:
        bits (int): Width of a code.
    """

    bits: int


#: What acts at a point: one for all hops, or one for each.
PointRecipe = Ranges | Codes | EdgeWeights | tuple[Ranges, ...]


class Route(NamedTuple):
    r"""What of the kernel for a conv's messages decides which numbers come out; see
    :class:`~torch_geometric_qlr.codes.kernel_choice.KernelChoice`.

    Args:
        kernel (str): Which one; empty for the layer's own code.
        source (str): What is gathered.
        weight (str): What multiplies it.
        reduce (str): How messages are aggregated.
    """

    kernel: str
    source: str
    weight: str
    reduce: str


@dataclass(frozen=True)
class LayerRecipe:
    r"""What is done to one layer.

    Args:
        path (str): Qualified name; :obj:`""` is the model itself.
        layer (str): Its float class.
        kind (str): What it becomes, a key of ``packed.kinds.KINDS``.
        weights (tuple): Parameters that are read through a quantizer.
        quantizers (dict): What acts at each :class:`Point`.
        route (Route, optional): How a converted conv computes its messages.
        input_gain (bool): Whether training finds a gain of its input.
        note (str): Remarks for people; not part of what is done.
    """

    path: str
    layer: str
    kind: str
    weights: tuple[str, ...] = ()
    quantizers: Mapping[Point, PointRecipe] = field(default_factory=dict)
    route: Route | None = None
    input_gain: bool = False
    note: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, without its path and remarks."""
        out: dict[str, Any] = {
            "class": self.layer,
            "family": self.kind,
            "weights": list(self.weights),
            "quantizers": {point.key: _plain(q) for point, q in self.quantizers.items()},
        }
        if self.input_gain:
            out["input_gain"] = True
        return out if self.route is None else out | {"route": self.route._asdict()}

    @classmethod
    def from_dict(cls, path: str, entry: Mapping[str, Any]) -> LayerRecipe:
        """From :meth:`to_dict`."""
        quantizers = {Point.of_key(key): _quantizer(q) for key, q in entry["quantizers"].items()}
        route = entry.get("route")
        return cls(
            path,
            layer=entry["class"],
            kind=entry["family"],
            weights=tuple(entry["weights"]),
            quantizers=quantizers,
            route=None if route is None else Route(**route),
            input_gain=entry.get("input_gain", False),
        )


def _plain(found: PointRecipe) -> Any:
    if isinstance(found, tuple):
        return [_plain(one) for one in found]
    if isinstance(found, EdgeWeights):
        return {"bits": found.bits}
    if isinstance(found, Codes):
        return {"bits": found.bits, "shape": list(found.shape), "matrix": list(found.matrix)}
    return {**dataclasses.asdict(found), "config": found.config.to_dict()}


def _quantizer(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_quantizer(one) for one in value)
    if "matrix" in value:
        return Codes(value["bits"], tuple(value["shape"]), tuple(value["matrix"]))
    if "config" not in value:
        return EdgeWeights(value["bits"])
    return Ranges(**{**value, "config": QuantizerConfig(**value["config"])})


@dataclass(frozen=True)
class SmoothRecipe:
    r"""What ``SmoothPropagation`` does to one layer.

    Args:
        path (str): Qualified name.
        layer (str): Its float class.
        source (str): The argument of :obj:`propagate` that holds its features.
        options (SmoothOptions): How.
        note (str): What :func:`torch_geometric_qlr.plan` says of it.
    """

    path: str
    layer: str
    source: str
    options: SmoothOptions
    note: str = field(compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, without its path."""
        return {
            "class": self.layer,
            "source": self.source,
            "options": dataclasses.asdict(self.options),
            "note": self.note,
        }

    @classmethod
    def from_dict(cls, path: str, entry: Mapping[str, Any]) -> SmoothRecipe:
        """From :meth:`to_dict`."""
        options = SmoothOptions(**entry["options"])
        return cls(path, entry["class"], entry["source"], options, entry["note"])


@dataclass(frozen=True)
class Recipe:
    r"""What is done to the layers of a model.

    Args:
        layers (tuple): One :class:`LayerRecipe` per layer that becomes a quantized object.
        smooth (tuple): One :class:`SmoothRecipe` per layer whose propagation is smoothed.
        converted (bool): Whether it computes on codes only.
        kept (dict): Why each other module stays as it is, if there is something to say; not part of
            what is done.
    """

    layers: tuple[LayerRecipe, ...]
    smooth: tuple[SmoothRecipe, ...] = ()
    converted: bool = False
    kept: Mapping[str, str] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        r"""What is done, as plain values.

        Example:
            >>> import torch_geometric_qlr as qlr
            >>> recipe = qlr.plan(torch.nn.Linear(4, 2), bits=4).recipe
            >>> Recipe.from_dict(recipe.to_dict()) == recipe
            True
        """
        return {
            "converted": self.converted,
            "layers": {layer.path: layer.to_dict() for layer in self.layers},
            "smooth": {layer.path: layer.to_dict() for layer in self.smooth},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """From :meth:`to_dict`."""
        return cls(
            tuple(LayerRecipe.from_dict(*item) for item in values["layers"].items()),
            tuple(SmoothRecipe.from_dict(*item) for item in values["smooth"].items()),
            values["converted"],
        )
