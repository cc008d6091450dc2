"""Weights of edges at their own width: integers for kernels, else the numbers these stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.typing import SparseTensor

from torch_geometric_qlr.layers.pyg import fuses, node_counts
from torch_geometric_qlr.layers.state import state_of
from torch_geometric_qlr.quantizers import EdgeWeightQuant
from torch_geometric_qlr.quantizers.torch_state import follows_tangents, is_transformed
from torch_geometric_qlr.sparse import (
    AdjacencyCache,
    CSRGraph,
    is_matrix,
    to_edge_index,
    with_values,
)
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["Terms", "coded_weights", "edge_weight_bits", "is_by_row", "round_weights", "terms_of"]

_CACHE = AdjacencyCache()


class Terms(NamedTuple):
    r"""What a weighted sum adds up, and multiplies the sums by.

    Args:
        sources (PackedTensor): What is gathered.
        weight (torch.Tensor, optional): What multiplies it, floats or integers, in the order of the
            graph.
        row_scale (torch.Tensor, optional): A number for each target, with integers.
    """

    sources: PackedTensor
    weight: Tensor | None
    row_scale: Tensor | None = None


def _quantizer(layer: Any) -> EdgeWeightQuant | None:
    found: Any = state_of(layer)._modules.get("edge_weight")
    return found


def edge_weight_bits(layer: Any) -> int | None:
    r"""The width of the integers that weights of edges become; :obj:`None` if they stay floats.

    Args:
        layer (torch.nn.Module): The conv.
    """
    quantizer = _quantizer(layer)
    return None if quantizer is None else quantizer.bits


def is_by_row(param: Tensor) -> bool:
    r"""Whether a scale or zero point has a number for each source.

    Args:
        param (torch.Tensor): The scale or zero point.
    """
    return param.dim() == 2 and param.size(1) == 1 and param.size(0) != 1


# For kernels ######################################################################################


def coded_weights(
    layer: Any, graph: CSRGraph, weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    r"""Weights as a kernel takes them, and what it multiplies rows by. Integers are made once for
    weights of a graph, if these are floats that need no gradient.

    Args:
        layer (torch.nn.Module): The conv.
        graph (CSRGraph): Its graph.
        weight (torch.Tensor, optional): Weights in the order of the graph.
    """
    quantizer = _quantizer(layer)
    if quantizer is None or weight is None:
        return weight, None
    key = ("codes of weights", quantizer.bits)
    build = lambda: quantizer.codes(graph.rowptr, graph.col, weight)  # noqa: E731
    return _CACHE.get(graph, key, build, weight)


def terms_of(
    layer: Any, graph: CSRGraph, weight: Tensor | None, sources: PackedTensor, *, is_part: bool
) -> Terms:
    r"""What a weighted sum of a conv adds up. A scale for each source goes into its weights before
    these are rounded.

    Args:
        layer (torch.nn.Module): The conv.
        graph (CSRGraph): Its graph.
        weight (torch.Tensor, optional): Weights in the order of the graph.
        sources (PackedTensor): What is gathered.
        is_part (bool): Whether other sources, with scales of their own, share the weights.
    """
    quantizer = _quantizer(layer)
    if quantizer is None or weight is None or not is_by_row(sources.scale):
        return Terms(sources, *coded_weights(layer, graph, weight))
    if is_part:
        codes, scale = coded_weights(layer, graph, weight)
        assert codes is not None and scale is not None
        of_edge = scale.repeat_interleave(graph.degree(), output_size=codes.numel())
        return Terms(sources, codes * of_edge)
    of_source = sources.scale  # of features that were packed once it is the same in every call
    key = ("codes of weights", quantizer.bits, "by source")
    build = lambda: quantizer.codes(graph.rowptr, graph.col, weight, of_source)  # noqa: E731
    codes, scale = _CACHE.get(graph, key, build, weight, of_source)
    data, one = sources.data, torch.ones((), device=scale.device)
    unscaled = PackedTensor.unchecked(data, sources.num_cols, sources.bits, one, sources.zero_point)
    return Terms(unscaled, codes, scale)


# For floating point ###############################################################################


def round_weights(
    layer: Any, adj: Any, size: Any, kwargs: dict[str, Any], source: str, scale: Tensor
) -> Any:
    r"""Rounds the weights of edges wherever PyG reads them, with gradients straight through.

    Args:
        layer (torch.nn.Module): The conv.
        adj (torch.Tensor or EdgeIndex or SparseTensor): The edges.
        size (tuple, optional): The sizes of both sets of nodes.
        kwargs (dict): The other arguments of :meth:`propagate`, changed in place.
        source (str): The argument that is gathered, which has been rounded.
        scale (torch.Tensor): Its scale.

    Returns:
        Any: The edges; a matrix with other values, if these are what is read.
    """
    value = kwargs[source]
    x = value[0] if isinstance(value, (tuple, list)) else value
    by_row = x.dim() == 2 and is_by_row(scale)
    call = _Call(layer, adj, size, kwargs, scale.detach().reshape(-1) if by_row else None)
    name = state_of(layer).edge_weight
    weight = kwargs.get(name)
    if is_matrix(adj) and (fuses(layer, adj) or (weight is None and name == "edge_weight")):
        return call.rounded_matrix()
    if isinstance(weight, Tensor) and _is_one_per_edge(weight, adj, x):
        kwargs[name] = call.rounded(weight)
    return adj


def _is_one_per_edge(weight: Tensor, adj: Any, source: Tensor) -> bool:
    """Whether there is one number for each edge, and not one for each of several heads; of what
    does not fit PyG says what is wrong."""
    if weight.dim() > 1 and source.dim() > 2:
        return False
    is_edges = isinstance(adj, Tensor) and adj.dim() == 2 and adj.size(0) == 2
    return is_matrix(adj) or (is_edges and weight.numel() == adj.size(1))


class _Call(NamedTuple):
    """One call of `propagate`; `source_scale` has a number for each source, if they differ."""

    layer: Any
    adj: Any
    size: Any
    kwargs: dict[str, Any]
    source_scale: Tensor | None

    def rounded(self, weight: Tensor) -> Tensor:
        """Weights in the order of the edges, rounded."""

        def build() -> Tensor:
            return self._rounded(to_edge_index(self.adj)[0], weight)

        return self._remembered("weights", build, weight)

    def rounded_matrix(self) -> Any:
        """The matrix with rounded values, if it has any."""
        found = self._remembered("values", self._rounded_matrix)
        return self.adj if found is None else found

    def _remembered(self, what: str, build: Callable[[], Any], *depends: Tensor) -> Any:
        # Numbers that a transform follows are those of one call.
        if self.source_scale is not None or is_transformed() or follows_tangents():
            return build()
        key = (what, edge_weight_bits(self.layer), self._num_targets(), self.layer.flow)
        return _CACHE.get(self.adj, key, build, *depends)

    def _num_targets(self) -> int:
        return node_counts(self.layer, self.adj, self.size, self.kwargs)[1]

    def _rounded(self, edges: Tensor, weight: Tensor) -> Tensor:
        quantizer = _quantizer(self.layer)
        assert quantizer is not None
        if weight.numel() != edges.size(1):
            return weight  # PyG says what is wrong
        turned = self.layer.flow == "target_to_source" and not is_matrix(self.adj)
        origin, target = edges.flip(0) if turned else edges
        scale = None if self.source_scale is None else self.source_scale[origin]
        rounded: Tensor = quantizer(weight, target, self._num_targets(), scale)
        return rounded

    def _rounded_matrix(self) -> Any:
        adj = self.adj
        if isinstance(adj, SparseTensor) and not adj.has_value():
            return None  # and no list of its edges is made
        if isinstance(adj, Tensor) and adj.layout == torch.sparse_coo and adj.requires_grad:
            adj = adj.coalesce()  # or no gradient would reach its values
        edges, values = to_edge_index(adj)
        if values is None or values.dim() != 1:
            return None  # what is remembered must not keep the matrix alive
        return with_values(adj, self._rounded(edges, values))
