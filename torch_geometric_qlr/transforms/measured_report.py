"""Measures what rounding does at each place of a quantized model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torch_geometric_qlr.calibration import Run
from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.nn.copying import copy_of
from torch_geometric_qlr.quantizers import Quantizer
from torch_geometric_qlr.search.isolated import Isolated, Place
from torch_geometric_qlr.search.output_error import ExactOutput, decibels
from torch_geometric_qlr.search.sensitivity import code_bytes, weight_of
from torch_geometric_qlr.search.traffic import Traffic
from torch_geometric_qlr.training import weight_parameters
from torch_geometric_qlr.transforms.quantization_report import PointReport, QuantizationReport

__all__ = ["measure_report"]

_KINDS = {
    "weight": "weights",
    "source": "messages",
    "message": "messages",
    "aggregate": "messages",
    "edge_weight": "edge weights",
}


class _Rounding:
    """What a quantizer does to values: sums over all that it is given."""

    def __init__(self) -> None:
        self.count = self.clipped = 0
        self.energy = self.noise = 0.0
        self.low, self.high = float("inf"), -float("inf")

    def add(self, quantizer: Quantizer, x: Tensor) -> None:
        """Lets values through, and looks at the difference."""
        if x.numel() == 0:
            return
        value, scale, zero_point, _ = quantizer(x)
        matrix = quantizer.groups.matrix(x)
        low, high = -zero_point * scale, (2**quantizer.bits - 1 - zero_point) * scale
        outside = (matrix < low - scale / 2) | (matrix > high + scale / 2)
        self.count += x.numel()
        self.clipped += int(outside.sum())
        self.energy += float(x.double().square().sum())
        self.noise += float((value.double() - x.double()).square().sum())
        self.low = min(self.low, float(low.min()) + 0.0)  # no negative zero
        self.high = max(self.high, float(high.max()))

    def shown_to(self, quantizer: Quantizer) -> Callable[..., None]:
        """The same for what passes a quantizer, which goes on unrounded."""

        def shown(x: Tensor, zeros: int | None = None) -> None:
            # Of stored values it is not known which ones share a row, and with it a range.
            if zeros is not None and quantizer.config.granularity == "node":
                return
            quantizer.watch = None
            try:
                self.add(quantizer, x)
            finally:
                quantizer.watch = shown

        return shown

    def numbers(self) -> dict[str, float | None]:
        """What a report says of it."""
        if self.count == 0:
            return dict.fromkeys(("low", "high", "clipped", "sqnr"))
        sqnr = decibels(self.noise / self.energy) if self.noise else float("inf")
        clipped = self.clipped / self.count
        return {"low": self.low, "high": self.high, "clipped": clipped, "sqnr": sqnr}


@torch.no_grad()
def measure_report(model: nn.Module, run: Run) -> QuantizationReport:
    r"""Looks at each place of a copy of a quantized model, with everything else in float.

    Args:
        model (torch.nn.Module): The quantized model.
        run (callable): Runs it.
    """
    isolated = Isolated(copy_of(model))
    traffic = Traffic.of(isolated, [run])
    _settle(isolated, traffic)
    exact = ExactOutput(isolated.model, [run])
    found = _roundings(isolated, run)
    points = []
    for place in isolated.places:
        with isolated.rounding([place]):
            error = exact.error_of(isolated.model)
        sizes = _bytes(isolated, place, traffic)
        points.append(_point(isolated, place, found[place], decibels(error), sizes))
    with isolated.rounding(isolated.places):
        output_sqnr = decibels(exact.error_of(isolated.model))
    weights = [place for place in isolated.places if place.point.kind == "weight"]
    sending = {p.module for p in isolated.places if p.point.kind in ("source", "message")}
    return QuantizationReport(
        model=type(model).__name__,
        points=tuple(points),
        output_sqnr=output_sqnr,
        parameters=sum(parameter.numel() for parameter in weight_parameters(model)),
        quantized_parameters=sum(weight_of(isolated, place).numel() for place in weights),
        message_values=sum(traffic.messages.values()),
        quantized_message_values=sum(traffic.messages[name] for name in sending),
    )


def _settle(isolated: Isolated, traffic: Traffic) -> None:
    """No range moves while it is looked at, and none is made up."""
    for place, found in isolated.places.items():
        for quantizer in found.modules():
            if not isinstance(quantizer, Quantizer):
                continue
            if quantizer.has_range:
                quantizer.fix()
            elif traffic.values[place] > 0:
                raise ConfigError(
                    f"{quantizer.path or place.module} has no range yet: the model has never seen "
                    f"data. Train it, or call qlr.calibrate(model, batches), then report."
                )


def _roundings(isolated: Isolated, run: Run) -> dict[Place, _Rounding]:
    found = {place: _Rounding() for place in isolated.places}
    shown = {place: found[place].shown_to for place in isolated.places if not place.is_read}
    with isolated.showing(shown):
        run(isolated.model)
    for place, quantizer in isolated.places.items():
        if isinstance(quantizer, Quantizer) and place.is_read:
            found[place].add(quantizer, weight_of(isolated, place))
    return found


def _bytes(isolated: Isolated, place: Place, traffic: Traffic) -> tuple[int, int]:
    """In float32, and of codes."""
    if place.point.kind == "edge_weight":
        return 0, 0
    is_weight = place.point.kind == "weight"
    count = weight_of(isolated, place).numel() if is_weight else traffic.values[place]
    return 4 * count, code_bytes(isolated, place, _bits(isolated, place), traffic)


def _bits(isolated: Isolated, place: Place) -> int:
    found: Any = isolated.places[place]
    bits: int = next(module.bits for module in found.modules() if hasattr(module, "bits"))
    return bits


def _point(
    isolated: Isolated,
    place: Place,
    found: _Rounding,
    output_sqnr: float,
    sizes: tuple[int, int],
) -> PointReport:
    return PointReport(
        module=place.module,
        point=str(place.point),
        kind=_KINDS.get(place.point.kind, "features"),
        bits=_bits(isolated, place),
        **found.numbers(),
        output_sqnr=output_sqnr,
        float_bytes=sizes[0],
        bytes=sizes[1],
    )
