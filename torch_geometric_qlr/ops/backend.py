"""Which implementation answers on a CPU: the reference, or the kernels at some instruction set."""

from __future__ import annotations

import contextlib
import contextvars
import os
import warnings
from collections.abc import Iterator
from typing import Any

from torch_geometric_qlr.errors import BackendError, QLRWarning
from torch_geometric_qlr.ops.library import library_path, load_library

__all__ = [
    "BACKENDS",
    "asking_kernels",
    "backend_info",
    "computes_packed",
    "cpu_isa",
    "use_backend",
]

# The numbers of `QlrIsa` in csrc/qlr.h.
_ISA = {"portable": 0, "avx2": 1, "avx512": 2, "amx": 3}

BACKENDS = ("auto", "cpu", "reference", *_ISA)

_ENVIRONMENT = "QLR_BACKEND"
_REMEDY = "Reinstall with a C++17 compiler at hand, or choose backend 'reference'."
#: What `use_backend` says, in this thread or task alone.
_CHOSEN: contextvars.ContextVar[str] = contextvars.ContextVar("qlr_backend", default="")
_warned = False


def _wanted() -> str:
    name = _CHOSEN.get() or os.environ.get(_ENVIRONMENT, "auto") or "auto"
    if name not in BACKENDS:
        raise BackendError(f"{_ENVIRONMENT}={name!r} is unknown, choose from {', '.join(BACKENDS)}")
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    r"""Chooses who computes packed operations on a CPU, inside a :obj:`with` block.

    The choice holds in this thread, or asynchronous task, alone; the environment variable
    :obj:`QLR_BACKEND` chooses for a whole process.

    Args:
        name (str): :obj:`"auto"` (the kernels if they were built, else the reference),
            :obj:`"cpu"` (the kernels or an error), :obj:`"reference"`, or an instruction set:
            :obj:`"portable"`, :obj:`"avx2"`, :obj:`"avx512"`, :obj:`"amx"`.

    Raises:
        BackendError: If the name is unknown, or the kernels were asked for and are not there.

    Example:
        >>> with use_backend("reference"):
        ...     backend_info()["selected"]
        'reference'
    """
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r} is unknown, choose from {', '.join(BACKENDS)}")
    _require(name)
    before = _CHOSEN.set(name)
    try:
        with asking_kernels():
            yield
    finally:
        _CHOSEN.reset(before)


@contextlib.contextmanager
def asking_kernels() -> Iterator[None]:
    """Inside, every kernel of any thread asks Python before it answers: who shall compute, and
    whether somebody wants a gradient. Otherwise none of them does."""
    library, _ = load_library()
    if library is None:
        yield
        return
    library.qlr_count_choices(1)
    try:
        yield
    finally:
        library.qlr_count_choices(-1)


def _require(name: str) -> None:
    """Raises if kernels asked for by name are missing."""
    if name in ("auto", "reference"):
        return
    library, reason = load_library()
    if library is None:
        raise BackendError(f"backend {name!r}: {reason}. {_REMEDY}")
    if name in _ISA and _ISA[name] > library.qlr_best_isa():
        raise BackendError(f"backend {name!r}: this processor or build has no such code")


def cpu_isa() -> int | None:
    """The instruction set the kernels shall use, :obj:`None` for the reference."""
    global _warned
    name = _wanted()
    if name == "reference":
        return None
    _require(name)
    library, reason = load_library()
    if library is None:
        if not _warned:
            _warned = True
            warnings.warn(
                f"torch_geometric_qlr computes with its slow reference back end: {reason}. "
                f"{_REMEDY}",
                QLRWarning,
                stacklevel=3,
            )
        return None
    return _ISA.get(name, max(_ISA.values()))


def computes_packed() -> bool:
    r"""Whether packed operations on a CPU are worth asking for: there are kernels, or the reference
    was chosen by name.

    Example:
        >>> with use_backend("reference"):
        ...     computes_packed()
        True
    """
    return _wanted() == "reference" or load_library()[0] is not None


def backend_info() -> dict[str, Any]:
    r"""What computes packed operations on this machine's CPU, and why.

    Returns:
        dict: :obj:`selected` (:obj:`"reference"` or an instruction set), :obj:`available`
        (all that :func:`use_backend` takes here), :obj:`library` (its file, or :obj:`None`),
        :obj:`reason` (why there is no library), :obj:`vnni`, :obj:`openmp`.

    Example:
        >>> backend_info()["available"][0]
        'reference'
    """
    library, reason = load_library()
    wanted = _wanted()
    if library is None:
        return {
            "selected": "reference",
            "available": ["reference"],
            "library": None,
            "reason": reason,
            "vnni": False,
            "openmp": False,
        }
    names = [name for name, isa in _ISA.items() if isa <= library.qlr_best_isa()]
    selected = wanted if wanted in ("reference", *names) else names[-1]
    return {
        "selected": selected,
        "available": ["reference", *names],
        "library": str(library_path()),
        "reason": "",
        "vnni": bool(library.qlr_has_vnni()),
        "openmp": bool(library.qlr_has_openmp()),
    }
