"""Several hops that follow each other, composed of quantizing and of sums along edges."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.checks import FLOATS, Check, finite
from torch_geometric_qlr.ops.definition import Call, Definition
from torch_geometric_qlr.ops.definitions.gather import check_gather
from torch_geometric_qlr.ops.fakes import float_rows, result_rows
from torch_geometric_qlr.ops.groups import PackedMatrix, QParams
from torch_geometric_qlr.ops.layout import storage_bits
from torch_geometric_qlr.ops.reference import affine_params
from torch_geometric_qlr.ops.smoothing import (
    constrained_step,
    gradient_step,
    initial_multiplier,
)

__all__ = ["PackedPropagate", "PackedSmp", "SmpOptions"]

_PROJECTIONS = ("none", "nonnegative", "nonpositive")


def _matrix(data: Tensor, cols: int, by: QParams) -> PackedMatrix:
    """What a quantizer has packed."""
    scale, zero_point = affine_params(by.scale, by.zero_point, by.bits, by.truncate)
    return PackedMatrix(data, cols, storage_bits(by.bits), scale, zero_point)


class PackedPropagate(Definition, op="packed_propagate"):
    """What one hop sums up is quantized, packed and sent on."""

    def check(self, check: Check, a: Arguments) -> None:
        check_gather(check, a)
        rows = a.graph.num_rows
        check.weights(a.weights, a.col.size(0), a.packed.size(0))
        check.epilogue(a.epilogue, rows, a.num_cols)
        check.output(a.output, rows, a.num_cols)
        check.steps(a.steps)
        because = "hops that follow each other need a square adjacency"
        check.square(a.graph, a.packed.size(0), because)

    def fake(self, a: Arguments) -> Tensor:
        return result_rows(a.packed, a.graph.num_rows, a.num_cols, a.output)

    def compute(self, a: Arguments, call: Call) -> Tensor:
        def hop(sources: PackedMatrix, to: QParams | None) -> Tensor:
            result: Tensor = call(
                "packed_spmm",
                *a.graph,
                *sources._replace(scale=sources.scale * a.factor),
                edge_weight=a.edge_weight,
                row_scale=a.row_scale,
                addend=a.addend,
                addend_scale=a.addend_scale,
                **({} if to is None else to.named("out_")),
            )
            return result

        sources = a.matrix
        for step in a.steps.each():
            sources = _matrix(hop(sources, step), a.num_cols, step)
        return hop(sources, a.output)


class SmpOptions(NamedTuple):
    """What :class:`torch_geometric_qlr.nn.SMP` is told."""

    mu: float
    eta: float
    eta_lambda: float
    eta_slack: float
    init_lambda: float
    init_slack: float
    tau: float
    primal: str
    projection: str
    detach_multiplier: bool = True


class PackedSmp(Definition, op="packed_smp"):
    """All steps of smoothness-aware propagation, see :mod:`~torch_geometric_qlr.ops.smoothing`."""

    def check(self, check: Check, a: Arguments) -> None:
        check.matrix("x", a.x, FLOATS, "floating point")
        check.columns(a.x.size(1))
        check.graph(a.graph)
        check.weights(a.weights, a.col.size(0), a.x.size(0))
        check.epilogue(a.epilogue, a.graph.num_rows, a.x.size(1))
        check.steps(a.steps)
        needs = "it needs a square adjacency and two quantizers per step"
        check.square(a.graph, a.x.size(0), needs)
        count = a.step_scale.size(0)
        if type(count) is int and count % 2:
            check.fail(f"there are {count} quantizers; {needs}")
        if a.primal not in ("paper", "lagrangian") or a.projection not in _PROJECTIONS:
            raise ConfigError(
                f"{check.where}: no primal {a.primal!r} with projection {a.projection!r}; primal "
                f"is 'paper' or 'lagrangian', projection one of {', '.join(_PROJECTIONS)}"
            )

    def fake(self, a: Arguments) -> Tensor:
        return float_rows(a.x, a.graph.num_rows, a.x.size(1))

    def compute(self, a: Arguments, call: Call) -> Tensor:
        def sent(values: Tensor, by: QParams) -> Tensor:
            packed = call("quantize_pack", finite(values), *by)
            sources = _matrix(packed, values.size(1), by)
            weights = {"edge_weight": a.edge_weight, "row_scale": a.row_scale}
            sums: Tensor = call("packed_spmm", *a.graph, *sources, **weights)
            return sums

        told, steps = a.group(SmpOptions), a.steps.each()
        x = h = a.x.float()
        teleport, state = told.eta * x, initial_multiplier(told, x)
        bound = told.tau * a.col.numel()
        for first, second in zip(steps[::2], steps[1::2], strict=True):
            before, h = h, gradient_step(told, h, sent(h, first), teleport)
            change = h - before
            h, state, _ = constrained_step(told, h, change, sent(change, second), state, bound)
        return h.clone() if h is a.x else h
