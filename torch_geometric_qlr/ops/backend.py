"""What a back end is: a folder of `ops/` whose `backend.py` has a ``BACKEND``."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.schemas import Signature

__all__ = ["Backend", "Kernel", "NoKernel"]

#: Computes an op from its arguments, which are checked. It raises :class:`NoKernel` for a
#: combination that it does not take, and :class:`Refused` for what is wrong with values.
Kernel = Callable[[Arguments], Any]


class NoKernel(Exception):
    """A kernel does not take this combination; the definition computes instead. Its text
    says which, in words that go on after "no kernel for"."""


class Backend(ABC):
    r"""Kernels for some devices.

    Six of them carry all ops: ``quantize_pack``, ``unpack``, ``packed_spmm``, ``packed_extremum``,
    ``packed_attention`` and ``packed_linear``. The others are composed of these, or are plain torch
    (`definitions/`); a back end that is faster with one of them as a whole supplies it too.

    Importing the module of a back end must not import what it needs: it may be missing.
    """

    #: What :func:`~torch_geometric_qlr.ops.use_backend` calls it: the name of its folder.
    name: str
    #: More names of it, each of which narrows down what computes, from the plainest to the best.
    variants: tuple[str, ...] = ()
    #: Whether they are in torch's dispatcher, which calls them without Python. Such kernels find
    #: out themselves what is wrong with arguments, and those here only hand a call over to them.
    called_by_torch = False

    @abstractmethod
    def missing(self, name: str) -> str:
        """Why it cannot be used here under one of its names, and the remedy; empty if it can."""

    @abstractmethod
    def answers_on(self, device_type: str) -> bool:
        """Whether its kernels take tensors of devices like ``"cuda"``."""

    @property
    @abstractmethod
    def kernels(self) -> Mapping[str, Kernel]:
        """By the names of their ops. Asked for only if nothing is missing."""

    def is_default_on(self, device_type: str) -> bool:
        """Whether it computes there without being asked for by name."""
        return False

    def register(self, ops: Sequence[Signature]) -> None:
        """Is called once, when all ops are there, by a back end that torch calls directly."""
        return None

    def asked_first(self) -> contextlib.AbstractContextManager[None]:
        """Inside, kernels that torch calls directly ask first who shall compute."""
        return contextlib.nullcontext()

    def facts(self) -> dict[str, Any]:
        """What :func:`~torch_geometric_qlr.ops.backend_info` says of it."""
        return {}
