"""What every quantized layer shares: it *is* the float layer, re-classed, plus its quantizers.

Re-classing (``module.__class__ = QuantX``) keeps the parameters, the buffers, the keys of the
``state_dict``, the inherited ``forward`` and everything a user has put on the object. Methods that
the mixins add begin with ``_qlr``, so that they never stand before one of the layer's own.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from torch_geometric_qlr.codes.weight_access import WeightAccess
from torch_geometric_qlr.config import QLRConfig
from torch_geometric_qlr.errors import UnsupportedLayerError
from torch_geometric_qlr.layers.layer_spec import Facts
from torch_geometric_qlr.layers.state import STATE, LayerState, MadeClass, state_of, where_is
from torch_geometric_qlr.nn.copying import ease_copying
from torch_geometric_qlr.quantizers import Quantizer

__all__ = ["QuantLayer", "check_not_parametrized", "forget_classes", "own_state", "quant_class"]


class QuantLayer:
    r"""Mixin of all quantized layers.

    Attributes:
        quantizers (torch.nn.ModuleDict): One quantizer per place, see
            :data:`torch_geometric_qlr.config.POINTS`; raw weights under their own names. (An
            attribute of that name which the layer has itself is left alone.)
        float_class (type): The class of the layer before it was quantized, likewise.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> layer = qlr.quantize(torch.nn.Linear(4, 2), bits=4)
        >>> isinstance(layer, qlr.nn.QuantLayer), type(layer).__name__, list(layer.quantizers)
        (True, 'QuantLinear', ['input', 'weight'])
    """

    _qlr_made: ClassVar[MadeClass]
    _qlr_facts: ClassVar[Facts]

    #: What generated classes are called.
    _qlr_prefix: ClassVar[str] = "Quant"

    # Builds a layer by name. Set by torch_geometric_qlr.nn.rewrite, which stands above.
    _qlr_construct: ClassVar[Callable[[Any, tuple[Any, ...], dict[str, Any]], None]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        QuantLayer._qlr_construct(self, args, kwargs)

    @classmethod
    def _qlr_namespace(cls, base: type[nn.Module]) -> dict[str, Any]:
        """What the quantized class of a float class has besides."""
        return {"_qlr_facts": Facts()}

    # It is a submodule; a property finds it faster than the look-up of a module does.
    @property
    def _qlr(self) -> LayerState:
        return state_of(self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the float layer returns, of rounded numbers."""
        state = self._qlr
        if state.is_inside("forward"):  # a replaced forward asks for the one of the class
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        _check_reachable(self)
        outer = state.begin((args, kwargs))
        try:
            return self._qlr_output(self._qlr_forward(*args, **kwargs))
        finally:
            state.end(outer)

    def _qlr_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The float forward; families quantize their inputs here first."""
        own = super().forward  # type: ignore[misc]
        return self._qlr.method("forward", own)(*args, **kwargs)

    def _qlr_output(self, out: Any) -> Any:
        # Features come first; what may follow them is a state or attention coefficients.
        if "output" not in self._qlr:
            return out
        if type(out) is tuple:
            return (self._qlr.quantize_at("output", out[0]), *out[1:])
        return self._qlr.quantize_at("output", out)

    def reset_parameters(self) -> None:
        r"""Resets the layer's parameters, and the ranges of everything inside it."""
        super().reset_parameters()  # type: ignore[misc]
        self._qlr_reset_ranges()

    def _reset_parameters(self) -> None:  # torch.nn.MultiheadAttention's name for it
        super()._reset_parameters()  # type: ignore[misc]
        self._qlr_reset_ranges()

    def _qlr_reset_ranges(self) -> None:
        # A layer may initialize the weights of its children itself, so their ranges reset here too.
        for module in self.modules():  # type: ignore[attr-defined]
            if isinstance(module, Quantizer):
                module.reset_parameters()
            elif isinstance(module, LayerState):
                module.forget_gain()

    def __repr__(self) -> str:
        text, bits = super().__repr__(), self._qlr.shown_bits()
        # Most layers of PyG show themselves in one line, without what is inside of them.
        if not bits or "\n" in text or not text.endswith(")"):
            return text
        return f"{text[:-1]}{'' if text.endswith('()') else ', '}{bits})"

    # TorchScript knows neither the quantizers nor the ops: said before it says something else.
    def __prepare_scriptable__(self) -> Any:
        raise UnsupportedLayerError(
            f"{self._qlr.path or type(self).__name__}: torch.jit.script does not work on quantized "
            f"or converted layers. Use torch.compile, or script the float model."
        )

    # A generated class cannot be found by its name, so an object is rebuilt from its base.
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        cls = type(self)
        if "_qlr_made" not in vars(cls):  # a subclass that a user has written
            return super().__reduce_ex__(protocol)  # type: ignore[return-value]
        return _rebuild, tuple(cls._qlr_made), own_state(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantLayer:
        rebuild, args, state, *_ = self.__reduce_ex__(4)
        new: QuantLayer = rebuild(*args)
        memo[id(self)] = new
        ease_copying(state, memo)  # such as the edges that a layer caches
        new.__setstate__(copy.deepcopy(state, memo))  # type: ignore[attr-defined]
        return new


def _check_reachable(layer: Any) -> None:
    """Refuses what goes round the quantizers, or knows nothing of them."""
    if torch.jit.is_tracing():
        raise UnsupportedLayerError(
            f"{where_is(layer)}: torch.jit.trace does not work on quantized or converted models. "
            f"Use torch.compile, or trace the float model."
        )
    check_not_parametrized(layer)


def check_not_parametrized(layer: Any) -> None:
    r"""Refuses a weight that was parametrized after the layer had been quantized.

    Args:
        layer (QuantLayer): The layer.

    Raises:
        UnsupportedLayerError: If a quantized weight is parametrized.
    """
    if "parametrizations" not in layer._modules:
        return
    changed = [n for n in type(layer)._qlr_made.weight_names if n in layer.parametrizations]
    if changed:
        raise UnsupportedLayerError(
            f"{where_is(layer)}: its {changed[0]} was parametrized after the layer had been "
            f"quantized, which goes round the quantizer. Parametrize the float model; "
            f"qlr.plan(model) says what is quantized then."
        )


def own_state(layer: Any) -> Any:
    """What the layer itself wants to be copied and pickled."""
    getstate = getattr(layer, "__getstate__", None)  # object has one since Python 3.11
    state = layer.__dict__ if getstate is None else getstate()
    return layer.__dict__ if state is None else state


_CLASSES: dict[MadeClass, type] = {}


def quant_class(
    mixin: type[QuantLayer], base: type[nn.Module], weight_names: tuple[str, ...] = ()
) -> type[Any]:
    r"""The quantized class of a float class; one per base, made once.

    Args:
        mixin (type): The family's :class:`QuantLayer`.
        base (type): The float class.
        weight_names (tuple): Parameters that are read through a quantizer.
    """
    wrapper: Any = base
    if hasattr(wrapper, "_qlr_wrapped"):
        # What wraps the propagation of a layer wraps that of its quantized form just so.
        return wrapper._qlr_wrap(quant_class(mixin, wrapper._qlr_wrapped, weight_names))
    made = MadeClass(mixin, base, weight_names)
    if made not in _CLASSES:
        namespace: dict[str, Any] = {name: WeightAccess(name) for name in weight_names}
        namespace |= {
            "__init__": _init_of(base),
            "forward": _forward_of(mixin, base),
            # PyG caches generated code under "<module>_<name>": the base's module keeps it unique.
            "__module__": base.__module__,
            "__doc__": f"{base.__name__} with learned quantization, see {mixin.__name__}.",
            "_qlr_made": made,
        }
        namespace |= mixin._qlr_namespace(base)
        free = {n: c for n, c in _CONVENIENCES.items() if not hasattr(base, n)}
        namespace = {**free, **namespace}
        bases: tuple[Any, ...] = (mixin, base)
        _CLASSES[made] = type(f"{mixin._qlr_prefix}{base.__name__}", bases, namespace)
    return _CLASSES[made]


def forget_classes(base: type[nn.Module]) -> None:
    r"""Quantized classes of a float class, and of those derived from it, are made anew from now on.

    Args:
        base (type): The float class, of which other things are known now.
    """
    for made in [made for made in _CLASSES if issubclass(made.base, base)]:
        del _CLASSES[made]


class _Convenience:
    """A public name for something private, which steps back for an attribute of the layer's own:
    no data descriptor, so that what is on the object wins."""

    def __init__(self, name: str, read: Callable[[Any], Any]) -> None:
        self.name, self.read = name, read

    def __get__(self, layer: Any, owner: type) -> Any:
        if layer is None:
            return self
        for own in (layer._parameters, layer._buffers, layer._modules):
            if self.name in own:
                return own[self.name]
        return self.read(layer)


_CONVENIENCES = {
    "quantizers": _Convenience("quantizers", lambda layer: layer._modules[STATE]),
    "float_class": _Convenience("float_class", lambda layer: type(layer)._qlr_made.base),
}


def _init_of(base: type[nn.Module]) -> Any:
    # For help(): what the float layer takes, then what to quantize and how.
    def __init__(self: QuantLayer, *args: Any, **kwargs: Any) -> None:
        QuantLayer.__init__(self, *args, **kwargs)

    keyword = inspect.Parameter.KEYWORD_ONLY
    taken = dict(inspect.signature(base.__init__).parameters)
    rest = [taken.pop(n) for n, p in tuple(taken.items()) if p.kind is p.VAR_KEYWORD]
    config = [
        inspect.Parameter(f.name, keyword, default=_default(f), annotation=f.type)
        for f in dataclasses.fields(QLRConfig)
        if f.name not in taken
    ]
    config.append(inspect.Parameter("config", keyword, default=None, annotation="QLRConfig | None"))
    signature = inspect.Signature([*taken.values(), *config, *rest])
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


def _default(field: dataclasses.Field[Any]) -> Any:
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def _forward_of(mixin: type[QuantLayer], base: type[nn.Module]) -> Any:
    # The same function under the base's signature, which PyG, torch.export and people look at.
    @functools.wraps(base.forward)
    def forward(self: QuantLayer, *args: Any, **kwargs: Any) -> Any:
        return mixin.forward(self, *args, **kwargs)

    return forward


def _rebuild(mixin: type[QuantLayer], base: type[nn.Module], names: tuple[str, ...]) -> QuantLayer:
    cls: Any = quant_class(mixin, base, names)
    layer: QuantLayer = cls.__new__(cls)
    return layer
