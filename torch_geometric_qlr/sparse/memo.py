"""Remembered graphs for layers that make their edges anew in every call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from torch_geometric_qlr.sparse.adjacency import is_matrix
from torch_geometric_qlr.sparse.cache import AdjacencyCache, Entry, Fingerprint, can_remember
from torch_geometric_qlr.sparse.csr import CSRGraph

__all__ = ["EdgeMemo", "anchor_in"]

T = TypeVar("T")

#: How many different edges one call of a model is expected to make.
_MAX_VARIANTS = 16


class EdgeMemo(AdjacencyCache):
    r"""An :class:`AdjacencyCache` that also knows edges by their values.

    A layer may compute its edges in every call (another normalisation, one relation after the
    other, edges turned around), so that they are never the same object twice. Sorting them takes
    many times longer than to see that they are equal to those of the call before.
    """

    def get_by_values(
        self, edges: Tensor, key: Hashable, build: Callable[[], T], anchor: Callable[[], Any]
    ) -> T:
        r"""The result for edges that are the same object, or have the same values, as others
        before.

        Args:
            edges (torch.Tensor): Edges ``[2, E]``.
            key (Hashable): What was computed, with all its options.
            build (callable): Computes it from the edges.
            anchor (callable): Finds the object whose life limits what is remembered of edges that
                do not live on themselves.

        Example:
            >>> memo, graph = EdgeMemo(), torch.tensor([[0, 1], [1, 0]])
            >>> build = lambda: print("computed") or 1
            >>> memo.get_by_values(graph.flip(0), "degree", build, anchor=lambda: graph)
            computed
            1
            >>> memo.get_by_values(graph.flip(0), "degree", build, anchor=lambda: graph)
            1
        """
        known = self.find(edges, key)
        if known is not None and known.made_from.matches([edges]) and known.is_unchanged():
            same: T = known.result
            return same
        place, owner = ("values", key, edges.dtype, tuple(edges.shape)), anchor()
        listed = self.find(owner, place)
        variants: list[_Variant] = [] if listed is None else listed.result
        for variant in variants:
            if variant.has_values_of(edges):
                equal: T = variant.entry.result
                if variant.was_met_as(edges) and can_remember([edges]):
                    self.keep(edges, key, Entry(equal, Fingerprint([edges])))
                return equal
        with torch.inference_mode(False), torch.no_grad():
            result = build()
        new = _Variant(edges, result)
        alive = [v for v in variants if v.is_unchanged()][-_MAX_VARIANTS + 1 :]
        self.keep(owner, place, _Listed([*alive, new]))
        if can_remember([edges]):
            self.keep(edges, key, Entry(result, Fingerprint([edges])))
        return result

    def weighted(self, graph: CSRGraph, weight: Tensor) -> CSRGraph:
        r"""A graph with weights, brought into its order once.

        Args:
            graph (CSRGraph): The graph.
            weight (torch.Tensor): Weights ``[E]`` in the order of the original edges.
        """
        if weight.requires_grad or torch.compiler.is_compiling():
            return graph.with_weight(weight)
        return self.get(graph, "weighted", lambda: graph.with_weight(weight.detach()), weight)


class _Variant:
    """Edges as they were, and what was computed from them."""

    def __init__(self, edges: Tensor, result: Any) -> None:
        # The memory is shared with the caller's tensor, whose counter tells of changes; that of an
        # inference tensor would not.
        self.edges = edges.detach() if can_remember([edges]) else edges.detach().clone()
        if self.edges.is_inference():
            with torch.inference_mode(False):
                self.edges = self.edges.clone()
        self.version = self.edges._version
        self._met: Callable[[], Any] = lambda: None
        self.entry = Entry(result, Fingerprint([]))

    def is_unchanged(self) -> bool:
        return self.edges._version == self.version and self.entry.is_unchanged()

    def has_values_of(self, edges: Tensor) -> bool:
        same_place = edges.device == self.edges.device
        return same_place and self.is_unchanged() and torch.equal(edges, self.edges)

    def was_met_as(self, edges: Tensor) -> bool:
        """Whether it was the same object that had these values the last time, which then is no
        stranger of one call."""
        again = self._met() is edges
        self._met = weakref.ref(edges)
        return again


class _Listed(Entry):
    """Several variants as one entry."""

    __slots__ = ()

    def __init__(self, variants: list[_Variant]) -> None:
        super().__init__(None, Fingerprint([]))
        self.result = variants
        self.nbytes = sum(v.entry.nbytes + v.edges.nbytes for v in variants)

    def is_unchanged(self) -> bool:
        return True


def anchor_in(value: Any) -> Any:
    r"""The first adjacency in what a model was called with, :obj:`None` if there is none.

    Args:
        value (Any): Arguments, in any nesting.

    Example:
        >>> edge_index = torch.tensor([[0, 1], [1, 0]])
        >>> anchor_in(([torch.rand(2, 3)], {"edges": edge_index})) is edge_index
        True
    """
    if isinstance(value, Tensor):
        is_edges = value.dim() == 2 and value.size(0) == 2 and not value.is_floating_point()
        return value if is_edges or is_matrix(value) else None
    if is_matrix(value):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return next((a for a in map(anchor_in, value) if a is not None), None)
    for name in ("edge_index", "adj_t"):
        found = getattr(value, name, None)
        if found is not None and not callable(found):
            return anchor_in(found)
    return None
