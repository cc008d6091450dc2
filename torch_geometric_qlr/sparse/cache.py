"""What was computed from an adjacency, remembered as long as that object lives unchanged."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from torch_geometric import EdgeIndex
from torch_geometric.typing import SparseTensor

__all__ = ["AdjacencyCache", "Entry", "Fingerprint", "can_remember", "limit_memory", "parts_of"]

T = TypeVar("T")


class AdjacencyCache:
    r"""Remembers results per adjacency *object*, without keeping the object alive.

    A result is used again only if the object and the tensors inside it are the same, and neither
    they nor the result were changed in place since (their version counters tell). Writing through
    ``.data``, through a NumPy view, or through the tensor that a ``torch.sparse_csr_tensor`` was
    built from escapes the counters, as it escapes autograd's own check. Nothing is remembered for
    tensors that require grad, for inference tensors (they have no counter) and under
    ``torch.compile``. All caches together keep at most what :func:`limit_memory` allows.

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
        self._lock = threading.RLock()

    def get(self, adj: Any, key: Hashable, build: Callable[[], T], *depends: Tensor | None) -> T:
        r"""The result remembered under ``key``, or that of ``build()``.

        The result must not refer to ``adj``, or it would keep it alive.

        Args:
            adj (torch.Tensor or EdgeIndex or SparseTensor): The adjacency it was computed from.
            key (Hashable): What was computed, with all its options.
            build (Callable): Computes it.
            *depends (torch.Tensor, optional): Further tensors it was computed from (edge weights).
        """
        parts = [part for part in (*_tensors(adj), *depends) if part is not None]
        if torch.compiler.is_compiling() or not can_remember(parts):
            return build()
        known = self.find(adj, key)
        if known is not None and known.made_from.matches(parts) and known.is_unchanged():
            known_result: T = known.result
            return known_result
        # What is made in inference mode could not serve a later training step.
        with torch.inference_mode(False), torch.no_grad():
            result = build()
        self.keep(adj, key, Entry(result, Fingerprint(parts)))
        return result

    def find(self, owner: Any, key: Hashable) -> Entry | None:
        """What is kept for an object."""
        with self._lock:
            entry: Entry | None = self._entries.get(owner, {}).get(key)
        return entry

    def keep(self, owner: Any, key: Hashable, entry: Entry) -> None:
        """Keeps something for an object while it lives, or until memory runs short."""
        with self._lock:
            kept = self._entries.setdefault(owner, _Kept())
            kept[key] = entry
        _BUDGET.take(entry, weakref.ref(kept), key)

    def clear(self) -> None:
        r"""Forgets everything."""
        self._entries = WeakIdKeyDictionary()

    def __len__(self) -> int:
        return len(self._entries)


def can_remember(parts: list[Tensor]) -> bool:
    """Whether a change of these tensors would be noticed."""
    return not any(part.requires_grad or part.is_inference() for part in parts)


class _Kept(dict[Hashable, "Entry"]):
    """What is kept for one object, and goes with it."""

    __slots__ = ("__weakref__",)


class Entry:
    r"""One thing that is remembered.

    Args:
        result (Any): What was computed.
        made_from (Fingerprint): What it was computed from.
    """

    __slots__ = ("__weakref__", "_parts", "_versions", "made_from", "nbytes", "result")

    def __init__(self, result: Any, made_from: Fingerprint) -> None:
        self.result, self.made_from = result, made_from
        tensors = list(parts_of(result))
        self._parts = tensors if can_remember(tensors) else []
        self._versions = [part._version for part in self._parts]
        self.nbytes = sum(
            t.untyped_storage().nbytes() for t in tensors if t.layout == torch.strided
        )

    def is_unchanged(self) -> bool:
        """Whether nobody has written into the result since."""
        return self._versions == [part._version for part in self._parts]


class Fingerprint:
    """The identity of some tensors and the state they were in."""

    def __init__(self, parts: list[Tensor]) -> None:
        # An identifier alone could be taken over by a later tensor, hence weak references.
        self._refs = [weakref.ref(part) for part in parts]
        self._versions = [part._version for part in parts]

    def matches(self, parts: list[Tensor]) -> bool:
        if len(parts) != len(self._refs):
            return False
        for ref, version, part in zip(self._refs, self._versions, parts, strict=True):
            if ref() is not part or part._version != version:
                return False
        return True


def parts_of(value: Any) -> Iterator[Tensor]:
    """The tensors of a result."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, SparseTensor):
        yield from (t for t in _tensors(value) if t is not None)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from parts_of(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from parts_of(getattr(value, field.name))


def _tensors(adj: Any) -> list[Tensor | None]:
    """The tensors whose identity and version stand for an adjacency's."""
    if isinstance(adj, SparseTensor):
        # Rows that it has; to ask for them would make an index of as many numbers as edges.
        storage = adj.storage
        row = storage.row() if storage.has_row() else None
        return [row, storage.rowptr(), storage.col(), storage.value()]
    if isinstance(adj, EdgeIndex):
        return [adj, adj._data]  # the wrapper does not see what happens through ``as_tensor()``
    return [adj] if isinstance(adj, Tensor) else []


# All caches together ##############################################################################


class _Budget:
    """Counts what the caches keep, and drops the oldest where it is too much."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Weakly all of it, or else what is kept would stay when its graph goes.
        self._taken: list[tuple[weakref.ref[Entry], weakref.ref[_Kept], Hashable]] = []
        self._lock = threading.Lock()

    def take(self, entry: Entry, place: weakref.ref[_Kept], key: Hashable) -> None:
        """Counts an entry that is kept at a place, under a key."""
        with self._lock:
            self._taken.append((weakref.ref(entry), place, key))
            self._taken = [taken for taken in self._taken if taken[0]() is not None]
            sizes = [0 if (e := ref()) is None else e.nbytes for ref, _, _ in self._taken]
            total, drops = sum(sizes), 0
            while drops < len(sizes) and total > self.limit:
                total -= sizes[drops]
                drops += 1
            for ref, oldest, name in self._taken[:drops]:
                kept = oldest()
                if kept is not None and kept.get(name) is ref():
                    kept.pop(name, None)
            self._taken = self._taken[drops:]


_BUDGET = _Budget(4 << 30)


def limit_memory(nbytes: int) -> None:
    r"""Bounds what is remembered of graphs, in bytes, together for the whole process (by default
    4 GiB). Over it, the oldest is forgotten, and computed again when it is needed.

    Args:
        nbytes (int): The limit; 0 remembers nothing.

    Example:
        >>> limit_memory(4 << 30)
    """
    _BUDGET.limit = nbytes
