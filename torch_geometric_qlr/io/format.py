"""What :func:`save` and :func:`load` agree on: versions, types, arguments."""

from __future__ import annotations

import os
from typing import IO, Any, TypeAlias

import torch
from torch import nn

from torch_geometric_qlr.errors import InputError, UnsupportedLayerError

__all__ = [
    "DTYPES",
    "VERSION",
    "File",
    "check_file",
    "check_module",
    "dtype_name",
    "shown",
]

File: TypeAlias = "str | os.PathLike[str] | IO[bytes]"

#: 2 added what decides the arithmetic: signatures, options of modules, kernels of messages. 3 is a
#: safetensors file, and says how the float model is built where that is known.
VERSION = 3

_REALS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_INTEGERS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
_COMPLEX = ("complex128", "complex64", "complex32")
#: Types that a tensor of a file can have, by name.
DTYPES: dict[str, torch.dtype] = {n: getattr(torch, n) for n in (*_REALS, *_INTEGERS, *_COMPLEX)}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a type: ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def shown(path: File) -> str:
    """A file as messages name it."""
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else "the file"


def check_module(model: Any) -> None:
    """Refuses what is no model, or a compiled one."""
    if not isinstance(model, nn.Module):
        raise UnsupportedLayerError(
            f"Expected a torch.nn.Module (got {type(model).__name__}): the model itself, not its "
            f"class or its state_dict. The order is qlr.save(model, path), qlr.load(path, model)."
        )
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise UnsupportedLayerError(
            "The model has been compiled with torch.compile. Pass the model that was compiled, "
            "model._orig_mod."
        )


def check_file(path: Any, method: str) -> None:
    """Refuses what is neither a path nor a binary file that can be read or written."""
    order = "The order is qlr.save(model, path), qlr.load(path, model)."
    if isinstance(path, (str, os.PathLike)):
        name = os.fspath(path)
        if not isinstance(name, str) or "\0" in name:
            raise InputError(f"{name!r} is no path: pass text without null characters. {order}")
    elif not callable(getattr(path, method, None)):
        raise InputError(
            f"Expected a path or a binary file (got {type(path).__name__}): a str, a pathlib.Path "
            f"or an object with {method}(). {order}"
        )
    elif getattr(path, "closed", False) or hasattr(path, "encoding"):
        kind = "closed" if path.closed else "a text file"
        raise InputError(f"The file is {kind}: open it with open(path, '{method[0]}b').")
