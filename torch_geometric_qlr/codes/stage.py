"""A kernel that has not run yet, and what it can do on the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr.codes.mode import backend_scope
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.tensor import OutputQuantizer

__all__ = ["NO_EPILOGUE", "Epilogue", "Stage"]


class Epilogue(NamedTuple):
    r"""What follows a kernel's sum :math:`y`:
    :math:`\max(0, k y + \beta a + b)`, each part optional, computed in this order; :math:`k` and
    :math:`b` have one number per column.

    Args:
        column (torch.Tensor, optional): :math:`k`.
        addend (torch.Tensor, optional): :math:`a`.
        addend_scale (float): :math:`\beta`.
        bias (torch.Tensor, optional): :math:`b`.
        relu (bool): Whether to clamp at zero.
    """

    column: Tensor | None = None
    addend: Tensor | None = None
    addend_scale: float = 1.0
    bias: Tensor | None = None
    relu: bool = False


NO_EPILOGUE = Epilogue()

Run = Callable[[Epilogue, "OutputQuantizer | None"], Any]


class Stage(NamedTuple):
    r"""A pending kernel.

    Args:
        run (callable): Computes, from an :class:`Epilogue` and what to quantize the result to.
            It may be called several times; what it reads is its own.
        shape (tuple): Rows and columns of the result.
        device (torch.device): Where it will be.
        owner (LayerState): The layer that it computes.
        adds (bool): Whether the kernel can add a matrix.
        biases (bool): Whether it can add one number per column.
        stretches (bool): Whether it can multiply columns by numbers of their own.
    """

    run: Run
    shape: tuple[int, int]
    device: torch.device
    owner: Any
    adds: bool = False
    biases: bool = True
    stretches: bool = False

    def compute(self, epilogue: Epilogue, out: OutputQuantizer | None) -> Any:
        """The result with an epilogue, as floats or as codes."""
        try:
            with torch._C.DisableTorchFunctionSubclass():
                if self.owner.backend == "auto":  # to enter no scope takes as long as a small op
                    return self.run(epilogue, out)
                with backend_scope(self.owner.backend):
                    return self.run(epilogue, out)
        except InputError as error:
            raise InputError(f"{self.owner.path}: {error}") from None

    def value(self) -> Tensor:
        """The result as floats."""
        out: Tensor = self.compute(NO_EPILOGUE, None)
        return out
