"""Joins schemas and implementations: on a CPU the kernels, if there are any, else the reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from torch_geometric_qlr.ops import gradients
from torch_geometric_qlr.ops.backend import cpu_isa
from torch_geometric_qlr.ops.calls import Packet
from torch_geometric_qlr.ops.companions import Companion, compute_by_reference
from torch_geometric_qlr.ops.library import load_library
from torch_geometric_qlr.ops.no_gradient import has_no_gradient, refuse_gradient
from torch_geometric_qlr.ops.schemas import LIBRARY, SIGNATURES, Signature

__all__: list[str] = []

#: Which torch.func asks first, before it takes its wrappers off the tensors.
_FUNCTORCH = "FuncTorchDynamicLayerFrontMode"


Arguments = dict[str, Any]


def _reference(op: Signature) -> Callable[[Arguments], Any]:
    def compute(arguments: Arguments) -> Any:
        refuse_gradient(op.name, arguments.values())
        if op.on_cpu(arguments):
            cpu_isa()  # says that there are no kernels, or refuses a choice of them
        return compute_by_reference(op, arguments)

    return compute


def _refuse_transform(op: Signature) -> Callable[[Arguments], Any]:
    """What a kernel sees of a tensor of `torch.func` no longer tells that it is followed."""
    companion = getattr(torch.ops.qlr, op.companion)

    def compute(arguments: Arguments) -> Any:
        refuse_gradient(op.name, arguments.values())
        return companion(*op.spell(arguments))

    return compute


def _taking(
    bind: Callable[[Any, Any], Arguments], compute: Callable[[Arguments], Any]
) -> Callable[..., Any]:
    """What torch calls, of what takes all arguments by name."""
    return lambda *args, **kwargs: compute(bind(args, kwargs))


def _register_op(op: Signature, library: ctypes.CDLL | None) -> None:
    for name, bind in ((op.name, op.bind), (op.companion, op.read)):
        LIBRARY.impl(name, _taking(bind, _reference(op)), "CompositeExplicitAutograd")
        torch.library.register_fake(f"qlr::{name}", _taking(bind, op.fake), lib=LIBRARY)
    if library is not None:
        LIBRARY.impl(op.companion, Companion(op, library), "CPU")
    if has_no_gradient(op.name):
        LIBRARY.impl(op.name, _taking(op.bind, _refuse_transform(op)), _FUNCTORCH)


def _register() -> None:
    library, _ = load_library()
    for op in SIGNATURES.values():
        _register_op(op, library)
        Packet.of(op.name)
    if library is not None:
        library.qlr_register_kernels()
        library.qlr_expect_companions()
    torch.library.register_autograd(
        "qlr::fake_quantize",
        gradients.backward,
        setup_context=gradients.save_for_backward,
        lib=LIBRARY,
    )
    torch.library.register_autograd(
        "qlr::fake_quantize_backward",
        gradients.second,
        setup_context=gradients.save_for_second,
        lib=LIBRARY,
    )


_register()
