"""A result that is computed when it is known what it is needed as: floats, or packed codes.

A layer of a converted model returns a :class:`Deferred` tensor. What usually follows a layer (a
bias, ReLU, a constant factor, a teleport term) is noted down for the kernel's epilogue. If the next
quantizer asks first, the kernel writes packed codes and no floats ever exist; whatever else touches
the tensor gets the floats, so unknown code stays correct.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor

__all__ = ["Deferred", "Epilogue", "Owner", "Stage", "realised", "stage_of"]

aten = torch.ops.aten


class Owner(Protocol):
    """A layer that remembers whether its results are needed as floats as well."""

    keeps_floats: bool


class Quantizer(Protocol):
    def output(self) -> OutputQuantizer | None: ...

    def pack(self, x: Tensor) -> PackedTensor: ...


@dataclasses.dataclass(frozen=True)
class Epilogue:
    r"""What follows a kernel's sum :math:`y`:
    :math:`\max(0, f k y + \beta a + b)`, each part optional; :math:`k` and :math:`b` have one
    number per column."""

    factor: float = 1.0
    column: Tensor | None = None
    bias: Tensor | None = None
    addend: Tensor | None = None
    addend_scale: float = 1.0
    relu: bool = False

    def apply(self, y: Tensor) -> Tensor:
        """The same on floats."""
        if self.factor != 1.0:
            y = y * self.factor
        if self.column is not None:
            y = y * self.column
        if self.addend is not None:
            y = torch.add(y, self.addend, alpha=self.addend_scale)
        if self.bias is not None:
            y = y + self.bias
        return y.relu() if self.relu else y


Run = Callable[[Epilogue, OutputQuantizer | None], Any]


class Stage:
    r"""A pending kernel with its epilogue, or floats or codes that exist already.

    Args:
        run (callable): Computes, from an :class:`Epilogue` and what to quantize the result to.
        shape (tuple): Rows and columns of the result.
        device (torch.device): Where it will be.
        epilogue (Epilogue, optional): What is to be done to it so far.
        adds (bool): Whether the kernel can add a matrix.
        stretches (bool): Whether the kernel can multiply columns by numbers of their own.
        owner (Owner, optional): The layer it comes from; without one, nothing is fused.
    """

    def __init__(
        self,
        run: Run,
        shape: tuple[int, int],
        device: torch.device,
        epilogue: Epilogue | None = None,
        *,
        adds: bool = False,
        stretches: bool = False,
        owner: Owner | None = None,
    ) -> None:
        self.run, self.shape, self.device = run, shape, device
        self.epilogue = epilogue or Epilogue()
        self.adds, self.stretches, self.owner = adds, stretches, owner
        #: Codes that exist already; every quantizer takes them as they are.
        self.packed: PackedTensor | None = None
        #: Floats that this stage only applies its epilogue to.
        self.base: Stage | None = None
        self._value: Tensor | None = None
        self._num_runs = [0]  # shared by all stages of one kernel
        self._dependents: list[weakref.ref[Stage]] = []

    @classmethod
    def of_value(cls, value: Tensor) -> Stage:
        """Floats that exist already."""
        stage = cls(lambda e, out: value, (value.size(0), value.size(1)), value.device)
        stage._value = value
        return stage

    @classmethod
    def of_packed(cls, packed: PackedTensor) -> Stage:
        """Codes that exist already."""
        shape = (packed.size(0), packed.size(1))
        stage = cls(lambda e, out: packed.dequantize(), shape, packed.device)
        stage.packed = packed
        return stage

    @property
    def is_pending(self) -> bool:
        """Whether a kernel is still to run, so that its epilogue can grow."""
        return self._value is None and self.packed is None

    def then(self, **changes: Any) -> Stage:
        """The same kernel, or the same floats, with a longer epilogue."""
        base = self.base if self._value is None else self
        if base is None:
            epilogue = dataclasses.replace(self.epilogue, **changes)
            after = Stage(
                *(self.run, self.shape, self.device, epilogue),
                adds=self.adds,
                stretches=self.stretches,
                owner=self.owner,
            )
            after._num_runs = self._num_runs
            return after
        value = base.value()
        epilogue = dataclasses.replace(Epilogue() if base is self else self.epilogue, **changes)
        after = Stage(lambda e, out: e.apply(value), self.shape, self.device, epilogue)
        after.base = base
        base.keep_for(after)
        return after

    def value(self) -> Tensor:
        """The result as floats."""
        if self._value is None:
            self._value = self._compute(None)
            self.epilogue, self.base = Epilogue(), None
        return self._value

    def codes(self, quantizer: Quantizer) -> PackedTensor:
        """The result as packed codes of a quantizer."""
        if self.packed is not None:
            return self.packed
        fuses = self.is_pending and self.owner is not None and not self.owner.keeps_floats
        out = quantizer.output() if fuses else None
        if out is None:
            return quantizer.pack(self.value())
        codes: PackedTensor = self._compute(out)
        return codes

    def _compute(self, out: OutputQuantizer | None) -> Any:
        self._num_runs[0] += 1
        if self._num_runs[0] > 1 and self.owner is not None:
            self.owner.keeps_floats = True  # from the next call on: compute once, then quantize
        return self.run(self.epilogue, out)

    # What is noted down must not change before it is used ########################################

    def keep_for(self, dependent: Stage) -> None:
        """Another stage reads this one's floats later."""
        self._dependents.append(weakref.ref(dependent))

    def before_change(self) -> None:
        """Called before somebody may write into the floats."""
        self.value()
        self.packed = None
        for reference in self._dependents:
            dependent = reference()
            if dependent is not None:
                dependent.value()
        self._dependents.clear()


