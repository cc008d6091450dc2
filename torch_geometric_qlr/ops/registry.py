"""Tells torch's dispatcher what each op is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.dispatch import answer, backends
from torch_geometric_qlr.ops.kernels import check_arguments, definition_of
from torch_geometric_qlr.ops.no_gradient import refuse_gradient
from torch_geometric_qlr.ops.schemas import LIBRARY, SIGNATURES, Signature

__all__: list[str] = []

#: Which torch.func asks first, before it takes its wrappers off the tensors.
_FUNCTORCH = "FuncTorchDynamicLayerFrontMode"

Bind = Callable[[Any, Any], dict[str, Any]]


def _fake(a: Arguments) -> Any:
    """What has the shape of the result."""
    definition = definition_of(a.op.name)
    refuse_gradient(definition, a.values.values())
    check_arguments(a)
    return definition.fake(a)


def _refuse_transform(a: Arguments) -> Any:
    """What a kernel sees of a tensor of `torch.func` no longer tells that it is followed."""
    refuse_gradient(definition_of(a.op.name), a.values.values())
    return getattr(torch.ops.qlr, a.op.companion)(*a.op.spell(a.values))


def _taking(op: Signature, bind: Bind, compute: Callable[[Arguments], Any]) -> Callable[..., Any]:
    """What torch calls, of what takes all arguments by name."""
    return lambda *args, **kwargs: compute(Arguments(op, bind(args, kwargs)))


def _register_op(op: Signature) -> None:
    definition = definition_of(op.name)
    for name, bind in ((op.name, op.bind), (op.companion, op.read)):
        LIBRARY.impl(name, _taking(op, bind, answer), "CompositeExplicitAutograd")
        torch.library.register_fake(f"qlr::{name}", _taking(op, bind, _fake), lib=LIBRARY)
    if definition.loses_gradient:
        LIBRARY.impl(op.name, _taking(op, op.bind, _refuse_transform), _FUNCTORCH)
    if definition.derivative is not None:
        backward, save = definition.derivative
        torch.library.register_autograd(
            f"qlr::{op.name}", backward, setup_context=save, lib=LIBRARY
        )


def _register() -> None:
    for op in SIGNATURES.values():
        _register_op(op)
    for backend in backends().values():
        backend.register(tuple(SIGNATURES.values()))


_register()
