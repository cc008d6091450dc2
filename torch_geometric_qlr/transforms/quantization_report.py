"""What rounding costs, place by place: for people, notebooks and programs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch_geometric_qlr.nn.recipe import shown_point
from torch_geometric_qlr.text import aligned, as_html

__all__ = ["PointReport", "QuantizationReport"]

_HEAD = ("module", "point", "bits", "range", "clipped", "SQNR", "output SQNR", "bytes")


@dataclass(frozen=True)
class PointReport:
    r"""What rounding does at one place. What cannot be told is :obj:`None`: of a place that the
    input does not reach; of weights of edges, for which there is
    :func:`~torch_geometric_qlr.metrics.edge_weight_error`; and of sparse features with a range for
    each row.

    Args:
        module (str): Name of the layer; :obj:`""` is the model itself.
        point (str): Where in it, as :func:`torch_geometric_qlr.plan` says.
        kind (str): :obj:`"weights"`, :obj:`"features"`, :obj:`"messages"` or
            :obj:`"edge weights"`.
        bits (int): Its width.
        low, high (float, optional): The least and the greatest number that a code stands for, of
            all ranges together.
        clipped (float, optional): The share of values that are more than half a step beyond the
            ends of their own range.
        sqnr (float, optional): The :func:`~torch_geometric_qlr.metrics.sqnr` of its values, where
            nothing else is rounded.
        output_sqnr (float): That of the output, where nothing else is rounded.
        float_bytes (int): Of its values in float32; of weights of edges nothing is counted.
        bytes (int): Of its codes; of a weight with its scales.
    """

    module: str
    point: str
    kind: str
    bits: int
    low: float | None
    high: float | None
    clipped: float | None
    sqnr: float | None
    output_sqnr: float
    float_bytes: int
    bytes: int

    def cells(self) -> tuple[str, ...]:
        """The row of a table."""
        unknown = self.low is None or self.high is None
        return (
            self.module or "(model)",
            shown_point(self.point),
            str(self.bits),
            "-" if unknown else f"[{self.low:.3g}, {self.high:.3g}]",
            "-" if self.clipped is None else f"{100 * self.clipped:.2f} %",
            "-" if self.sqnr is None else f"{self.sqnr:.1f} dB",
            f"{self.output_sqnr:.1f} dB",
            f"{self.float_bytes:,} -> {self.bytes:,}" if self.float_bytes else "-",
        )


@dataclass(frozen=True, repr=False)
class QuantizationReport:
    r"""The result of :func:`torch_geometric_qlr.report` for a quantized model.

    Args:
        model (str): Class of the model.
        points (tuple): One :class:`PointReport` for each place that is quantized.
        output_sqnr (float): The :func:`~torch_geometric_qlr.metrics.sqnr` of the output with
            everything rounded.
        parameters, quantized_parameters (int): Values of the model's parameters, and how many of
            them are quantized.
        message_values, quantized_message_values (int): Numbers that its layers sum up, one for each
            edge and feature, and how many of them are made of codes.
    """

    model: str
    points: tuple[PointReport, ...]
    output_sqnr: float
    parameters: int
    quantized_parameters: int
    message_values: int
    quantized_message_values: int

    @property
    def bits(self) -> dict[int, int]:
        """How many places have each width."""
        return dict(sorted(Counter(point.bits for point in self.points).items()))

    @property
    def bytes(self) -> dict[str, tuple[int, int]]:
        """Bytes in float32 and in codes: of weights, of features that Linears multiply, and of
        messages, which are sources once for each node, or messages for each edge."""
        return {
            kind: (
                sum(point.float_bytes for point in self.points if point.kind == kind),
                sum(point.bytes for point in self.points if point.kind == kind),
            )
            for kind in ("weights", "features", "messages")
        }

    def to_dict(self) -> dict[str, Any]:
        r"""The report as plain values."""
        return {
            **{name: value for name, value in vars(self).items() if name != "points"},
            "bytes": {kind: list(pair) for kind, pair in self.bytes.items()},
            "points": [dataclasses.asdict(point) for point in self.points],
        }

    def to_pandas(self) -> Any:
        r"""A :class:`pandas.DataFrame` with a row for each place.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "to_pandas makes a DataFrame of pandas, which is not installed. Run 'pip install "
                "pandas', or take the numbers from to_dict()."
            ) from error
        return pandas.DataFrame([dataclasses.asdict(point) for point in self.points])

    def _totals(self) -> list[str]:
        sizes = [f"{kind} {a:,} -> {b:,}" for kind, (a, b) in self.bytes.items() if a]
        covered = f"{_share(self.quantized_parameters, self.parameters)} of parameters"
        if self.message_values:
            share = _share(self.quantized_message_values, self.message_values)
            covered += f", {share} of message bytes"
        return [
            f"bytes: {', '.join(sizes)}",
            f"quantized: {covered}; output SQNR {self.output_sqnr:.1f} dB",
        ]

    def __repr__(self) -> str:
        return "\n".join([*aligned([_HEAD, *(p.cells() for p in self.points)]), *self._totals()])

    def _repr_html_(self) -> str:
        return as_html([_HEAD, *(point.cells() for point in self.points)], self._totals())


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"
