"""Which convs multiply their sources by weights of the edges."""

from __future__ import annotations

from typing import Any

from torch_geometric_qlr.codes.kernel_choice import summed_weight
from torch_geometric_qlr.layers.state import unwrapped_class
from torch_geometric_qlr.nn.registry import class_facts, find_spec

__all__ = ["edge_weight_argument"]


def edge_weight_argument(layer: Any, sources: tuple[str, ...]) -> str:
    r"""The argument of :obj:`propagate` with weights of edges that can be quantized; empty if there
    is none.

    Its messages are copies of a source times that weight, which are summed up or averaged.
    Coefficients that a layer computes from its features are none.

    Args:
        layer (torch.nn.Module): A conv, quantized or not.
        sources (tuple): Arguments of :obj:`propagate` that are quantized per node.

    Example:
        >>> from torch_geometric.nn import ChebConv, GATConv
        >>> edge_weight_argument(ChebConv(4, 2, K=2), ("x",))
        'norm'
        >>> edge_weight_argument(GATConv(4, 2), ("x",))
        ''
    """
    spec = find_spec(layer)
    if spec is None or spec.family != "copy":
        return ""
    cls = unwrapped_class(layer)
    return summed_weight(layer, cls, sources, class_facts(cls).message)
