"""What a conversion did: per layer what computes it now, and how much memory its weights take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from torch_geometric_qlr.codes.gather import kernel_of, why_not_now
from torch_geometric_qlr.codes.product import why_no_product
from torch_geometric_qlr.codes.weights import PackedWeight
from torch_geometric_qlr.layers.layer_spec import facts_of
from torch_geometric_qlr.layers.state import state_of
from torch_geometric_qlr.nn.linear import QuantLinearLayer
from torch_geometric_qlr.nn.message_passing import QuantMessagePassing
from torch_geometric_qlr.nn.packed.layer import PackedLayer
from torch_geometric_qlr.quantizers import EdgeWeightQuant, Quantizer
from torch_geometric_qlr.text import aligned, as_html, folded

__all__ = ["Conversion", "ConversionEntry", "how_it_runs"]

_HEAD = ("module", "layer", "runs as", "weight bits", "weight bytes", "edge bits", "note")


@dataclass(frozen=True)
class ConversionEntry:
    r"""What happened to one layer.

    Args:
        name (str): Qualified name; :obj:`""` is the model itself.
        layer (str): Its class.
        runs_as (str): :obj:`"packed product"`, :obj:`"packed sum"`, :obj:`"packed attention"`,
            :obj:`"packed lookup"` or :obj:`"quantized in float"`.
        bits (tuple): Widths of its packed weights.
        float_bytes (int): Size of those weights in float32.
        packed_bytes (int): Their size now, with scales and padding.
        note (str): Why it is not packed, and other remarks.
        edge_weight_bits (int, optional): Width of the weights of edges, if they are quantized.
    """

    name: str
    layer: str
    runs_as: str
    bits: tuple[int, ...]
    float_bytes: int
    packed_bytes: int
    note: str
    edge_weight_bits: int | None = None

    @property
    def is_packed(self) -> bool:
        """Whether it computes on codes."""
        return self.runs_as.startswith("packed")


@dataclass(frozen=True)
class Conversion:
    r"""The result of :func:`torch_geometric_qlr.report`: prints as a table, in which equal layers
    of a deep model are one row.

    Args:
        model (str): Class of the model.
        entries (tuple): One :class:`ConversionEntry` per converted layer.
    """

    model: str
    entries: tuple[ConversionEntry, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Conversion:
        """Reads off a converted model what each layer does."""
        named = model.named_modules()
        entries = [_entry(n, m) for n, m in named if isinstance(m, PackedLayer)]
        return cls(type(model).__name__, tuple(entries))

    @property
    def fallbacks(self) -> tuple[ConversionEntry, ...]:
        """Layers that compute in floating point."""
        return tuple(e for e in self.entries if not e.is_packed)

    def to_dict(self) -> dict[str, Any]:
        r"""The conversion as plain values."""
        return {
            "model": self.model,
            "layers": [{**vars(e), "bits": list(e.bits)} for e in self.entries],
        }

    def _rows(self) -> list[tuple[str, ...]]:
        rows = [
            (
                e.name or "(model)",
                e.layer,
                e.runs_as,
                "/".join(map(str, e.bits)) or "-",
                f"{e.float_bytes:,} -> {e.packed_bytes:,}" if e.bits else "-",
                str(e.edge_weight_bits or "-"),
                e.note,
            )
            for e in self.entries
        ]
        return [_HEAD, *folded(rows)]

    def _total(self) -> str:
        packed = len(self.entries) - len(self.fallbacks)
        return f"packed: {packed} of {len(self.entries)} layers"

    def __str__(self) -> str:
        return "\n".join([*aligned(self._rows()), self._total()])

    def _repr_html_(self) -> str:
        return as_html(self._rows(), [self._total()])


def _entry(name: str, layer: Any) -> ConversionEntry:
    state = state_of(layer)
    weights = [q for q in state.values() if isinstance(q, PackedWeight)]
    edge_weights = [q for q in state.values() if isinstance(q, EdgeWeightQuant)]
    ranges = [q for q in state.modules() if isinstance(q, Quantizer)]
    unused = [q.path for q in ranges if not q.has_range]
    runs_as, reason = how_it_runs(layer)
    notes = [note for note in (reason, _slow(layer, reason)) if note]
    if unused:
        notes.append(f"never saw data: {', '.join(unused)}")
    return ConversionEntry(
        name=name,
        layer=type(layer).__name__,
        runs_as=runs_as,
        bits=tuple(w.bits for w in weights),
        float_bytes=sum(4 * w.shape.numel() for w in weights),
        packed_bytes=sum(w.packed.nbytes for w in weights),
        note="; ".join(notes),
        edge_weight_bits=next((q.bits for q in edge_weights), None),
    )


_IN_FLOAT = "quantized in float"
_RUNS_AS = {
    "spmm": "packed sum",
    "attention": "packed attention",
    "coefficients": "packed attention",
}


def how_it_runs(layer: Any) -> tuple[str, str]:
    r"""What computes a converted layer as it is set up now, and why it is not packed.

    Args:
        layer (torch.nn.Module): The layer.
    """
    if isinstance(layer, QuantMessagePassing):
        choice = kernel_of(layer)
        reason = choice.reason or why_not_now(layer)
        return (_IN_FLOAT, reason) if reason else (_RUNS_AS[choice.kernel], "")
    if isinstance(layer, QuantLinearLayer):
        reason = why_no_product(layer)
        return (_IN_FLOAT, reason) if reason else ("packed product", "")
    if facts_of(layer).forward.computes == "lookup":
        return "packed lookup", ""
    return _IN_FLOAT, "only its weights are quantized"


def _slow(layer: Any, reason: str) -> str:
    """What an operation without a kernel costs, where that is known beforehand."""
    if reason or not isinstance(layer, QuantMessagePassing):
        return ""
    choice, state = kernel_of(layer), state_of(layer)
    if choice.reduce not in ("max", "min"):
        return ""
    sources: Any = state[state.source_keys[choice.source]]
    if all(q.config.granularity != "node" for q in sources):
        return ""
    return (
        f"slow {choice.reduce}: its source rows have a range each, whose codes do not compare; "
        f"granularity 'tensor' would"
    )
