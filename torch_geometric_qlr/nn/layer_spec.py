"""What is known about one layer class: its family, sources and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["REWRITTEN", "Family", "LayerSpec"]

Family = Literal["copy", "attention", "edge", "linear", "weights", "container", "float"]

#: Families whose layers become quantized objects.
REWRITTEN: tuple[Family, ...] = ("copy", "attention", "edge", "linear", "weights")


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    r"""How a layer class is quantized.

    Args:
        family (str): :obj:`"copy"` (sends source features, maybe weighted), :obj:`"attention"` (the
            same with coefficients computed from the data), :obj:`"edge"` (a message per edge),
            :obj:`"linear"`, :obj:`"weights"` (parameters only), :obj:`"container"` (its children do
            the work) or :obj:`"float"` (stays as it is, for the reason in :obj:`note`).
        sources (tuple): Arguments of :obj:`propagate` that hold source features.
        logit_sources (tuple): Those that only enter attention logits, kept at 8 bits or more.
        weights (dict): Parameters outside of Linears that multiply features, with the dimension of
            their output channels, 0 or -1.
        logit_weights (tuple): Attention vectors, kept at 8 bits or more.
        hops (callable): Number of :obj:`propagate` calls in a forward, from the layer.
        hop_kinds (callable): How many different things those calls propagate in turn, from the
            layer: quantizers that hops share are shared by every so many calls.
        propagates_input (bool): Whether the layer propagates before it transforms.
        rough (callable): Why the propagation of a layer cannot be smoothed, from the layer;
            :obj:`""` if it is a linear operator on the features, with normalised weights.
        note (str): A reason or remark, shown by :func:`torch_geometric_qlr.plan`.
    """

    family: Family
    sources: tuple[str, ...] = ()
    logit_sources: tuple[str, ...] = ()
    weights: Mapping[str, int] = field(default_factory=dict)
    logit_weights: tuple[str, ...] = ()
    hops: Callable[[Any], int] = lambda layer: 1
    hop_kinds: Callable[[Any], int] = lambda layer: 1
    propagates_input: bool = False
    rough: Callable[[Any], str] = lambda layer: "its operator is not known to be normalised"
    note: str = ""

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Parameters read through a quantizer."""
        return (*self.weights, *self.logit_weights)
