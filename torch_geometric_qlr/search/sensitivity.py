"""What each width of each point costs in the output of a model, with everything else in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from torch_geometric_qlr.calibration import Run, calibrate
from torch_geometric_qlr.codes.weights import PackedWeight
from torch_geometric_qlr.config import QLRConfig
from torch_geometric_qlr.layers.input_gain import folded
from torch_geometric_qlr.layers.running import follow
from torch_geometric_qlr.layers.state import state_of
from torch_geometric_qlr.nn.copying import copy_of
from torch_geometric_qlr.nn.planner import make_plan
from torch_geometric_qlr.nn.rewrite import apply_recipe
from torch_geometric_qlr.ops import storage_bits
from torch_geometric_qlr.quantizers import Quantizer
from torch_geometric_qlr.search.isolated import Isolated, Place
from torch_geometric_qlr.search.operations import Operation, operations_of
from torch_geometric_qlr.search.output_error import ExactOutput
from torch_geometric_qlr.search.traffic import Traffic
from torch_geometric_qlr.search.units import Unit, widths_at

__all__ = ["Sensitivity", "code_bytes", "measure_model", "weight_of"]


@dataclass(frozen=True)
class Sensitivity:
    r"""All that a choice of widths is made of.

    Args:
        units (list): What gets a width.
        widths (dict): By unit, the widths to choose from: of several that come to the same (logits
            keep 8 bits) the largest.
        errors (dict): By unit and width, the error of the output, see :class:`ExactOutput`.
        nbytes (dict): By unit and width, the bytes of its codes.
        bits (dict): By width that is asked for, the width of each place.
        values (dict): By unit, how many values have its width.
        operations (list): What is multiplied by what.
    """

    units: Sequence[Unit]
    widths: Mapping[Unit, tuple[int, ...]]
    errors: Mapping[tuple[Unit, int], float]
    nbytes: Mapping[tuple[Unit, int], int]
    bits: Mapping[int, Mapping[Place, int]]
    values: Mapping[Unit, int]
    operations: Sequence[Operation]


class _Model:
    """A float model, of which quantized copies are made."""

    def __init__(
        self, model: nn.Module, runs: Sequence[Run], config: QLRConfig, ranges: Mapping[str, Any]
    ) -> None:
        self.model, self.runs, self.ranges = model, runs, ranges
        #: What is not searched stays in floating point while the rest is looked at.
        self.config = config.replace(edge_weight_bits=32, output_bits=None)
        self.exact = ExactOutput(copy_of(model).eval(), runs)

    def whole(self, bits: int) -> Isolated:
        """With all of its points, and no ranges."""
        return Isolated(self._quantized(self.config.replace(bits=bits)))

    def alone(self, unit: Unit, bits: int) -> Isolated:
        """With one unit only, and ranges from the data."""
        rules = {**self.config.overrides, unit.rule: {unit.field: bits}}
        copy = self._quantized(self.config.replace(bits=32, overrides=rules))
        calibrate(copy, list(self.runs), _run, progress=False, **self.ranges)
        return Isolated(copy)

    def _quantized(self, config: QLRConfig) -> nn.Module:
        copy = copy_of(self.model)
        apply_recipe(copy, make_plan(self.model, config).recipe)
        follow(copy)
        return copy


def _run(model: nn.Module, run: Run) -> Any:
    return run(model)


def measure_model(
    model: nn.Module,
    runs: Sequence[Run],
    config: QLRConfig,
    units: Sequence[Unit],
    bits: Sequence[int],
    ranges: Mapping[str, Any],
    progress: bool,
) -> Sensitivity:
    r"""Quantizes one unit of a model after the other, at each width.

    Args:
        model (torch.nn.Module): The float model; it is not changed.
        runs (list): Runs a model, once per batch.
        config (QLRConfig): What to quantize, without widths.
        units (list): What gets a width.
        bits (list): The widths.
        ranges (dict): How ranges follow from the data, for
            :func:`~torch_geometric_qlr.calibrate`.
        progress (bool): Whether a bar tells how far it is.
    """
    found = {b: widths_at(model, config, b) for b in bits}
    widths = {unit: _different(unit, found) for unit in units}
    copies = _Model(model, runs, config, ranges)
    whole = copies.whole(bits[0])
    traffic = Traffic.of(whole, runs)
    errors: dict[tuple[Unit, int], float] = {}
    nbytes: dict[tuple[Unit, int], int] = {}
    every = [(unit, b) for unit in units for b in widths[unit]]
    for unit, b in tqdm(every, desc="measuring", disable=not progress):
        alone = copies.alone(unit, b)
        with alone.rounding(unit.places):
            errors[unit, b] = copies.exact.error_of(alone.model)
        nbytes[unit, b] = sum(
            code_bytes(alone, place, found[b][place], traffic) for place in unit.places
        )
    values = {unit: _num_values(whole, unit, traffic) for unit in units}
    operations = operations_of(whole, traffic, found[bits[0]])
    return Sensitivity(units, widths, errors, nbytes, found, values, operations)


def code_bytes(isolated: Isolated, place: Place, bits: int, traffic: Traffic) -> int:
    r"""Bytes of the codes of a point: of a weight with its scales and padding, as a converted model
    holds it; of what passes, those of the values of one run, on average.

    Args:
        isolated (Isolated): The model.
        place (Place): The point.
        bits (int): Its width.
        traffic (Traffic): What passes.
    """
    if place.point.kind != "weight":
        return -(-traffic.mean(traffic.values[place]) * storage_bits(bits) // 8)
    quantizer: Any = isolated.places[place]
    assert isinstance(quantizer, Quantizer)
    return PackedWeight.from_quantizer(quantizer, weight_of(isolated, place)).packed.nbytes


def weight_of(isolated: Isolated, place: Place) -> torch.Tensor:
    r"""The weight that is read at a point, as it is.

    Args:
        isolated (Isolated): The model.
        place (Place): The point.
    """
    layer, name = isolated.model.get_submodule(place.module), place.point.name
    weight: torch.Tensor = getattr(layer, name)
    return folded(state_of(layer), name, weight.detach())


def _num_values(isolated: Isolated, unit: Unit, traffic: Traffic) -> int:
    return sum(
        weight_of(isolated, place).numel()
        if place.point.kind == "weight"
        else traffic.mean(traffic.values[place])
        for place in unit.places
    )


def _different(unit: Unit, found: Mapping[int, Mapping[Place, int]]) -> tuple[int, ...]:
    """Of the widths that are asked for, those that come to something else."""
    by_result = {tuple(at[place] for place in unit.places): bits for bits, at in found.items()}
    return tuple(by_result.values())
