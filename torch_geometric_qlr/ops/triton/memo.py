"""What is made of a tensor once, and remembered while it lives unchanged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["Memo"]

T = TypeVar("T")


class _Made(NamedTuple):
    """A result, the state of the tensor that it was made of, and the stream that it was made on."""

    result: Any
    version: int
    stream: Any


class Memo(Generic[T]):
    r"""Remembers by the identity of a tensor and the state it was in.

    A change in place is noticed; with the tensor goes what was made of it. Nothing is remembered of
    inference tensors, whose changes nobody counts, nor of what a CUDA graph captures, which is
    there only when the graph runs. Any stream may read what was made on another.

    Args:
        most (int): Of how many tensors something is remembered.

    Example:
        >>> memo, x = Memo(most=8), torch.ones(2)
        >>> make = lambda: print("made") or 1
        >>> memo.get(x, "key", make), memo.get(x, "key", make)
        made
        (1, 1)
        >>> _ = x.add_(1)
        >>> memo.get(x, "key", make)
        made
        1
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._made: Any = WeakIdKeyDictionary()
        self._lock = threading.Lock()

    def get(self, tensor: Tensor, key: Hashable, make: Callable[[], T]) -> T:
        r"""What was made of a tensor. To make it waits for the device.

        Args:
            tensor (torch.Tensor): The tensor.
            key (Hashable): All else that it was made of.
            make (callable): Makes it, of tensors or tuples of them. It must not refer to the
                tensor.
        """
        if tensor.is_inference():
            return make()
        with self._lock:
            known: _Made | None = self._made.get(tensor, {}).get(key)
        if known is not None and known.version == tensor._version:
            _read_here(known)
            found: T = known.result
            return found
        if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
            return make()
        version, stream = tensor._version, None
        # What is made in inference mode could not serve a later call outside of it.
        with torch.inference_mode(False), torch.no_grad():
            made = make()
        if tensor.is_cuda:
            stream = torch.cuda.current_stream(tensor.device)
            stream.synchronize()
        self._keep(tensor, key, _Made(made, version, stream))
        return made

    def _keep(self, tensor: Tensor, key: Hashable, made: _Made) -> None:
        with self._lock:
            if tensor not in self._made and len(self._made) >= self._most:
                self._made.pop(next(iter(self._made), None), None)
            self._made.setdefault(tensor, {})[key] = made

    def __len__(self) -> int:
        return len(self._made)


def _read_here(made: _Made) -> None:
    """Keeps memory from being used again, should its tensor go, before this stream has read it."""
    if made.stream is None:
        return
    stream = torch.cuda.current_stream(made.stream.device)
    if stream != made.stream:
        for part in _tensors(made.result):
            part.record_stream(stream)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
