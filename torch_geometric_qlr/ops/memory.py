"""Memory for large results: on huge pages where the system has them, and used again.

A gather reads rows at random, and with pages of 4 KiB most of those reads miss the TLB as well as
the cache. An allocator that recycles small pages cannot be asked for huge ones, so results of more
than a few megabytes get mappings of their own; and because the kernel clears every fresh page, a
few mappings are kept for the next result of about the same size, as torch does on a GPU.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["empty", "release_memory"]

_HUGE_PAGE = 1 << 21
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux
#: Smaller results come from torch: they fit the caches and what their TLB covers.
_SMALLEST = 2 * _HUGE_PAGE
#: What may lie idle between results, in bytes.
_MAX_IDLE = 256 << 20


class _Pool:
    """Mappings that no tensor uses any more, the oldest first."""

    def __init__(self) -> None:
        self._idle: list[mmap.mmap] = []
        # A mapping comes back whenever its last tensor dies, also while another is handed out.
        self._lock = threading.RLock()

    def take(self, size: int) -> mmap.mmap:
        with self._lock:
            # Much more than is needed would leave nothing for the result it came from.
            fits = [m for m in self._idle if size <= len(m) <= 2 * size]
            if fits:
                best = min(fits, key=len)
                self._idle = [m for m in self._idle if m is not best]
                return best
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        assert _ADVICE is not None
        block.madvise(_ADVICE)
        return block

    def give_back(self, block: mmap.mmap) -> None:
        with self._lock:
            self._idle.append(block)
            while sum(map(len, self._idle)) > _MAX_IDLE:
                del self._idle[0]

    def clear(self) -> None:
        with self._lock:
            self._idle.clear()


_POOL = _Pool()


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    r"""Like :func:`torch.empty` on the CPU, for results that are large or gathered from.

    Args:
        shape (tuple): Sizes.
        dtype (torch.dtype): Type of the elements.

    Example:
        >>> empty((3, 5), torch.uint8).shape
        torch.Size([3, 5])
    """
    numel = math.prod(shape)
    size = numel * dtype.itemsize
    if _ADVICE is None or size < _SMALLEST:
        return torch.empty(tuple(shape), dtype=dtype)
    # One more page, to begin on a boundary: only whole huge pages are backed by one.
    block = _POOL.take((size + _HUGE_PAGE - 1) // _HUGE_PAGE * _HUGE_PAGE + _HUGE_PAGE)
    buffer = (ctypes.c_uint8 * len(block)).from_buffer(block)
    # The tensor keeps the buffer alive; when it goes, the mapping is free again.
    weakref.finalize(buffer, _POOL.give_back, block).atexit = False
    skip = -ctypes.addressof(buffer) % _HUGE_PAGE
    return torch.frombuffer(buffer, dtype=dtype, count=numel, offset=skip).view(tuple(shape))


def release_memory() -> None:
    r"""Gives the memory that is kept for coming results back to the system.

    Example:
        >>> release_memory()
    """
    _POOL.clear()
