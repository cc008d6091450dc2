"""What the convolutions of PyG do to their edges in every call."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch_geometric.utils import add_self_loops, remove_self_loops

from torch_geometric_qlr.layers.layer_spec import EdgePreparation
from torch_geometric_qlr.sparse import gcn_norm

__all__ = [
    "ATTENTION_LOOPS",
    "GCN_ALWAYS",
    "GCN_NORM",
    "GCN_NORM_WITHOUT_LOOPS",
    "PLAIN_LOOPS",
]


def _gcn(layer: Any, arguments: dict[str, Any], edges: Any, weight: Any) -> Any:
    x, improved = arguments["x"], getattr(layer, "improved", False)
    options = {"improved": improved, "add_self_loops": layer.add_self_loops, "flow": layer.flow}
    return gcn_norm(edges, weight, x.size(layer.node_dim), dtype=x.dtype, **options)


def _gcn_without_loops(layer: Any, arguments: dict[str, Any], edges: Any, weight: Any) -> Any:
    x = arguments["x"]
    options = {"add_self_loops": False, "flow": layer.flow}
    return gcn_norm(edges, weight, x.size(layer.node_dim), dtype=x.dtype, **options)


def _attention_loops(layer: Any, arguments: dict[str, Any], edges: Any, attr: Any) -> Any:
    x, size = arguments["x"], arguments.get("size")
    nodes = [v.size(0) for v in (x if isinstance(x, (tuple, list)) else (x,)) if v is not None]
    edges, attr = remove_self_loops(edges, attr)
    num_nodes = min(nodes) if size is None else min(size)
    return add_self_loops(edges, attr, fill_value=layer.fill_value, num_nodes=num_nodes)


def _plain_loops(layer: Any, arguments: dict[str, Any], edges: Any, attr: Any) -> Any:
    edges, _ = remove_self_loops(edges)
    return add_self_loops(edges, num_nodes=arguments["x"].size(layer.node_dim))[0]


#: Symmetric normalisation, with self loops if the layer adds them.
GCN_NORM = EdgePreparation(
    prepare=_gcn,
    flag="normalize",
    extra="edge_weight",
    options=("improved", "add_self_loops", "flow"),
)
#: The same in a layer that cannot be told not to.
GCN_ALWAYS = dataclasses.replace(GCN_NORM, flag="")
#: Symmetric normalisation in a layer that never adds self loops.
GCN_NORM_WITHOUT_LOOPS = EdgePreparation(
    prepare=_gcn_without_loops, flag="normalize", extra="edge_weight", options=("flow",)
)
#: One self loop for each node, with a value for its edge features.
ATTENTION_LOOPS = EdgePreparation(
    prepare=_attention_loops,
    flag="add_self_loops",
    extra="edge_attr",
    options=("fill_value",),
    takes_pairs=True,
)
#: One self loop for each node.
PLAIN_LOOPS = EdgePreparation(prepare=_plain_loops, flag="add_self_loops")
