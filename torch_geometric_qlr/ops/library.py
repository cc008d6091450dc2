"""The shared library of CPU kernels: found, loaded once, checked, and bound by ctypes."""

from __future__ import annotations

import ctypes
import functools
import sys
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

# The kernels' OpenMP runtime must be the one torch has loaded: two in a process oversubscribe.
import torch  # noqa: F401

__all__ = ["Epilogue", "Graph", "Packed", "Quantizer", "Smp", "load_library", "library_path"]

ABI_VERSION = 5


class Packed(ctypes.Structure):
    """`QlrPacked` of csrc/qlr.h."""

    _fields_ = [
        ("data", c_void_p),
        ("rows", c_int64),
        ("cols", c_int64),
        ("bits", c_int32),
        ("axis", c_int32),
        ("scale", c_void_p),
        ("zero", c_void_p),
    ]


class Quantizer(ctypes.Structure):
    """`QlrQuantizer` of csrc/qlr.h."""

    _fields_ = [
        ("scale", c_void_p),
        ("zero", c_void_p),
        ("axis", c_int32),
        ("bits", c_int32),
        ("truncate", c_int32),
        ("skew", c_float),
    ]


class Graph(ctypes.Structure):
    """`QlrGraph` of csrc/qlr.h."""

    _fields_ = [
        ("rowptr", c_void_p),
        ("col", c_void_p),
        ("rows", c_int64),
        ("edges", c_int64),
        ("edge_weight", c_void_p),
        ("source_weight", c_void_p),
        ("checked", c_int32),
        ("digits", c_void_p),
    ]


class Epilogue(ctypes.Structure):
    """`QlrEpilogue` of csrc/qlr.h."""

    _fields_ = [
        ("row_scale", c_void_p),
        ("bias", c_void_p),
        ("addend", c_void_p),
        ("addend_scale", c_float),
        ("mean", c_int32),
        ("relu", c_int32),
        ("out", c_void_p),
        ("packed", c_void_p),
        ("quantizer", POINTER(Quantizer)),
    ]


class Smp(ctypes.Structure):
    """`QlrSmp` of csrc/qlr.h."""

    _fields_ = [
        ("steps", c_int64),
        ("kept", c_float),
        ("spread", c_float),
        ("eta", c_float),
        ("eta_lambda", c_float),
        ("eta_slack", c_float),
        ("multiplier", c_float),
        ("slack", c_float),
        ("bound", c_float),
        ("lagrangian", c_int32),
        ("projection", c_int32),
    ]


_ROWS: list[Any] = [c_int64, c_int64]
_RUN: list[Any] = [c_int32, c_int32]  # threads, instruction set
_SIGNATURES: dict[str, list[Any]] = {
    "qlr_abi_version": [],
    "qlr_best_isa": [],
    "qlr_has_vnni": [],
    "qlr_has_openmp": [],
    "qlr_quantize_pack": [c_void_p, *_ROWS, POINTER(Quantizer), c_void_p, *_RUN],
    "qlr_pack": [c_void_p, *_ROWS, c_int32, c_void_p, *_RUN],
    "qlr_unpack": [POINTER(Packed), c_void_p, *_RUN],
    "qlr_dequantize": [POINTER(Packed), c_void_p, *_RUN],
    "qlr_index_select": [c_void_p, *_ROWS, c_void_p, c_int64, c_void_p, c_int32],
    "qlr_packed_spmm": [POINTER(Graph), POINTER(Packed), POINTER(Epilogue), *_RUN],
    "qlr_edge_digits": [POINTER(Graph), c_void_p, *_RUN],
    "qlr_packed_extremum": [POINTER(Graph), POINTER(Packed), c_int32, POINTER(Epilogue), *_RUN],
    "qlr_packed_attention": [
        *[POINTER(Graph), POINTER(Packed), c_void_p, c_int64],
        *[POINTER(Epilogue), *_RUN],
    ],
    "qlr_packed_linear": [POINTER(Packed), POINTER(Packed), POINTER(Epilogue), *_RUN],
    "qlr_packed_smp": [
        *[POINTER(Graph), c_void_p, c_int64, POINTER(Quantizer), POINTER(Packed), POINTER(Smp)],
        *[c_void_p, c_void_p, *_RUN],
    ],
    "qlr_float_spmm": [POINTER(Graph), c_void_p, *_ROWS, POINTER(Epilogue), *_RUN],
    "qlr_fake_quantize": [c_void_p, *_ROWS, POINTER(Quantizer), c_void_p, c_void_p, *_RUN],
    "qlr_fake_quantize_backward": [
        *[c_void_p, c_void_p, c_void_p, c_void_p, *_ROWS, c_int32],
        *[c_void_p, c_void_p, *_RUN],
    ],
}


def library_path() -> Path:
    """Where the build puts the library: beside the package's Python files."""
    suffix = ".dll" if sys.platform == "win32" else ".so"
    return Path(__file__).resolve().parent.parent / f"libqlr_cpu{suffix}"


@functools.cache
def load_library() -> tuple[ctypes.CDLL | None, str]:
    """The bound library, or :obj:`None` and the reason why there is none."""
    path = library_path()
    if not path.exists():
        return None, f"{path.name} was not built (no C++17 compiler at install time)"
    try:
        library = ctypes.CDLL(str(path))
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int32
    except (OSError, AttributeError) as error:
        return None, f"{path.name} cannot be loaded: {error}"
    version = library.qlr_abi_version()
    if version != ABI_VERSION:
        return None, f"{path.name} has interface {version}, this package needs {ABI_VERSION}"
    return library, ""
