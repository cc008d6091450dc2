"""Who computes a call: one table of back ends and their kernels, and a choice among them."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import os
import pkgutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch_geometric_qlr.errors import BackendError, InputError, QLRWarning
from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.backend import Backend, Kernel, NoKernel
from torch_geometric_qlr.ops.checks import Check, Refused, check_values
from torch_geometric_qlr.ops.definition import Definition, find_definitions
from torch_geometric_qlr.ops.no_gradient import refuse_gradient
from torch_geometric_qlr.ops.schemas import NAMES, SIGNATURES

__all__ = [
    "Kernels",
    "answer",
    "answer_by_definition",
    "backend_info",
    "backend_names",
    "backends",
    "check_arguments",
    "computes_packed",
    "definition_of",
    "tell",
    "use_backend",
    "wanted",
]

REFERENCE = "reference"
_ENVIRONMENT = "QLR_BACKEND"
#: What `use_backend` says, in this thread or task alone.
_CHOSEN: contextvars.ContextVar[str] = contextvars.ContextVar("qlr_backend", default="")
_TOLD: set[tuple[str, str]] = set()


@functools.cache
def definition_of(op: str) -> Definition:
    """What an op means."""
    return _definitions()[op]


@functools.cache
def _definitions() -> dict[str, Definition]:
    return find_definitions(NAMES)


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


class Kernels:
    """All ops as one back end computes them: its kernels, and definitions composed of them.

    Args:
        kernels (dict): Kernels of the back end by op; none for the reference.
        called_by_torch (bool): As of :class:`Backend`.
    """

    def __init__(self, kernels: Mapping[str, Kernel], *, called_by_torch: bool = False) -> None:
        self._kernels, self._called_by_torch = kernels, called_by_torch

    def answer(self, a: Arguments, *, asked: bool) -> Any:
        """A call that is not checked. `asked`: by a kernel that torch has called."""
        kernel = self._kernels.get(a.op.name)
        if self._called_by_torch:
            if kernel is not None and asked:
                return kernel(a)
            kernel = None  # torch has passed it by, for it takes no such tensors
        check_arguments(a)
        try:
            if a.device_type == "cpu":
                check_values(a.values)
            return self._compute(a, kernel)
        except Refused as error:
            raise InputError(f"torch.ops.qlr.{a.op.name}: {error}") from None

    def _call(self, op: str, /, *args: Any, **kwargs: Any) -> Any:
        """What a definition is composed of."""
        return self._compute(Arguments.of(SIGNATURES[op], args, kwargs), self._kernels.get(op))

    def _compute(self, a: Arguments, kernel: Kernel | None) -> Any:
        if kernel is not None:
            try:
                return kernel(a)
            except NoKernel as reason:
                tell(a.op.name, str(reason))
        return definition_of(a.op.name).compute(a, self._call)


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
    :obj:`QLR_BACKEND` chooses for a whole process.

    Args:
        name (str): :obj:`"auto"` (on each device its fastest back end, if it is available, else the
            reference), :obj:`"reference"`, a back end (:obj:`"cpu"`: the C++ kernels), or one of
            its variants: the instruction sets :obj:`"portable"`, :obj:`"avx2"`, :obj:`"avx512"`,
            :obj:`"amx"`. What is asked for by name computes, or there is an error.

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
def _default(device_type: str) -> Backend | None:
    """Who computes there without being asked for. Says, once, if it is only the reference."""
    candidates = [b for b in backends().values() if b.is_default_on(device_type)]
    for backend in candidates:
        if not backend.missing(backend.name):
            return backend
    for backend in candidates:
        warnings.warn(
            f"torch_geometric_qlr computes with its slow reference back end: "
            f"{backend.missing(backend.name)}",
            QLRWarning,
            stacklevel=5,
        )
    return None


def check_arguments(a: Arguments) -> None:
    r"""Raises if an op cannot take these arguments, whatever their values are.

    Raises:
        InputError: If a tensor has the wrong dtype, shape, layout or device.
        ConfigError: If a width or a name is none.
    """
    check = Check(f"torch.ops.qlr.{a.op.name}")
    for name in a.op.tensors:
        if a.values[name] is None:
            check.fail(f"{name} is None, it must be a tensor")
    check.place(a.values)
    definition_of(a.op.name).check(check, a)


def tell(op: str, reason: str) -> None:
    """Says once per process that an op is slow, and why."""
    if reason and (op, reason) not in _TOLD:
        _TOLD.add((op, reason))
        warnings.warn(
            f"torch.ops.qlr.{op} has no kernel for {reason}: its slow reference computes "
            f"instead. (Said once.)",
            QLRWarning,
            stacklevel=5,
        )


def _available(backend: Backend) -> list[str]:
    names = backend.variants or (backend.name,)
    return [name for name in names if not backend.missing(name)]


def computes_packed() -> bool:
    r"""Whether packed operations on a CPU are worth asking for: there are kernels, or the reference
    was chosen by name.

    Example:
        >>> with use_backend("reference"):
        ...     computes_packed()
        True
    """
    name = wanted()
    if name == "auto":
        return any(b.is_default_on("cpu") and not b.missing(b.name) for b in backends().values())
    return name == REFERENCE or not _named()[name].missing(name)


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
    candidates = [b for b in backends().values() if name == b.name or b.is_default_on("cpu")]
    best = [_available(backend)[-1] for backend in candidates if _available(backend)]
    return best[0] if best else REFERENCE
