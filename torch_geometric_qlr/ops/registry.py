"""Joins schemas and implementations: on a CPU the kernels, if there are any, else the reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.errors import QLRWarning
from torch_geometric_qlr.ops.backend import cpu_isa
from torch_geometric_qlr.ops.cpu import KERNELS
from torch_geometric_qlr.ops.cpu_args import Unsupported
from torch_geometric_qlr.ops.reference_impl import IMPLEMENTATIONS
from torch_geometric_qlr.ops.schemas import LIBRARY, NAMES, by_name

__all__: list[str] = []


def _on_cpu(name: str) -> Callable[..., Any]:
    kernel = by_name(name, KERNELS[name])
    reference = by_name(name, IMPLEMENTATIONS[name])

    def call(*args: Any, **kwargs: Any) -> Any:
        isa = cpu_isa()
        if isa is not None:
            try:
                return kernel(*args, isa=isa, **kwargs)
            except Unsupported as error:
                _tell(name, str(error))
        return reference(*args, **kwargs)

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
    LIBRARY.impl(_name, _on_cpu(_name), "CPU")
    LIBRARY.impl(_name, by_name(_name, IMPLEMENTATIONS[_name]), "CompositeExplicitAutograd")


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, scale = inputs[0], inputs[1]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, scale, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, scale, x_hat, mask = ctx.saved_tensors
    axis = -1 if scale.numel() == 1 else 0 if scale.size(-1) == 1 else 1
    grad_x, reduced = torch.ops.qlr.fake_quantize_backward(grad, x, x_hat, mask, axis)
    grad_scale = (reduced / scale.reshape(reduced.shape)).view(scale.shape).to(scale.dtype)
    return grad_x, grad_scale if ctx.needs_input_grad[1] else None, None, None, None, None


torch.library.register_autograd(
    "qlr::fake_quantize", _backward, setup_context=_save_for_backward, lib=LIBRARY
)


def _save_for_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4])


def _second(ctx: Any, grad_x: Tensor | None, grad_rho: Tensor | None) -> tuple[Tensor | None, ...]:
    """Derivatives of the first ones, which force fields train on; codes are held fixed."""
    grad, x, x_hat, mask = ctx.saved_tensors
    rho = torch.zeros((), device=grad.device) if grad_rho is None else grad_rho
    of_grad = rho * (x_hat - x * mask)
    if grad_x is not None:
        of_grad = of_grad + grad_x * mask
    of_x, of_x_hat = -rho * grad * mask, rho * grad
    return of_grad.to(grad.dtype), of_x.to(x.dtype), of_x_hat.to(x.dtype), None, None


torch.library.register_autograd(
    "qlr::fake_quantize_backward", _second, setup_context=_save_for_second, lib=LIBRARY
)
