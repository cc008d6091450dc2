"""Who computes a call: one table of back ends and their kernels, and a choice among them."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch_geometric_qlr.errors import BackendError
from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.backend import Backend
from torch_geometric_qlr.ops.kernels import Kernels, definition_of, tell_once
from torch_geometric_qlr.ops.no_gradient import refuse_gradient

__all__ = [
    "answer",
    "answer_by_definition",
    "available_on",
    "backend_info",
    "backend_names",
    "backends",
    "computes_packed",
    "kernels_on",
    "use_backend",
    "wanted",
]

REFERENCE = "reference"
_ENVIRONMENT = "QLR_BACKEND"
#: What `use_backend` says, in this thread or task alone.
_CHOSEN: contextvars.ContextVar[str] = contextvars.ContextVar("qlr_backend", default="")


@functools.cache
def backends() -> dict[str, Backend]:
    """Every folder beside this file that is one, by the name of the folder."""
    here = Path(__file__).parent
    names = [module.name for module in pkgutil.iter_modules([str(here)]) if module.ispkg]
    found = [name for name in names if (here / name / "backend.py").exists()]
    return {
        name: importlib.import_module(f"{__package__}.{name}.backend").BACKEND
        for name in sorted(found)
    }


@functools.cache
def _named() -> dict[str, Backend]:
    """Every name that chooses a back end."""
    every = backends().values()
    return {name: backend for backend in every for name in (backend.name, *backend.variants)}


@functools.cache
def backend_names() -> tuple[str, ...]:
    """All that :func:`use_backend` knows, whether it is available here or not."""
    return ("auto", REFERENCE, *_named())


_REFERENCE = Kernels({})


@functools.cache
def _kernels_of(backend: Backend) -> Kernels:
    return Kernels(backend.kernels, called_by_torch=backend.called_by_torch)


def wanted() -> str:
    """The name that was chosen, :obj:`"auto"` if none was."""
    name = _CHOSEN.get() or os.environ.get(_ENVIRONMENT, "auto") or "auto"
    if name not in backend_names():
        raise BackendError(
            f"{_ENVIRONMENT}={name!r} is unknown, choose from {', '.join(backend_names())}"
        )
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    r"""Chooses who computes packed operations, inside a :obj:`with` block.

    The choice holds in this thread, or asynchronous task, alone; the environment variable
    :obj:`QLR_BACKEND` chooses for a whole process, and :obj:`QLR_CPU` names the best instruction
    set that its kernels may use, at no cost to their calls.

    Args:
        name (str): :obj:`"auto"` (on each device its fastest back end, if it is available, else the
            reference), :obj:`"reference"`, a back end (:obj:`"cpu"`: the C++ kernels), or one of
            its variants: the instruction sets :obj:`"portable"`, :obj:`"avx2"`, :obj:`"avx_vnni"`,
            :obj:`"avx512"`, :obj:`"amx"`, and :obj:`"neon"` on aarch64. What is asked for by name
            computes, or there is an error.

    Raises:
        BackendError: If the name is unknown, or the back end is not available.

    Example:
        >>> with use_backend("reference"):
        ...     backend_info()["selected"]
        'reference'
    """
    if name not in backend_names():
        raise BackendError(f"backend {name!r} is unknown, choose from {', '.join(backend_names())}")
    _require(name)
    before = _CHOSEN.set(name)
    try:
        with contextlib.ExitStack() as asked:
            for backend in backends().values():
                asked.enter_context(backend.asked_first())
            yield
    finally:
        _CHOSEN.reset(before)


def _require(name: str) -> None:
    """Raises if a back end asked for by name is missing."""
    backend = _named().get(name)
    reason = "" if backend is None else backend.missing(name)
    if reason:
        raise BackendError(f"backend {name!r}: {reason}")


def answer(a: Arguments, *, asked: bool = False) -> Any:
    r"""A call that nobody has looked at yet.

    Args:
        a (Arguments): What the op was called with.
        asked (bool): Whether a kernel asks that torch has called.

    Raises:
        InputError: If the op cannot take them, or would lose a gradient.
        BackendError: If the back end that was chosen cannot compute here.
    """
    refuse_gradient(definition_of(a.op.name), a.values.values())
    return _chosen(a).answer(a, asked=asked)


def answer_by_definition(a: Arguments) -> Any:
    r"""The same, whoever was chosen.

    Args:
        a (Arguments): What the op was called with.
    """
    return _REFERENCE.answer(a, asked=False)


def _chosen(a: Arguments) -> Kernels:
    name = wanted()
    if name == REFERENCE:
        return _REFERENCE
    backend = _default(a.device_type) if name == "auto" else _named()[name]
    if backend is None:
        return _REFERENCE
    if name != "auto":
        _require(name)
        if not backend.answers_on(a.device_type):
            raise BackendError(
                f"torch.ops.qlr.{a.op.name}: back end {name!r} does not compute on "
                f"{a.device_type}. Move the tensors, or choose backend 'auto'."
            )
    return _kernels_of(backend)


@functools.cache
def _candidates(device_type: str) -> list[Backend]:
    return [backend for backend in backends().values() if backend.is_default_on(device_type)]


def _default(device_type: str) -> Backend | None:
    """Who computes there without being asked for. Says, once, if it is only the reference."""
    for backend in _candidates(device_type):
        if not backend.missing(backend.name):
            return backend
    for backend in _candidates(device_type):
        reason = backend.missing(backend.name)
        tell_once(f"torch_geometric_qlr computes with its slow reference back end: {reason}")
    return None


def _available(backend: Backend) -> list[str]:
    names = backend.variants or (backend.name,)
    return [name for name in names if not backend.missing(name)]


def available_on(device_type: str) -> list[str]:
    r"""The names, without the reference, that :func:`use_backend` takes here for tensors of a
    device, from the plainest to the best.

    Args:
        device_type (str): Like :obj:`"cpu"` or :obj:`"cuda"`.

    Example:
        >>> available_on("meta")
        []
    """
    every = [backend for backend in backends().values() if backend.answers_on(device_type)]
    return [name for backend in every for name in _available(backend)]


def kernels_on(device_type: str) -> tuple[list[str], str]:
    r"""Which ops are computed by kernels of their own on a device, where no back end is asked for;
    the others are composed of these.

    Args:
        device_type (str): Like :obj:`"cpu"` or :obj:`"cuda"`.

    Returns:
        (list, str): Their names, and why there are none; empty if there are some.

    Example:
        >>> kernels_on("meta")
        ([], 'no back end computes on meta')
    """
    reasons = []
    for backend in _candidates(device_type):
        reason = backend.missing(backend.name)
        if not reason:
            return sorted(backend.kernels), ""
        reasons.append(f"{backend.name}: {reason}")
    return [], "; ".join(reasons) or f"no back end computes on {device_type}"


def computes_packed(device_type: str = "cpu") -> bool:
    r"""Whether packed operations on a device are worth asking for: there are kernels, or the
    reference was chosen by name.

    Args:
        device_type (str): Like :obj:`"cpu"` or :obj:`"cuda"`. (default: :obj:`"cpu"`)

    Example:
        >>> with use_backend("reference"):
        ...     computes_packed("cuda")
        True
    """
    name = wanted()
    if name == "auto":
        return any(not backend.missing(backend.name) for backend in _candidates(device_type))
    if name == REFERENCE:
        return True
    backend = _named()[name]
    return not backend.missing(name) and backend.answers_on(device_type)


def backend_info() -> dict[str, Any]:
    r"""What computes packed operations on this machine, and why.

    Returns:
        dict: :obj:`selected` (who computes on a CPU: :obj:`"reference"`, an instruction set or a
        back end), :obj:`available` (all that :func:`use_backend` takes here), :obj:`unavailable`
        (the other back ends, each with the reason), and what they say of themselves:
        :obj:`library` (the file of the C++ kernels, or :obj:`None`), :obj:`reason` (why there is
        none), :obj:`vnni`, :obj:`openmp`.

    Example:
        >>> backend_info()["available"][0]
        'reference'
    """
    every = list(backends().values())
    available = [REFERENCE, *(name for backend in every for name in _available(backend))]
    facts = {key: fact for backend in every for key, fact in backend.facts().items()}
    reasons = {backend.name: backend.missing(backend.name) for backend in every}
    return {
        "selected": _selected(available),
        "available": available,
        "unavailable": {name: reason for name, reason in reasons.items() if reason},
        **facts,
    }


def _selected(available: list[str]) -> str:
    name = wanted()
    if name in available:
        return name
    candidates = [_named()[name]] if name in _named() else _candidates("cpu")
    best = [_available(backend)[-1] for backend in candidates if _available(backend)]
    return best[0] if best else REFERENCE
