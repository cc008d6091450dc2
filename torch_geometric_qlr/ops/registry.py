"""Joins schemas and implementations: on a CPU the kernels, if there are any, else the reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from torch_geometric_qlr.ops import gradients
from torch_geometric_qlr.ops.backend import cpu_isa
from torch_geometric_qlr.ops.companions import Companion, compute_by_reference
from torch_geometric_qlr.ops.library import load_library
from torch_geometric_qlr.ops.no_gradient import has_no_gradient, refuse_gradient
from torch_geometric_qlr.ops.schemas import LIBRARY, SIGNATURES, Signature

__all__: list[str] = []

#: Which torch.func asks first, before it takes its wrappers off the tensors.
_FUNCTORCH = "FuncTorchDynamicLayerFrontMode"


def _reference(op: Signature) -> Callable[..., Any]:
    def compute(*args: Any, **kwargs: Any) -> Any:
        arguments = op.bind(args, kwargs)
        refuse_gradient(op.name, arguments.values())
        if op.on_cpu(arguments):
            cpu_isa()  # says that there are no kernels, or refuses a choice of them
        return compute_by_reference(op, arguments)

    return compute


def _refuse_transform(op: Signature, companion: Any) -> Callable[..., Any]:
    """What a kernel sees of a tensor of `torch.func` no longer tells that it is followed."""

    def compute(*args: Any, **kwargs: Any) -> Any:
        refuse_gradient(op.name, op.bind(args, kwargs).values())
        return companion(*args, **kwargs)

    return compute


def _register_companion(op: Signature, library: ctypes.CDLL) -> None:
    name = f"{op.name}_in_python"
    LIBRARY.define(op.text.replace(op.name, name, 1), tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, Companion(op, library), "CPU")
    LIBRARY.impl(name, _reference(op), "CompositeExplicitAutograd")
    torch.library.register_fake(f"qlr::{name}", op.fake, lib=LIBRARY)
    if has_no_gradient(op.name):
        companion = getattr(torch.ops.qlr, name)
        LIBRARY.impl(op.name, _refuse_transform(op, companion), _FUNCTORCH)


def _register() -> None:
    library, _ = load_library()
    for op in SIGNATURES.values():
        LIBRARY.impl(op.name, _reference(op), "CompositeExplicitAutograd")
        torch.library.register_fake(f"qlr::{op.name}", op.fake, lib=LIBRARY)
        if library is not None:
            _register_companion(op, library)
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
