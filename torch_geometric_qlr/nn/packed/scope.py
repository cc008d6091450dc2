"""While a converted model runs, its layers may hand each other results that are not computed yet.

The hooks sit on the model as a whole. A layer that is called on its own computes at once.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import torch
from torch import nn

from torch_geometric_qlr.nn.packed.deferred import Deferred, Stage, realised
from torch_geometric_qlr.ops import use_backend
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["backend_scope", "defer", "is_deferring", "open_scope_around"]

_STATE = threading.local()


def backend_scope(name: str) -> contextlib.AbstractContextManager[None]:
    """The back end a model was converted for."""
    return contextlib.nullcontext() if name == "auto" else use_backend(name)


def is_deferring() -> bool:
    """Whether a converted model is running as a whole in this thread."""
    return getattr(_STATE, "depth", 0) > 0 and not torch.compiler.is_compiling()


def defer(stage: Stage) -> Any:
    """The result of a layer: deferred inside a running model, a plain tensor otherwise."""
    return Deferred(stage) if is_deferring() else stage.value()


def open_scope_around(model: nn.Module) -> None:
    r"""Lets the layers of a model defer their results while it is called.

    Args:
        model (torch.nn.Module): The converted model.
    """
    model.register_forward_pre_hook(_enter, with_kwargs=True)
    model.register_forward_hook(_leave, always_call=True)


def _enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
    _STATE.depth = getattr(_STATE, "depth", 0) + 1
    if torch.compiler.is_compiling():
        return args, kwargs
    return _with_packed(args), _with_packed(kwargs)


def _leave(module: nn.Module, args: Any, out: Any) -> Any:
    _STATE.depth -= 1
    return out if torch.compiler.is_compiling() else realised(out)


def _with_packed(value: Any) -> Any:
    """Packed features as tensors, which any model can pass on."""
    if isinstance(value, PackedTensor):
        return Deferred(Stage.of_packed(value))
    if type(value) in (tuple, list):
        return type(value)(_with_packed(v) for v in value)
    if type(value) is dict:
        return {k: _with_packed(v) for k, v in value.items()}
    return value
