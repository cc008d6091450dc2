"""The operations between two layers that a kernel can take over, recognised below autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_geometric_qlr.codes.stage import Epilogue, Stage

__all__ = ["HARMLESS", "IN_PLACE", "Step", "function_name", "recognise", "version_of", "with_step"]

aten = torch.ops.aten

#: Those that write into their first argument and return it.
IN_PLACE = {aten.relu_.default, aten.add_.Tensor}


#: Functions and properties that ask about a tensor and never read its values.
HARMLESS = {
    *("__hash__", "__len__", "device", "dim", "dtype", "element_size", "get_device", "grad_fn"),
    *("has_names", "is_complex", "is_contiguous", "is_cpu", "is_cuda", "is_floating_point"),
    *("is_inference", "is_leaf", "is_meta", "is_mps", "is_nested", "is_quantized", "is_signed"),
    *("is_sparse", "is_sparse_csr", "itemsize", "layout", "names", "nbytes", "ndim"),
    *("ndimension", "nelement", "numel", "requires_grad", "shape", "size", "storage_offset"),
    *("stride", "type"),
}


class Step(NamedTuple):
    r"""One operation on a result.

    Args:
        kind (str): :obj:`"relu"`, :obj:`"bias"`, :obj:`"addend"`, :obj:`"norm"`, :obj:`"view"` or
            :obj:`"same"`.
        operands (tuple): Parameters and buffers of the model that it reads.
        options (tuple): Plain values that belong to it.
    """

    kind: str
    operands: tuple[Tensor, ...] = ()
    options: tuple[Any, ...] = ()

    def is_like(self, other: Step) -> bool:
        """Whether it is the same operation with the same operands."""
        return (
            self.kind == other.kind
            and self.options == other.options
            and len(self.operands) == len(other.operands)
            and all(a is b for a, b in zip(self.operands, other.operands, strict=True))
        )

    def versions(self) -> tuple[int, ...]:
        """Changes with every change in place of an operand."""
        return tuple(map(version_of, self.operands)) if self.operands else ()

    @property
    def is_alias(self) -> bool:
        """Whether what it gives shares the memory of what it was given."""
        return self.kind in ("view", "same")


def recognise(func: Any, args: tuple[Any, ...], x: Tensor, is_whole: bool) -> Step | None:
    r"""The step that an operation is for one of its arguments.

    Args:
        func (OpOverload): The operation.
        args (tuple): Its positional arguments.
        x (torch.Tensor): The argument.
        is_whole (bool): Whether it has the rows and columns of the kernel's result.

    Returns:
        Step: Or :obj:`None` for an operation that no kernel takes over.
    """
    rule = _RULES.get(func)
    return None if rule is None else rule(args, x, is_whole)


def _relu(args: tuple[Any, ...], x: Tensor, is_whole: bool) -> Step | None:
    return Step("relu")


def _add(args: tuple[Any, ...], x: Tensor, is_whole: bool) -> Step | None:
    a, b = args[0], args[1]
    other = b if a is x else a
    if not is_whole or other is x or not isinstance(other, Tensor) or x.dim() != 2:
        return None
    if other.dtype != torch.float32 or other.layout != torch.strided or other.requires_grad:
        return None
    is_bias = other.shape in ((x.size(1),), (1, x.size(1))) and x.size(0) != 1
    if is_bias:
        # Whoever can change it in between would change a sum that is taken already.
        return Step("bias", (other,)) if isinstance(other, nn.Parameter) else None
    return Step("addend") if other.shape == x.shape else None


def _batch_norm(args: tuple[Any, ...], x: Tensor, is_whole: bool) -> Step | None:
    of, *statistics, training, _, eps = args
    weight, bias, mean, variance = statistics
    if of is not x or not is_whole or training or x.dim() != 2 or mean is None or variance is None:
        return None
    affine = weight is not None, bias is not None
    return Step("norm", tuple(t for t in statistics if t is not None), (eps, *affine))


def _view(args: tuple[Any, ...], x: Tensor, is_whole: bool) -> Step | None:
    sizes = [int(s) for s in args[1]]
    if sizes.count(-1) == 1:
        known = 1
        for s in sizes:
            known *= 1 if s == -1 else s
        if known == 0:
            return None
        sizes[sizes.index(-1)] = x.numel() // known
    return Step("view", (), (sizes[0] == x.size(0), *sizes[1:]))


def _same(args: tuple[Any, ...], x: Tensor, is_whole: bool) -> Step | None:
    return Step("same")


_RULES: dict[Any, Callable[[tuple[Any, ...], Tensor, bool], Step | None]] = {
    aten.relu.default: _relu,
    aten.relu_.default: _relu,
    aten.add.Tensor: lambda args, x, whole: _add(args, x, whole) if len(args) == 2 else None,
    aten.add_.Tensor: lambda args, x, whole: (
        _add(args, x, whole) if len(args) == 2 and args[0] is x else None
    ),
    aten.native_batch_norm.default: _batch_norm,
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.alias.default: _same,
    aten.detach.default: _same,
}


def with_step(stage: Stage, epilogue: Epilogue, step: Step) -> Epilogue | None:
    r"""An epilogue that does one step more; :obj:`None` if the kernel cannot, or would round in
    another order. What an addend is comes with the call.

    Args:
        stage (Stage): The kernel.
        epilogue (Epilogue): What it does so far.
        step (Step): What comes next.
    """
    e = epilogue
    if step.is_alias:
        return e
    if step.kind == "relu":
        return e._replace(relu=True)
    if step.kind == "bias":
        if not stage.biases or e.bias is not None or e.relu:
            return None
        return e._replace(bias=step.operands[0])
    if step.kind == "addend":
        if not stage.adds or e.addend is not None or e.bias is not None or e.relu:
            return None
        return e._replace(addend=_TO_COME)
    if not stage.stretches or e.column is not None or e.addend is not None or e.relu:
        return None
    column, shift = _column_and_shift(step)
    if e.bias is not None:
        shift = torch.addcmul(shift, column, e.bias.view(-1))
    return e._replace(column=column, bias=shift)


#: Stands for an addend that is not known yet.
_TO_COME = torch.empty(0)


def _column_and_shift(step: Step) -> tuple[Tensor, Tensor]:
    """Batch norm with statistics that are known: a factor and a constant for every column."""
    eps, has_weight, has_bias = step.options
    operands = list(step.operands)
    weight = operands.pop(0) if has_weight else None
    bias = operands.pop(0) if has_bias else None
    mean, variance = operands
    column = torch.rsqrt(variance + eps)
    column = column if weight is None else column * weight
    return column, -mean * column if bias is None else bias - mean * column


def version_of(t: Tensor) -> int:
    """Changes with every change in place of a tensor that counts them."""
    return -1 if t.is_inference() else t._version


def function_name(func: Any) -> str:
    """The name of a function, or of the property whose getter it is."""
    owner = getattr(func, "__self__", None)
    if getattr(func, "__name__", "") == "__get__" and owner is not None:
        return str(getattr(owner, "__name__", ""))
    return str(getattr(func, "__name__", ""))
