"""What a layer can become: the mixin that quantizes it, and the one that computes on its codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch_geometric_qlr.nn.layer import QuantLayer
from torch_geometric_qlr.nn.linear import (
    QuantDictLinearLayer,
    QuantLinearLayer,
    QuantWeightLayer,
)
from torch_geometric_qlr.nn.message_passing import QuantMessagePassing
from torch_geometric_qlr.nn.packed.layer import (
    PackedLayer,
    PackedLinearLayer,
    PackedMessagePassing,
    PackedWeightLayer,
)

__all__ = ["KINDS", "Kind", "kind_of"]


class Kind(NamedTuple):
    r"""The classes of one kind of layer.

    Args:
        quantized (type): Mixed into the float class for training.
        packed (type, optional): Mixed into it by a conversion; :obj:`None` if the quantized layer
            has nothing of its own to pack.
    """

    quantized: type[QuantLayer]
    packed: type[PackedLayer] | None


#: By the name under which recipes and files know them.
KINDS: Mapping[str, Kind] = {
    "messages": Kind(QuantMessagePassing, PackedMessagePassing),
    "linear": Kind(QuantLinearLayer, PackedLinearLayer),
    "weights": Kind(QuantWeightLayer, PackedWeightLayer),
    "dict": Kind(QuantDictLinearLayer, None),
}


def kind_of(layer: QuantLayer) -> str:
    r"""The kind of a quantized or converted layer.

    Args:
        layer (QuantLayer): The layer.
    """
    return next(name for name, kind in KINDS.items() if isinstance(layer, kind.quantized))
