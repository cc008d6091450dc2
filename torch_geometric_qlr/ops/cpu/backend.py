"""The back end of C++ kernels: its instruction sets, and what chooses among them."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torch_geometric_qlr.errors import BackendError
from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.backend import Backend, Kernel
from torch_geometric_qlr.ops.cpu.calls import Packet
from torch_geometric_qlr.ops.cpu.companions import Companion
from torch_geometric_qlr.ops.cpu.library import (
    NO_CHOICE,
    asking_kernels,
    library_path,
    load_library,
)
from torch_geometric_qlr.ops.dispatch import wanted
from torch_geometric_qlr.ops.schemas import LIBRARY, NAMES, Signature

__all__ = ["BACKEND"]

# The numbers of `QlrIsa` in csrc/qlr.h.
_ISA = {"portable": 0, "avx2": 1, "avx_vnni": 2, "avx512": 3, "amx": 4, "neon": 5}
_BEST = max(_ISA.values())  # what the processor lacks is left out
#: Names the best instruction set that kernels may use; the library reads it when it is loaded.
_CAP = "QLR_CPU"
_REMEDY = "Reinstall with a C++17 compiler at hand, or choose backend 'reference'."


@functools.cache
def _missing(name: str) -> str:
    library, reason = load_library()
    if library is None:
        return f"{reason}. {_REMEDY}"
    if not library.qlr_has_isa(_ISA.get(name, 0)):
        return "this processor or build has no such code"
    return ""


class _Cpu(Backend):
    name = "cpu"
    variants = tuple(_ISA)
    called_by_torch = True

    def missing(self, name: str) -> str:
        return _missing(name)

    def answers_on(self, device_type: str) -> bool:
        return device_type == "cpu"

    def is_default_on(self, device_type: str) -> bool:
        return device_type == "cpu"

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        library, _ = load_library()
        assert library is not None
        return {name: _run for name in NAMES if library.qlr_has_kernel(name.encode())}

    def register(self, ops: Sequence[Signature]) -> None:
        cap = os.environ.get(_CAP, "portable")
        if cap not in _ISA:
            raise BackendError(f"{_CAP}={cap!r} is unknown, choose from {', '.join(_ISA)}")
        library, _ = load_library()
        if library is None:
            return
        for op in ops:
            Packet.of(op.name)
            LIBRARY.impl(op.companion, Companion(op, library), "CPU")
        if library.qlr_register_kernels() != 0:
            raise ImportError(
                f"{library_path()}: torch does not take its kernels, or one of them has no line in "
                f"ops/schemas.inc. Build it again."
            )
        library.qlr_expect_companions()

    def asked_first(self) -> contextlib.AbstractContextManager[None]:
        return asking_kernels()

    def facts(self) -> dict[str, Any]:
        library, reason = load_library()
        if library is None:
            return {"library": None, "reason": reason, "vnni": False, "openmp": False}
        return {
            "library": str(library_path()),
            "reason": "",
            "vnni": bool(library.qlr_has_vnni()),
            "openmp": bool(library.qlr_has_openmp()),
        }


def _run(a: Arguments) -> Any:
    """The kernel in torch's dispatcher, which this time asks nobody."""
    library, _ = load_library()
    assert library is not None
    library.qlr_choose_once(_ISA.get(wanted(), _BEST))
    try:
        return getattr(torch.ops.qlr, a.op.name)(*a.values.values())
    finally:
        library.qlr_choose_once(NO_CHOICE)


BACKEND = _Cpu()
