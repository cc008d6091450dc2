"""A quantized model of which some points round, and all others let floats pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from torch_geometric_qlr.layers.state import LayerState, state_of
from torch_geometric_qlr.nn import QuantLayer
from torch_geometric_qlr.nn.recipe import Point
from torch_geometric_qlr.quantizers import Quantizer

__all__ = ["Isolated", "Place"]


class Place(NamedTuple):
    r"""A point of a layer.

    Args:
        module (str): Name of the layer.
        point (Point): Where in it.
    """

    module: str
    point: Point

    @property
    def is_read(self) -> bool:
        """Whether something is read there, a weight, instead of passing."""
        return self.point.kind in ("weight", "edge_weight")


#: Is shown what passes a point: values, and how many zeros belong to them that are not stored.
Shown = Callable[..., None]


class Isolated:
    r"""Takes over a quantized model, so that its points can be looked at one by one: it is in
    evaluation, computes in floating point, and rounds nothing but what it is told to.

    Args:
        model (torch.nn.Module): The quantized model. It is of no other use afterwards: pass a copy.

    Attributes:
        places (dict): What acts at each :class:`Place`.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> isolated = Isolated(qlr.quantize(torch.nn.Linear(4, 2), bits=1))
        >>> [str(place.point) for place in isolated.places]
        ['input', 'weight:weight']
        >>> x = torch.rand(3, 4)
        >>> exact = isolated.model(x)
        >>> with isolated.rounding([Place("", Point("input"))]):
        ...     torch.equal(isolated.model(x), exact)
        False
        >>> torch.equal(isolated.model(x), exact)
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()
        self.places: dict[Place, nn.Module] = {}
        self._states: dict[str, LayerState] = {}
        for name, layer in model.named_modules():
            if isinstance(layer, QuantLayer):
                self._states[name] = state = state_of(layer)
                state.observes = True
                self.places |= {Place(name, Point.of_key(k)): q for k, q in state.items()}
        for place in self.places:
            self._take_off(place)

    @contextlib.contextmanager
    def rounding(self, places: Iterable[Place]) -> Iterator[None]:
        r"""Inside, some points round.

        Args:
            places (iterable): Which ones.
        """
        places = list(places)
        for place in places:
            self._put_back(place)
        try:
            yield
        finally:
            for place in places:
                self._take_off(place)

    @contextlib.contextmanager
    def showing(self, shown: Mapping[Place, Callable[[Quantizer], Shown]]) -> Iterator[None]:
        r"""Inside, somebody looks at activations and messages that pass; nothing is rounded.

        Args:
            shown (dict): By place, what makes of one of its quantizers the function that is shown
                what passes it.
        """
        for place, make in shown.items():
            for quantizer in self._quantizers(place):
                quantizer.watch = make(quantizer)
        try:
            yield
        finally:
            for place in shown:
                self._take_off(place)

    def _quantizers(self, place: Place) -> list[Quantizer]:
        return [q for q in self.places[place].modules() if isinstance(q, Quantizer)]

    # What is read without a quantizer is read as it is; everything else goes through one.

    def _take_off(self, place: Place) -> None:
        if place.is_read:
            del self._states[place.module][place.point.key]
            return
        for quantizer in self._quantizers(place):
            quantizer.watch = _let_pass

    def _put_back(self, place: Place) -> None:
        if place.is_read:
            self._states[place.module][place.point.key] = self.places[place]
            return
        for quantizer in self._quantizers(place):
            quantizer.watch = None


def _let_pass(x: Tensor, zeros: int = 0) -> None:
    return None
