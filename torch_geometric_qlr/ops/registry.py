"""Joins schemas and implementations: on a CPU the kernels, if there are any, else the reference.

Every call passes :func:`~torch_geometric_qlr.ops.arguments.check_arguments` first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_geometric_qlr.errors import InputError, QLRWarning
from torch_geometric_qlr.ops import gradients
from torch_geometric_qlr.ops.arguments import check_values
from torch_geometric_qlr.ops.backend import cpu_isa
from torch_geometric_qlr.ops.checks import Refused
from torch_geometric_qlr.ops.cpu import KERNELS
from torch_geometric_qlr.ops.cpu_args import Unsupported
from torch_geometric_qlr.ops.reference_impl import IMPLEMENTATIONS
from torch_geometric_qlr.ops.schemas import LIBRARY, NAMES, checked

__all__: list[str] = []

_DIFFERENTIABLE = {"fake_quantize", "fake_quantize_backward"}
_OF_INTEGERS = {"pack", "unpack", "index_select"}


def _on_cpu(name: str) -> Callable[..., Any]:
    kernel, reference = KERNELS[name], IMPLEMENTATIONS[name]

    def call(**arguments: Any) -> Any:
        isa = cpu_isa()
        if isa is not None:
            try:
                return kernel(isa, **arguments)
            except Unsupported as error:
                _tell(name, str(error))
        check_values(arguments)
        return reference(**arguments)

    return call


def _named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """What an implementation refuses becomes an error that names the op."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Refused as error:
            raise InputError(f"torch.ops.qlr.{name}: {error}") from None

    return call


_TOLD: set[tuple[str, str]] = set()


def _tell(name: str, reason: str) -> None:
    """Says once per process that an op is slow, and why."""
    if reason and (name, reason) not in _TOLD:
        _TOLD.add((name, reason))
        warnings.warn(
            f"torch.ops.qlr.{name} has no kernel for {reason}: its slow reference computes "
            f"instead. (Said once.)",
            QLRWarning,
            stacklevel=4,
        )


for _name in NAMES:
    LIBRARY.impl(_name, _named(_name, checked(_name, _on_cpu(_name))), "CPU")
    _reference = _named(_name, checked(_name, IMPLEMENTATIONS[_name]))
    LIBRARY.impl(_name, _reference, "CompositeExplicitAutograd")


def _wants_gradient(tensor: Any) -> bool:
    """Whether autograd follows a tensor, backward or forward, also inside `torch.func`."""
    if not isinstance(tensor, Tensor):
        return False
    if tensor.requires_grad and torch.is_grad_enabled():
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def _refuse_gradient(name: str) -> None:
    """Makes an op that takes floats, and has no gradient, say so instead of losing it."""
    op = getattr(torch.ops.qlr, name).default

    def call(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        if any(map(_wants_gradient, (*args, *kwargs.values()))):
            raise InputError(
                f"torch.ops.qlr.{name} has no gradient, and one of its inputs asks for one. Detach "
                f"it, or call the op under torch.no_grad(); training computes with the quantized "
                f"model, not with the converted one."
            )
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

    LIBRARY.impl(name, call, "Autograd", with_keyset=True)


for _name in NAMES:
    if _name not in _DIFFERENTIABLE | _OF_INTEGERS:
        _refuse_gradient(_name)


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
