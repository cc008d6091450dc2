"""What the kernels leave to Python: each op's companion, ``torch.ops.qlr.<op>_in_python``.

A kernel in C++ answers a call from beginning to end if everything about it is as usual. If not, it
hands the very same arguments to the companion: where they do not fit, which has the words for what
is wrong; where a gradient would be lost; where a back end was chosen; where no kernel takes the
combination, and the reference computes.
"""

from __future__ import annotations

import ctypes
import warnings
from typing import Any

import torch

from torch_geometric_qlr.errors import BackendError, InputError, QLRWarning
from torch_geometric_qlr.ops.arguments import check_arguments, check_values
from torch_geometric_qlr.ops.backend import cpu_isa
from torch_geometric_qlr.ops.calls import keep
from torch_geometric_qlr.ops.checks import (
    NOT_FINITE,
    Refused,
    code_too_large,
    place_not_finite,
)
from torch_geometric_qlr.ops.library import NO_CHOICE, Status
from torch_geometric_qlr.ops.no_gradient import refuse_gradient
from torch_geometric_qlr.ops.reference_impl import IMPLEMENTATIONS
from torch_geometric_qlr.ops.schemas import Signature

__all__ = ["Companion", "compute_by_reference"]

Arguments = dict[str, Any]


def compute_by_reference(op: Signature, arguments: Arguments) -> Any:
    """The definition, after all checks; on a CPU also of values that decide about an address."""
    check_arguments(op.name, arguments, op.tensors)
    try:
        if op.on_cpu(arguments):
            check_values(arguments)
        return IMPLEMENTATIONS[op.name](**arguments)
    except Refused as error:
        raise InputError(f"torch.ops.qlr.{op.name}: {error}") from None


class Companion:
    """Answers for the kernel of one op."""

    def __init__(self, op: Signature, library: ctypes.CDLL) -> None:
        self.op, self.library = op, library

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self.op.read(args, kwargs)
        status = self.library.qlr_take_refusal()
        if status == Status.OK:  # called by torch.func, not by a kernel
            return self._ask(arguments)
        try:
            return self._answer(status, arguments)
        except BaseException as error:
            # None may leave: torch's C interface has no place for it.
            self.library.qlr_report_error(keep(error).encode())
            empty = tuple(torch.empty(0) for _ in range(self.op.results))
            return empty if len(empty) > 1 else empty[0]

    def _answer(self, status: int, arguments: Arguments) -> Any:
        if status == Status.ASK:
            return self._ask(arguments)
        reason = self.library.qlr_refusal_reason().decode()
        if status in (Status.UNSUPPORTED, Status.MISFIT, Status.BAD_ROWPTR, Status.BAD_INDEX):
            result = compute_by_reference(self.op, arguments)
            if status == Status.MISFIT:  # and yet no check here found anything
                reason = "arguments of this form"
            _tell(self.op.name, reason)
            return result
        where = f"torch.ops.qlr.{self.op.name}"
        if status == Status.NO_MEMORY:
            raise BackendError(f"{where}: out of memory")
        if status == Status.FAILED:
            raise BackendError(f"{where}: {reason}")
        raise InputError(f"{where}: {self._words(status, arguments)}")

    def _words(self, status: int, arguments: Arguments) -> str:
        """What a kernel found in the values."""
        if status == Status.BAD_CODE:
            return code_too_large(arguments["codes"], arguments["bits"])
        single = self.op.name in ("quantize_pack", "quantize_rows")
        return place_not_finite(arguments["x"]) if single else NOT_FINITE

    def _ask(self, arguments: Arguments) -> Any:
        """Nobody has looked at the arguments yet."""
        refuse_gradient(self.op.name, arguments.values())
        isa = cpu_isa()
        if isa is None:
            return compute_by_reference(self.op, arguments)
        self.library.qlr_choose_once(isa)
        try:
            return getattr(torch.ops.qlr, self.op.name)(*arguments.values())
        finally:
            self.library.qlr_choose_once(NO_CHOICE)


_TOLD: set[tuple[str, str]] = set()


def _tell(name: str, reason: str) -> None:
    """Says once per process that an op is slow, and why."""
    if reason and (name, reason) not in _TOLD:
        _TOLD.add((name, reason))
        warnings.warn(
            f"torch.ops.qlr.{name} has no kernel for {reason}: its slow reference computes "
            f"instead. (Said once.)",
            QLRWarning,
            stacklevel=5,
        )
