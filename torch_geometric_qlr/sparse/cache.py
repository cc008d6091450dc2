"""What was computed from an adjacency, remembered as long as that object lives unchanged."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from torch_geometric import EdgeIndex
from torch_geometric.typing import SparseTensor

__all__ = ["AdjacencyCache"]

T = TypeVar("T")


class AdjacencyCache:
    r"""Remembers results per adjacency *object*, without keeping the object alive.

    A result is used again only if the object and the tensors inside it are the same and none was
    changed in place since (their version counters tell). Writing through ``.data``, through a NumPy
    view, or through the tensor that a ``torch.sparse_csr_tensor`` was built from escapes the
    counters, as it escapes autograd's own check. Nothing is remembered for tensors that require
    grad, for inference tensors (they have no counter) and under ``torch.compile``.

    Example:
        >>> cache, edge_index = AdjacencyCache(), torch.tensor([[0, 1], [1, 0]])
        >>> cache.get(edge_index, "degree", lambda: print("computed") or 1)
        computed
        1
        >>> cache.get(edge_index, "degree", lambda: print("computed") or 1)
        1
        >>> _ = edge_index.add_(1)
        >>> cache.get(edge_index, "degree", lambda: print("computed") or 1)
        computed
        1
    """

    def __init__(self) -> None:
        self._entries: Any = WeakIdKeyDictionary()

    def get(self, adj: Any, key: Hashable, build: Callable[[], T], *depends: Tensor | None) -> T:
        r"""The result remembered under ``key``, or that of ``build()``.

        The result must not refer to ``adj``, or it would keep it alive.

        Args:
            adj (torch.Tensor or EdgeIndex or SparseTensor): The adjacency it was computed from.
            key (Hashable): What was computed, with all its options.
            build (Callable): Computes it.
            *depends (torch.Tensor, optional): Further tensors it was computed from (edge weights).
        """
        if torch.compiler.is_compiling():
            return build()
        parts = [part for part in (*_tensors(adj), *depends) if part is not None]
        if any(part.requires_grad or part.is_inference() for part in parts):
            return build()
        known = self._entries.get(adj)
        if known is not None and key in known and known[key][0].matches(parts):
            return known[key][1]
        # What is made in inference mode could not serve a later training step.
        with torch.inference_mode(False), torch.no_grad():
            result = build()
        self._entries.setdefault(adj, {})[key] = (_Fingerprint(parts), result)
        return result

    def clear(self) -> None:
        r"""Forgets everything."""
        self._entries = WeakIdKeyDictionary()

    def __len__(self) -> int:
        return len(self._entries)


class _Fingerprint:
    """The identity of some tensors and the state they were in."""

    def __init__(self, parts: list[Tensor]) -> None:
        # An identifier alone could be taken over by a later tensor, hence weak references.
        self._refs = [weakref.ref(part) for part in parts]
        self._versions = [part._version for part in parts]

    def matches(self, parts: list[Tensor]) -> bool:
        return (
            len(parts) == len(self._refs)
            and all(ref() is part for ref, part in zip(self._refs, parts, strict=True))
            and self._versions == [part._version for part in parts]
        )


def _tensors(adj: Any) -> list[Tensor | None]:
    """The tensors whose identity and version stand for an adjacency's."""
    if isinstance(adj, SparseTensor):
        return [adj.storage.row(), adj.storage.col(), adj.storage.value()]
    if isinstance(adj, EdgeIndex):
        return [adj, adj._data]  # the wrapper does not see what happens through ``as_tensor()``
    return [adj]
