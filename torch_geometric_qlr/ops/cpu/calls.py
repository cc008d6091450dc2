"""What ``torch.ops.qlr.<op>`` is: an op whose errors are those of this package.

An exception of Python cannot pass through torch's C interface, so what a kernel's companion raises
is kept here, and its words travel on as a :class:`RuntimeError`. The op, called from Python, raises
the exception itself; its overloads (``.default``), and compiled and exported programs, raise the
:class:`RuntimeError`, as torch's own ops do.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch._ops import OpOverloadPacket
from torch.autograd import forward_ad

from torch_geometric_qlr.ops.cpu.library import asking_kernels

__all__ = ["Packet", "keep"]


class _Kept(threading.local):
    error: BaseException | None = None
    words: str = ""


_KEPT = _Kept()


def keep(error: BaseException) -> str:
    """Keeps an exception for :class:`Packet`. Returns the words that stand for it until then."""
    _KEPT.error, _KEPT.words = error, str(error) or type(error).__name__
    return _KEPT.words


def _take(words: str) -> BaseException | None:
    """The exception that these words stand for."""
    error, kept = _KEPT.error, _KEPT.words
    _KEPT.error = None  # with it go the tensors of the frames it came through
    return error if words == kept else None


class Packet(OpOverloadPacket):
    r"""An op of this package. To torch it is like any other.

    Example:
        >>> codes = torch.tensor([[7]], dtype=torch.uint8)
        >>> try:
        ...     torch.ops.qlr.pack(codes, 2)
        ... except ValueError as error:
        ...     print(type(error).__name__)
        InputError
    """

    @classmethod
    def of(cls, name: str) -> None:
        """Makes ``torch.ops.qlr.<name>`` one."""
        getattr(torch.ops.qlr, name).__class__ = cls

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        try:
            if forward_ad._current_level >= 0:
                # Only Python sees tangents, which go on under torch.no_grad().
                with asking_kernels():
                    return self._op(*args, **kwargs)
            return self._op(*args, **kwargs)
        except RuntimeError as error:
            kept = _take(str(error))
            if kept is None:
                raise
            raise kept from None
