"""All ops, computed with the kernels of one back end and with definitions for the rest."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

from torch_geometric_qlr.errors import InputError, QLRWarning
from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.backend import Kernel, NoKernel
from torch_geometric_qlr.ops.checks import Check, Refused, check_values
from torch_geometric_qlr.ops.definition import Definition, find_definitions
from torch_geometric_qlr.ops.schemas import NAMES, SIGNATURES

__all__ = ["Kernels", "check_arguments", "definition_of", "tell", "tell_once"]

_TOLD: set[str] = set()


@functools.cache
def definition_of(op: str) -> Definition:
    """What an op means."""
    return _definitions()[op]


@functools.cache
def _definitions() -> dict[str, Definition]:
    return find_definitions(NAMES)


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


def tell(op: str, reason: str) -> None:
    """Says once per process that an op is slow, and why."""
    if reason:
        tell_once(
            f"torch.ops.qlr.{op} has no kernel for {reason}: its slow reference computes "
            f"instead. (Said once.)"
        )


def tell_once(words: str) -> None:
    """Warns, if nobody was warned of it before."""
    if words not in _TOLD:
        _TOLD.add(words)
        warnings.warn(words, QLRWarning, stacklevel=6)
