"""Who computes on packed codes: a converted layer always, a quantized one while it is evaluated.

A quantized model in ``eval()`` under ``no_grad`` runs the operations of the converted one, so the
two agree bit for bit. Where gradients are needed, or the operations have no kernel or cannot be
followed (tracing, function transforms), it computes in floating point with rounded numbers.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from torch_geometric_qlr.layers.state import state_of
from torch_geometric_qlr.ops import computes_packed, use_backend
from torch_geometric_qlr.quantizers.torch_state import REAL
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["backend_scope", "computes_on_codes", "has_codes"]


def backend_scope(name: str) -> contextlib.AbstractContextManager[None]:
    """The back end a model was converted for."""
    return _NO_SCOPE if name == "auto" else use_backend(name)


_NO_SCOPE = contextlib.nullcontext()


def computes_on_codes(layer: nn.Module, *given: Any) -> bool:
    r"""Whether a quantized layer computes on codes now.

    Args:
        layer (torch.nn.Module): The layer.
        *given (Any): What it computes with. The first tensor in it says on which device.
    """
    state = state_of(layer)
    if state.converted:
        return True
    if state.observes or layer.training:
        return False
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if torch.jit.is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return computes_packed(_device_type(given) or "cpu")


def _device_type(given: Any) -> str:
    """Of the first tensor in values of any nesting; empty if there is none."""
    if isinstance(given, (Tensor, PackedTensor)):
        return given.device.type
    if isinstance(given, dict):
        given = given.values()
    elif not isinstance(given, (tuple, list)):
        return ""
    return next((found for value in given if (found := _device_type(value))), "")


def has_codes(layer: nn.Module, x: Any) -> bool:
    r"""Whether a value can be packed for a layer that computes on codes.

    Args:
        layer (torch.nn.Module): The layer.
        x (Any): What it was given as features.
    """
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.dtype != torch.float32:
        return False
    if x.dim() < 2:
        return False
    # A quantized layer is not there to be fast: what has no kernel is computed in floats.
    plain = type(x) in REAL
    return state_of(layer).converted or (plain and computes_packed(x.device.type))