class Deferred(Tensor):
    """A float tensor whose values are those of a :class:`Stage`, once somebody needs them."""

    stage: Stage

    @staticmethod
    def __new__(cls, stage: Stage, shape: tuple[int, ...] | None = None) -> Deferred:
        out: Deferred = Tensor._make_wrapper_subclass(
            cls, shape or stage.shape, dtype=torch.float32, device=stage.device
        )
        out.stage = stage
        return out

    # Everything is decided below autograd, where views and in-place operations are explicit.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        out = NotImplemented if rule is None else rule(*args, **kwargs)
        if out is not NotImplemented:
            return out
        if any(r.alias_info is not None for r in func._schema.returns):
            for tensor in args:  # a view, or an operation in place
                if isinstance(tensor, Deferred):
                    tensor.stage.before_change()
        plain = realised(args)
        out = func(*plain, **realised(kwargs))
        originals = {id(p): a for p, a in zip(plain, args, strict=True)}
        return originals.get(id(out), out)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(realised(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return realised(self).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return realised(self).clone()


def realised(value: Any) -> Any:
    """Plain tensors in place of deferred ones, in any nesting of tuples, lists and dicts."""
    if isinstance(value, Deferred):
        return value.stage.value().view(value.shape)
    if isinstance(value, dict):
        return type(value)({k: realised(v) for k, v in value.items()}) if value else value
    if isinstance(value, (tuple, list)):
        items = [realised(v) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def stage_of(x: Any) -> Stage:
    """The stage of a matrix, whatever it is."""
    if isinstance(x, PackedTensor):
        return Stage.of_packed(x)
    return x.stage if _is_whole(x) else Stage.of_value(realised(x))


def _is_whole(x: Any) -> TypeGuard[Deferred]:
    """Whether a tensor is a stage's result in its own shape, not a view of it."""
    return isinstance(x, Deferred) and tuple(x.shape) == x.stage.shape


# What the epilogue takes over #####################################################################


def _relu(x: Deferred) -> Any:
    return Deferred(x.stage.then(relu=True), x.shape) if x.stage.is_pending else NotImplemented


def _relu_(x: Deferred) -> Any:
    if not x.stage.is_pending:
        return NotImplemented
    x.stage.epilogue = dataclasses.replace(x.stage.epilogue, relu=True)
    return x


def _mul(x: Any, y: Any) -> Any:
    if isinstance(x, (int, float)):
        x, y = y, x
    if not isinstance(x, Deferred) or not isinstance(y, (int, float)) or x.stage.packed:
        return NotImplemented
    return Deferred(_scaled(x.stage, float(y)), x.shape)


def _scaled(stage: Stage, factor: float) -> Stage:
    if stage.epilogue.relu or not stage.adds:
        # After ReLU, or of what is most likely a teleport term and needed as it is as well.
        stage.value()
    e = stage.epilogue
    changes: dict[str, Any] = {"factor": e.factor * factor}
    if e.bias is not None:
        changes["bias"] = e.bias * factor
    if e.addend is not None:
        changes["addend_scale"] = e.addend_scale * factor
    return stage.then(**changes)


def _add(x: Any, y: Any, *, alpha: float = 1.0) -> Any:
    if not isinstance(y, Tensor):
        return NotImplemented
    if _is_whole(x) and _takes_bias(x.stage, y):
        bias = realised(y) if alpha == 1.0 else realised(y) * alpha
        before = x.stage.epilogue.bias
        return Deferred(x.stage.then(bias=bias if before is None else before + bias))
    if x.shape != y.shape or x.dtype != y.dtype:
        return NotImplemented
    if _is_whole(x) and _takes_addend(x.stage):
        return Deferred(_with_addend(x.stage, y, alpha))
    if _is_whole(y) and _takes_addend(y.stage):
        return Deferred(_with_addend(_scaled(y.stage, alpha), x, 1.0))
    return NotImplemented


def _batch_norm(
    x: Any,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    """With statistics that are known, a factor and a constant for every column."""
    if not _is_whole(x) or training or mean is None or variance is None:
        return NotImplemented
    stage, e = x.stage, x.stage.epilogue
    if not stage.is_pending or not stage.stretches or e.relu or e.addend is not None:
        return NotImplemented
    column = torch.rsqrt(variance + eps)
    column = column if weight is None else column * weight
    shift = -mean * column if bias is None else bias - mean * column
    changes = {
        "column": column if e.column is None else column * e.column,
        "bias": shift if e.bias is None else torch.addcmul(shift, column, e.bias),
    }
    none = torch.empty(0, device=stage.device)
    return Deferred(stage.then(**changes)), none, none


def _takes_bias(stage: Stage, bias: Tensor) -> bool:
    fits = bias.shape in ((stage.shape[1],), (1, stage.shape[1])) and stage.shape[0] != 1
    return fits and bias.dtype == torch.float32 and stage.is_pending and not stage.epilogue.relu


def _takes_addend(stage: Stage) -> bool:
    e = stage.epilogue
    return stage.is_pending and stage.adds and not e.relu and e.addend is None


def _with_addend(stage: Stage, other: Tensor, scale: float) -> Stage:
    addend = stage_of(other)
    e, base = addend.epilogue, addend.base
    if base is not None and e.bias is None and e.addend is None and not e.relu:
        addend, scale = base, scale * e.factor  # a constant times floats that exist already
    out = stage.then(addend=addend.value(), addend_scale=scale)
    addend.keep_for(out)
    return out


def _view(x: Deferred, shape: list[int]) -> Any:
    sizes = [int(s) for s in shape]
    if sizes.count(-1) == 1:
        known = 1
        for s in sizes:
            known *= s if s != -1 else 1
        if known == 0:
            return NotImplemented
        sizes[sizes.index(-1)] = x.numel() // known
    return Deferred(x.stage, tuple(sizes))


def _same(x: Deferred) -> Any:
    return Deferred(x.stage, x.shape)


_RULES: dict[Any, Callable[..., Any]] = {
    aten.relu.default: _relu,
    aten.relu_.default: _relu_,
    aten.mul.Tensor: _mul,
    aten.native_batch_norm.default: _batch_norm,
    aten.add.Tensor: _add,
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.detach.default: _same,
}
