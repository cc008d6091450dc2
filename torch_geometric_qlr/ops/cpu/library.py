"""The shared library of CPU kernels: found, loaded once, checked, and bound to this torch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from ctypes import c_char_p, c_int32, c_int64
from pathlib import Path
from typing import Any

# The kernels' OpenMP runtime must be the one torch has loaded: two in a process oversubscribe.
import torch

from torch_geometric_qlr.ops.schemas import SIGNATURES

__all__ = ["NO_CHOICE", "Status", "asking_kernels", "library_path", "load_library"]

ABI_VERSION = 10


class Status:
    """`QlrStatus` of csrc/qlr.h, and what csrc/torch/refusal.h adds to it."""

    OK = 0
    BAD_ROWPTR = 1
    BAD_INDEX = 2
    NO_MEMORY = 3
    UNSUPPORTED = 4
    NOT_FINITE = 5
    BAD_CODE = 6
    MISFIT = 100
    ASK = 101
    FAILED = 102


#: The instruction set of :func:`qlr_choose_once` that takes a choice back.
NO_CHOICE = -1

# What is called from Python, with its arguments and its result. The kernels themselves are ops.
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "qlr_abi_version": ([], c_int32),
    "qlr_has_isa": ([c_int32], c_int32),
    "qlr_has_vnni": ([], c_int32),
    "qlr_has_openmp": ([], c_int32),
    "qlr_bind_torch": ([c_char_p], c_int32),
    "qlr_register_kernels": ([], c_int32),
    "qlr_has_kernel": ([c_char_p], c_int32),
    "qlr_schemas": ([], c_char_p),
    "qlr_expect_companions": ([], None),
    "qlr_count_choices": ([c_int32], None),
    "qlr_choose_once": ([c_int32], None),
    "qlr_take_refusal": ([], c_int32),
    "qlr_refusal_reason": ([], c_char_p),
    "qlr_report_error": ([c_char_p], None),
    "qlr_release_memory": ([], None),
    "qlr_idle_mappings": ([], c_int64),
    "qlr_idle_bytes": ([], c_int64),
}


def library_path() -> Path:
    """Where the build puts the library: beside the package's Python files."""
    suffix = ".dll" if sys.platform == "win32" else ".so"
    return Path(__file__).resolve().parents[2] / f"libqlr_cpu{suffix}"


def _torch_path() -> Path:
    """The library in which torch has its dispatcher."""
    names = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}
    return Path(torch.__file__).parent / "lib" / names.get(sys.platform, "libtorch_cpu.so")


@functools.cache
def load_library() -> tuple[ctypes.CDLL | None, str]:
    """The bound library, or :obj:`None` and the reason why there is none."""
    path = library_path()
    if not path.exists():
        return None, f"{path.name} was not built (no C++17 compiler at install time)"
    try:
        library = ctypes.CDLL(str(path))
        # Of any other version nothing else may be there.
        version = library.qlr_abi_version()
        if version != ABI_VERSION:
            return None, f"{path.name} has interface {version}, this package needs {ABI_VERSION}"
        for name, (arguments, result) in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
    except (OSError, AttributeError) as error:
        return None, f"{path.name} cannot be loaded: {error}"
    if _reads_otherwise(library):
        return None, f"{path.name} was built of other schemas than ops/schemas.inc has"
    if library.qlr_bind_torch(os.fsencode(_torch_path())) != 0:
        return None, f"torch {torch.__version__} lacks functions that {path.name} needs"
    return library, ""


def _reads_otherwise(library: ctypes.CDLL) -> bool:
    """Whether a kernel takes other arguments than its op has. It reads them without looking."""
    built = library.qlr_schemas().decode().splitlines()
    named = {line.partition("(")[0]: line for line in built if line}
    return any(
        library.qlr_has_kernel(name.encode()) and named[name] != op.text
        for name, op in SIGNATURES.items()
        if name in named
    )


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
