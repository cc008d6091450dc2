"""What ``layer.weight`` reads: the parameter, or the values that the model computes with.

Outside of a running model a quantized layer shows its float ``Parameter``, on which initializers,
optimizers and checkpoints work. While a model runs, whoever reads a weight gets its quantized
values: the layer itself, and a model that multiplies by the weight of one of its layers. A
converted layer has nothing else to show; what it shows cannot be written to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_geometric_qlr.codes.mode import computes_on_codes
from torch_geometric_qlr.codes.weights import PackedWeight
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.layers.input_gain import folded
from torch_geometric_qlr.layers.running import running_model, runs_while_traced
from torch_geometric_qlr.layers.state import GAIN, STATE, LayerState, weight_key
from torch_geometric_qlr.quantizers.torch_state import is_abstract

__all__ = ["ReadOnlyWeight", "WeightAccess", "has_no_range", "refuse_write", "weight_codes"]


class WeightAccess:
    """Reads a weight of a layer.

    A data descriptor, so that it wins over the instance. ``nn.Module`` itself stores parameters;
    what else is stored under the name (by ``torch.nn.utils.spectral_norm``, say) goes to the
    instance.
    """

    def __init__(self, name: str) -> None:
        self.name, self.key = name, weight_key(name)

    def __get__(self, layer: Any, owner: type) -> Any:
        if layer is None:
            return self
        state: LayerState | None = layer._modules.get(STATE)
        found = None if state is None else state._modules.get(self.key)
        if isinstance(found, PackedWeight):
            assert state is not None
            return self._unpacked(state, found)
        raw = self._raw(layer, owner)
        if raw is None or state is None or (found is None and GAIN not in state._buffers):
            return raw
        weights = _weights_of_call(state)
        if weights is None:
            return raw
        if self.name not in weights:
            weight = folded(state, self.name, raw)
            if found is not None:
                weight = _quantized(layer, state, self.name, weight)
            weights[self.name] = weight
        return weights[self.name]

    def _raw(self, layer: Any, owner: type) -> Any:
        if self.name in layer._parameters:
            return layer._parameters[self.name]
        if self.name in layer.__dict__:
            return layer.__dict__[self.name]
        raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}")

    def _unpacked(self, state: LayerState, packed: PackedWeight) -> Tensor:
        call = state.call
        if call is None:
            value = packed.dequantize()
            return value if torch.compiler.is_compiling() else value.as_subclass(ReadOnlyWeight)
        if self.name not in call.weights:
            call.weights[self.name] = packed.dequantize()
        return call.weights[self.name]

    def __set__(self, layer: Any, value: Any) -> None:
        refuse_write(layer, self.name)
        layer.__dict__[self.name] = value

    def __delete__(self, layer: Any) -> None:
        refuse_write(layer, self.name)
        del layer.__dict__[self.name]


def has_no_range(weight: Tensor) -> bool:
    r"""Whether a weight holds NaN, Inf, or numbers so large that the width of its range is none,
    as a parameter does that nobody has initialised. It waits for the device, so it is asked of
    weights that have no range yet or are about to be packed, never in a training step that follows
    another.

    Args:
        weight (torch.Tensor): The float weight.
    """
    if is_abstract(weight) or torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    # A number may be the lowest and the highest of its group.
    return not bool(torch.isfinite(weight.detach().abs().sum() * 2))


def _weights_of_call(state: LayerState) -> dict[Any, Tensor] | None:
    """Where the weights of what is running are kept: the layer's call, or else the model's."""
    call = state.call
    if call is not None:
        return call.weights
    if torch.compiler.is_compiling():
        return {} if runs_while_traced() else None
    model = running_model()
    return None if model is None else model.weights.setdefault(state, {})


def _quantized(layer: Any, state: LayerState, name: str, raw: Tensor) -> Tensor:
    packs = computes_on_codes(layer, raw) and raw.dtype == torch.float32
    quantizer: Any = state[weight_key(name)]
    if (packs or not quantizer.has_range) and has_no_range(raw):
        return raw  # it is seen in the result, as in the float model
    if packs:
        return weight_codes(layer, name).dequantize()
    value: Tensor = quantizer(raw)[0]
    return value


def weight_codes(layer: nn.Module, name: str) -> PackedWeight:
    r"""The packed codes of a weight: those of a converted layer, or those of a quantized one as it
    is now. They are made anew in every call, since weights are also written to in ways that leave
    no trace (``weight.data``, as averages of weights do).

    Args:
        layer (torch.nn.Module): The layer.
        name (str): The parameter.
    """
    state: Any = layer._modules[STATE]
    found = state[weight_key(name)]
    if isinstance(found, PackedWeight):
        return found
    # A hook may compute it, as pruning does.
    weight: Any = layer._parameters[name] if name in layer._parameters else layer.__dict__[name]
    return PackedWeight.from_quantizer(found, folded(state, name, weight))


def refuse_write(layer: nn.Module, name: str) -> None:
    r"""Raises if an attribute of a layer is a weight that was packed.

    Args:
        layer (torch.nn.Module): The layer.
        name (str): The attribute that is to be replaced.

    Raises:
        InputError: If it is made of codes.
    """
    state: LayerState | None = layer._modules.get(STATE)  # type: ignore[assignment]
    if state is not None and isinstance(state._modules.get(weight_key(name)), PackedWeight):
        raise _refusal(state.path, name)


def _refusal(path: str, name: str) -> InputError:
    return InputError(
        f"{path}.{name} is made of packed codes, which cannot be written to. Change the float "
        f"weight of the quantized model, and convert it again."
        if path
        else f"{name} is made of packed codes, which cannot be written to. Change the float weight "
        f"of the quantized model, and convert it again."
    )


_HARMLESS = {"requires_grad_", "detach_", "share_memory_", "retain_grad"}
_WRITES = {f"__i{op}__" for op in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")}
_WRITES |= {"__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__", "__setitem__"}
_WRITES |= {"__set__"}


class ReadOnlyWeight(Tensor):
    """The values of a packed weight: a tensor for everything but writing."""

    # Both give its memory away without a word to `__torch_function__`.
    def set_(self, *args: Any, **kwargs: Any) -> Any:
        raise _refusal("", "a weight of a converted layer")

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.clone().__dlpack__(**kwargs)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__") and name not in _HARMLESS
        target = args[0] if args else None
        writes = in_place or name in _WRITES or kwargs.get("inplace") is True
        if _holds(kwargs.get("out")) or (writes and _holds(target)):
            raise _refusal("", "a weight of a converted layer")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*(_plain(a) for a in args), **{k: _plain(v) for k, v in kwargs.items()})
        if isinstance(target, cls):
            result = _still_read_only(result, target)
        if name in ("numpy", "__array__"):
            result.flags.writeable = False
        return result


def _plain(value: Any) -> Any:
    if isinstance(value, ReadOnlyWeight):
        return value.as_subclass(Tensor)
    if type(value) in (tuple, list):
        return type(value)(_plain(v) for v in value)
    return value


def _holds(value: Any) -> bool:
    """Whether a value is such a weight, or a list with one in it."""
    items = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(item, ReadOnlyWeight) for item in items)


def _still_read_only(value: Any, weight: Tensor) -> Any:
    """What shares the memory of a weight cannot be written to either."""
    if type(value) in (tuple, list):
        return type(value)(_still_read_only(v, weight) for v in value)
    if isinstance(value, Tensor) and value.data_ptr() and _shares_memory(value, weight):
        return value.as_subclass(ReadOnlyWeight)
    return value


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    with torch._C.DisableTorchFunctionSubclass():
        return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
