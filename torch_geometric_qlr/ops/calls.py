"""Calls of the ops that raise the errors of this package.

An exception of Python cannot pass through torch's C interface, so what a kernel's companion raises
is kept here, and its words travel on as a :class:`RuntimeError`, like the errors of torch's own
ops. :func:`call` raises the exception itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from torch_geometric_qlr.ops.backend import asking_kernels

__all__ = ["call", "keep"]


class _Kept(threading.local):
    error: BaseException | None = None
    words: str = ""


_KEPT = _Kept()


def keep(error: BaseException) -> str:
    """Keeps an exception for :func:`call`. Returns the words that stand for it until then."""
    _KEPT.error, _KEPT.words = error, str(error) or type(error).__name__
    return _KEPT.words


def _take(words: str) -> BaseException | None:
    """The exception that these words stand for."""
    error, kept = _KEPT.error, _KEPT.words
    _KEPT.error = None  # with it go the tensors of the frames it came through
    return error if words == kept else None


def call(op: Callable[..., Any], *args: Any, **options: Any) -> Any:
    r"""Calls an op of this package. It costs nothing where nothing is wrong.

    Args:
        op (callable): One of ``torch.ops.qlr``.
        *args, **options: What it takes.

    Raises:
        InputError: Or another error of this package, where the op alone raises
            :class:`RuntimeError` with the same words.

    Example:
        >>> codes = torch.tensor([[7]], dtype=torch.uint8)
        >>> try:
        ...     call(torch.ops.qlr.pack, codes, 2)
        ... except ValueError as error:
        ...     print(type(error).__name__)
        InputError
    """
    try:
        # Only Python sees tangents, which go on under torch.no_grad().
        if forward_ad._current_level >= 0 and not torch.compiler.is_compiling():
            with asking_kernels():
                return op(*args, **options)
        return op(*args, **options)
    except RuntimeError as error:
        kept = _take(str(error))
        if kept is None:
            raise
        raise kept from None
