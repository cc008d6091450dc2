"""A result of which only the codes exist, inside a chain whose readers are all known.

When a converted model ran for the first time it was seen that a layer's result goes through a few
known operations to one quantizer and nowhere else (see `recorder.py`). From then on the kernel
does these operations and quantizes on the way out, when the layer is called, and what the layer
returns stands for the floats that were never written. The operations that follow are recognised
and skipped. Should the model take another way this time, the floats are computed after all: the
packed rows that they are made of are still there, and nobody else can change those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_qlr.codes.readings import Readings
from torch_geometric_qlr.codes.stage import NO_EPILOGUE, Epilogue, Stage
from torch_geometric_qlr.codes.steps import (
    HARMLESS,
    IN_PLACE,
    Step,
    function_name,
    recognise,
    version_of,
    with_step,
)
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.tensor import PackedTensor

aten = torch.ops.aten

#: Functions that ask about a tensor, or of which the dispatcher sees all that they do.
_NEEDS_NO_FLOATS = HARMLESS | {
    *("relu", "relu_", "add", "add_", "__add__", "__radd__", "__iadd__", "batch_norm", "dropout"),
    *("view", "reshape", "flatten", "contiguous", "float", "to", "cpu"),
}

#: The same as functions, as far as they were met: names are slow to look up.
_KNOWN: set[Any] = set()

__all__ = ["Chain", "ChainPlan", "Promise", "promised_codes", "realised"]


class ChainPlan:
    r"""What happens to a result between its layer and the quantizer that reads it.

    Args:
        steps (tuple): The operations, in order.
        quantizer (Quantizer): The reader.
    """

    def __init__(self, steps: tuple[Step, ...], quantizer: Any) -> None:
        self.steps, self.quantizer = steps, quantizer
        self.addend_at = next((i for i, s in enumerate(steps) if s.kind == "addend"), None)
        #: Whether nothing is computed from operands, which may be written to between two calls,
        #: also in ways that leave no trace (`.data`).
        self._is_fixed = all(step.kind != "norm" for step in steps)
        self._fixed: tuple[tuple[bool, ...], Epilogue | None] | None = None

    def is_on(self, device: torch.device) -> bool:
        r"""Whether what is computed with lies on a device. It does not if the model was moved with
        new parameters in the place of those that were seen.

        Args:
            device (torch.device): Where the kernel computes.
        """
        return all(t.device == device for step in self.steps for t in step.operands)

    def epilogue(self, stage: Stage, end: int | None = None) -> Epilogue | None:
        """What the kernel does for the result after the first steps, or all of them, with the
        operands as they are now; :obj:`None` if the kernel cannot do this."""
        if end is not None or not self._is_fixed:
            return self._composed(stage, end)
        abilities = (stage.adds, stage.biases, stage.stretches)
        if self._fixed is None or self._fixed[0] != abilities:
            self._fixed = abilities, self._composed(stage, None)
        return self._fixed[1]

    def _composed(self, stage: Stage, end: int | None) -> Epilogue | None:
        made: Epilogue | None = NO_EPILOGUE
        for step in self.steps[:end]:
            if made is None:
                return None
            made = with_step(stage, made, step)
        return made

    def versions(self) -> list[tuple[int, ...]]:
        """For each step what changes with every change in place of its operands."""
        return [step.versions() for step in self.steps]


class Chain:
    r"""One result on its way along a plan.

    Args:
        plan (ChainPlan): The way.
        stage (Stage): The kernel.
        epilogue (Epilogue): What it does after all steps.
        leave (callable): Called when the model takes another way.
    """

    def __init__(
        self,
        plan: ChainPlan,
        stage: Stage,
        epilogue: Epilogue,
        leave: Callable[[], None],
    ) -> None:
        self.plan, self.stage, self.epilogue, self.leave = plan, stage, epilogue, leave
        self.versions = plan.versions()
        self.codes: PackedTensor | None = None
        self._addend: Tensor | None = None
        self._addend_version = 0
        self._values: dict[int, Tensor] = {}
        if plan.addend_at is None:
            self._compute()

    def add(self, addend: Tensor) -> None:
        """The addend has come, so everything that the kernel needs is there."""
        self._addend, self._addend_version = addend, version_of(addend)
        self._compute()

    def _compute(self) -> None:
        last = self.epilogue
        if self._addend is not None:
            last = last._replace(addend=self._addend)
        self.codes = self.stage.compute(last, self.plan.quantizer.output())

    def _base(self, position: int) -> int:
        """The first position that shares memory with this one."""
        while position > 0 and self.plan.steps[position - 1].is_alias:
            position -= 1
        return position

    def has_floats(self, position: int) -> bool:
        """Whether the floats exist, and may have been written to since."""
        return self._base(position) in self._values

    def value(self, position: int, shape: torch.Size) -> Tensor:
        """The floats after so many steps: the model took another way."""
        self.leave()
        base = self._base(position)
        if base not in self._values:
            self._check_unchanged(base)
            epilogue = self.plan.epilogue(self.stage, base)
            assert epilogue is not None
            if epilogue.addend is not None:
                epilogue = epilogue._replace(addend=self._addend)
            self._values[base] = self.stage.compute(epilogue, None)
        return self._values[base].view(shape)

    def _check_unchanged(self, position: int) -> None:
        """A sum that was taken keeps its value; it cannot be taken again if operands changed."""
        needs_addend = self.plan.addend_at is not None and position > self.plan.addend_at
        same = self.versions[:position] == self.plan.versions()[:position]
        if needs_addend:
            assert self._addend is not None
            same = same and version_of(self._addend) == self._addend_version != -1
        if not same:
            raise InputError(
                f"{self.stage.owner.path}: the model reads a result that it did not read when it "
                f"first ran, after what was added to it has been changed in place. Convert it "
                f"with qlr.convert(model, fuse=False)."
            )


class Promise(Tensor):
    """A float tensor whose values are computed when somebody needs them after all."""

    _qlr_promise: Any  # a Chain, a PackedTensor that a user passed, or Readings
    _position: int

    # What is asked most often, answered without the way through torch's functions.
    dtype = torch.float32
    layout = torch.strided

    @staticmethod
    def __new__(cls, made_of: Any, shape: tuple[int, ...], device: Any, at: int = 0) -> Promise:
        out: Promise = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device=device)
        out._qlr_promise, out._position = made_of, at
        return out

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        shortcut = _SHORTCUTS.get(func)
        if shortcut is None and func not in _KNOWN:
            if function_name(func) in _NEEDS_NO_FLOATS:
                _KNOWN.add(func)
            else:  # it may read the memory: from here on these are ordinary tensors
                args, kwargs = realised(args), realised(kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if shortcut is not None and not torch._C._len_torch_dispatch_stack():
                followed = shortcut(*args, **kwargs)
                if followed is not None:
                    return followed
            return func(*args, **kwargs)

    # What is next on the way is seen below autograd, where the same operation has one name.
    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        followed = None if kwargs else _followed(func, args)
        if followed is not None:
            return followed
        plain = _floats_of(args)
        out = func(*plain, **_floats_of(kwargs))
        if func.overloadpacket is torch.ops.aten.set_ and isinstance(args[0], Promise):
            # The one change of a tensor itself that is not seen as a function before.
            args[0]._qlr_promise = plain[0]
        originals = {id(p): a for p, a in zip(plain, args, strict=True)}
        return originals.get(id(out), out)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(realised(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return realised(self).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        out: Tensor = realised(self).clone()
        return out


def _followed(func: Any, args: tuple[Any, ...]) -> Any:
    """The result, if an operation is the next one of the plan of one of its arguments."""
    for x in args[:2]:
        if not isinstance(x, Promise) or not isinstance(x._qlr_promise, Chain):
            continue
        chain, at = x._qlr_promise, x._position
        if at >= len(chain.plan.steps) or chain.has_floats(at):
            continue
        step = recognise(func, args, x, tuple(x.shape) == chain.stage.shape)
        if step is None or not step.is_like(chain.plan.steps[at]):
            continue
        if chain.versions[at] != step.versions():
            continue  # an operand was changed between the layer and the operation
        if step.kind == "addend" and not _takes(chain, _floats_of(_other(args, x))):
            continue
        if func in IN_PLACE:
            x._position += 1
            return x
        shape = (x.size(0), *step.options[1:]) if step.kind == "view" else tuple(x.shape)
        out = Promise(chain, shape, x.device, at + 1)
        return (out, *_NO_STATISTICS) if step.kind == "norm" else out
    return None


_NO_STATISTICS = (torch.empty(0), torch.empty(0))


# The same operations where they are called, which saves the way through torch. What is not next on
# the way is left to torch.


def _relu(input: Any, inplace: bool = False, **others: Any) -> Any:
    if others:
        return None
    return _followed(aten.relu_.default if inplace else aten.relu.default, (input,))


def _add(input: Any, other: Any, **others: Any) -> Any:
    return None if others else _followed(aten.add.Tensor, (input, other))


def _dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return None if training or not 0.0 <= p <= 1.0 else input


def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training:
        return None
    # An operand that wants a gradient has been refused by the op that has read it.
    operands = (input, weight, bias, running_mean, running_var, training, momentum, eps)
    followed = _followed(aten.native_batch_norm.default, operands)
    return None if followed is None else followed[0]


_SHORTCUTS: dict[Any, Callable[..., Any]] = {
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    Tensor.add: _add,
    Tensor.__add__: _add,
    Tensor.__radd__: _add,
    torch.add: _add,
    F.dropout: _dropout,
    F.batch_norm: _batch_norm,
}


def _takes(chain: Chain, addend: Tensor) -> bool:
    if chain.codes is not None:  # something else was added to the same result before
        return False
    chain.add(addend)
    return True


def _other(args: tuple[Any, ...], x: Tensor) -> Any:
    return args[1] if x is args[0] else args[0]


def realised(value: Any) -> Any:
    """The same with ordinary tensors for promises, in any nesting of tuples, lists and dicts.
    Whoever holds a promise holds an ordinary tensor afterwards."""
    return _replaced(value, _become_plain)


def _floats_of(value: Any) -> Any:
    return _replaced(value, _floats)


def _replaced(value: Any, function: Callable[[Promise], Tensor]) -> Any:
    if isinstance(value, Promise):
        return function(value)
    if isinstance(value, dict):
        made = {k: _replaced(v, function) for k, v in value.items()}
        return type(value)(made) if value else value
    if isinstance(value, (tuple, list)):
        items = [_replaced(v, function) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _floats(x: Promise) -> Tensor:
    made_of = x._qlr_promise
    if isinstance(made_of, Chain):
        return made_of.value(x._position, x.shape)
    if isinstance(made_of, (PackedTensor, Readings)):
        # From here on somebody may write into them.
        made_of = x._qlr_promise = made_of.dequantize()
    floats: Tensor = made_of.view(x.shape)
    return floats


def _become_plain(x: Promise) -> Tensor:
    floats = _floats(x)
    try:
        torch.utils.swap_tensors(x, floats)
    except RuntimeError:  # something of C++ or a weak reference holds on to it
        return floats
    return x


def promised_codes(x: Promise, quantizer: Any) -> PackedTensor | None:
    r"""The codes that exist already; :obj:`None` if they are to be made of the floats.

    Args:
        x (Promise): The result.
        quantizer (Quantizer): Who reads it. Codes that a user passed are taken as they are.
    """
    made_of = x._qlr_promise
    if isinstance(made_of, PackedTensor):
        return made_of if tuple(x.shape) == tuple(made_of.shape) else None
    if isinstance(made_of, Readings):
        return made_of.codes_for(quantizer) if tuple(x.shape) == made_of.shape else None
    if not isinstance(made_of, Chain) or made_of.plan.quantizer is not quantizer:
        return None
    at_end = x._position == len(made_of.plan.steps) and not made_of.has_floats(x._position)
    return made_of.codes if at_end else None
