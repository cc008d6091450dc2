"""What torch is doing with a tensor right now: the private parts of it that quantizers ask."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._subclasses.fake_tensor import is_fake

__all__ = [
    "REAL",
    "PlainFunction",
    "below_autograd",
    "follows_tangents",
    "is_abstract",
    "is_recomputing",
    "is_transformed",
    "may_be_recomputed",
    "outside_of_transforms",
    "runs_plainly",
    "unwrapped",
]

#: The types of tensors that nobody has wrapped. A fake parameter has the type of fake tensors.
REAL = (Tensor, nn.Parameter)

#: What :class:`torch.autograd.Function` adds :mod:`torch.func` to; for where :func:`runs_plainly`.
#: To look for transforms at each argument takes a part of the time of a small node.
PlainFunction: Any = torch.autograd.function._SingleLevelFunction


def is_recomputing() -> bool:
    r"""Whether this code runs inside of autograd's backward pass, as a forward does that is
    computed again there (:func:`torch.utils.checkpoint.checkpoint`, invertible layers)."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def may_be_recomputed() -> bool:
    r"""Whether autograd may compute this forward again: it saves nothing now, or something else
    than what it is given."""
    if torch.compiler.is_compiling():
        return False
    hooks: object = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None or not torch.is_grad_enabled()


def is_transformed() -> bool:
    r"""Whether a :mod:`torch.func` transform is active."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def follows_tangents() -> bool:
    r"""Whether forward-mode differentiation is on."""
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0


def below_autograd() -> AbstractContextManager[object]:
    r"""Within it operations are computed and not followed, and autograd does not even look at them
    first, as it does under :func:`torch.no_grad`. Only where :func:`runs_plainly`.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> with below_autograd():
        ...     y = 2 * x
        >>> y.requires_grad, torch.is_grad_enabled()
        (False, True)
    """
    guard: AbstractContextManager[object] = torch._C._AutoDispatchBelowAutograd()
    return guard


def runs_plainly() -> bool:
    r"""Whether operations run as they are called, and at most backward mode follows them: no
    compiler, no :mod:`torch.func` transform, no forward mode."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


def is_abstract(x: Tensor) -> bool:
    r"""Whether a tensor has a shape and no values: on the meta device, or a fake one. What a
    compiler traces counts as having values.

    Example:
        >>> is_abstract(torch.empty(3, device="meta")), is_abstract(torch.empty(3))
        (True, False)
    """
    if x.is_meta:
        return True
    return type(x) not in REAL and not torch.compiler.is_compiling() and is_fake(x)


def unwrapped(x: Tensor) -> Tensor | None:
    r"""The tensor that :func:`torch.func.grad` and :func:`torch.func.jvp` follow, or :obj:`None` if
    it stands for a whole batch of them (:func:`torch.func.vmap`)."""
    if torch.compiler.is_compiling():
        return x
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return None
        x = functorch.get_unwrapped(x)
    return x


def outside_of_transforms() -> AbstractContextManager[object]:
    r"""Within it tensors are changed in place for good, whatever transform is active."""
    return temporarily_clear_interpreter_stack() if is_transformed() else nullcontext()
