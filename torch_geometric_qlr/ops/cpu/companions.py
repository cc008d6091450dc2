"""What the kernels leave to Python: each op's companion, ``torch.ops.qlr.<op>_in_python``.

A kernel in C++ answers a call from beginning to end if everything about it is as usual. If not, it
hands the very same arguments to the companion: where they do not fit, which has the words for what
is wrong; where a gradient would be lost; where a back end was chosen; where no kernel takes the
combination, and the reference computes.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from torch_geometric_qlr.errors import BackendError, InputError
from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.checks import code_too_large
from torch_geometric_qlr.ops.cpu.calls import keep
from torch_geometric_qlr.ops.cpu.library import Status
from torch_geometric_qlr.ops.dispatch import answer, answer_by_definition
from torch_geometric_qlr.ops.kernels import definition_of, tell
from torch_geometric_qlr.ops.schemas import Signature

__all__ = ["Companion"]


class Companion:
    """Answers for the kernel of one op."""

    def __init__(self, op: Signature, library: ctypes.CDLL) -> None:
        self.op, self.library = op, library

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        a = Arguments(self.op, self.op.read(args, kwargs))
        status = self.library.qlr_take_refusal()
        if status == Status.OK:  # called by torch.func, not by a kernel
            return answer(a, asked=True)
        try:
            return self._answer(status, a)
        except BaseException as error:
            # None may leave: torch's C interface has no place for it.
            self.library.qlr_report_error(keep(error).encode())
            empty = tuple(torch.empty(0) for _ in range(self.op.results))
            return empty if len(empty) > 1 else empty[0]

    def _answer(self, status: int, a: Arguments) -> Any:
        if status == Status.ASK:
            return answer(a, asked=True)
        reason = self.library.qlr_refusal_reason().decode()
        if status in (Status.UNSUPPORTED, Status.MISFIT, Status.BAD_ROWPTR, Status.BAD_INDEX):
            result = answer_by_definition(a)
            if status == Status.MISFIT:  # and yet no check here found anything
                reason = "arguments of this form"
            tell(self.op.name, reason)
            return result
        where = f"torch.ops.qlr.{self.op.name}"
        if status == Status.NO_MEMORY:
            raise BackendError(f"{where}: out of memory")
        if status == Status.FAILED:
            raise BackendError(f"{where}: {reason}")
        if status == Status.BAD_CODE:
            raise InputError(f"{where}: {code_too_large(a.codes, a.bits)}")
        raise InputError(f"{where}: {definition_of(self.op.name).not_finite(a)}")
