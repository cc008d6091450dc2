"""What every quantized layer shares: it *is* the float layer, re-classed, plus its quantizers.

Re-classing (``module.__class__ = QuantX``) keeps the parameters, the buffers, the keys of the
``state_dict``, the inherited ``forward`` and everything a user has put on the object. A weight is
quantized by a class-level property, and only while the layer computes: from outside,
``layer.weight`` is the float ``Parameter`` that initializers, optimizers and checkpoints work on.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torch_geometric_qlr.config import QLRConfig
from torch_geometric_qlr.quantizers import LearnedRangeQuant

__all__ = ["QuantLayer", "is_quantizable", "layer_path", "quant_class"]


def is_quantizable(value: Any) -> bool:
    """Whether a value is a dense tensor of floats."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided


class _QuantizedWeight:
    """Reads a parameter through its quantizer while the layer computes.

    A data descriptor, so that it wins over the instance. ``nn.Module`` itself stores parameters;
    what else is stored under the name (by ``torch.nn.utils.spectral_norm``, say) goes to the
    instance.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, layer: QuantLayer | None, owner: type) -> Any:
        if layer is None:
            return self
        parameters: dict[str, Any] = layer._parameters  # type: ignore[attr-defined]
        if self.name not in parameters and self.name not in layer.__dict__:
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}")
        raw = parameters[self.name] if self.name in parameters else layer.__dict__[self.name]
        weights = layer.__dict__.get("_quantized_weights")
        if raw is None or weights is None or self.name not in layer.quantizers:
            return raw
        if self.name not in weights:
            weights[self.name] = layer.quantizers[self.name](raw)[0]
        return weights[self.name]

    def __set__(self, layer: QuantLayer, value: Any) -> None:
        layer.__dict__[self.name] = value

    def __delete__(self, layer: QuantLayer) -> None:
        del layer.__dict__[self.name]


def layer_path(layer: QuantLayer) -> str:
    """Where a layer sat in the model when it was quantized, for error messages."""
    quantizers = (q for q in layer.quantizers.modules() if isinstance(q, LearnedRangeQuant))
    return next((q.path.rpartition(".")[0] for q in quantizers), type(layer).__name__)


class QuantLayer:
    r"""Mixin of all quantized layers.

    Attributes:
        float_class (type): The class of the layer before it was quantized.
        quantizers (torch.nn.ModuleDict): One quantizer per place, see
            :data:`torch_geometric_qlr.config.POINTS`; raw weights under their own names.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> layer = qlr.quantize(torch.nn.Linear(4, 2), bits=4)
        >>> isinstance(layer, qlr.nn.QuantLayer), type(layer).__name__, list(layer.quantizers)
        (True, 'QuantLinear', ['input', 'weight'])
    """

    float_class: ClassVar[type[nn.Module]]
    weight_names: ClassVar[tuple[str, ...]]
    quantizers: nn.ModuleDict
    _quantized_weights: dict[str, Tensor] | None

    # What generated classes are called, and how they read a weight.
    class_prefix: ClassVar[str] = "Quant"
    weight_access: ClassVar[type] = _QuantizedWeight

    # Builds a layer by name. Set by torch_geometric_qlr.nn.rewrite, which stands above.
    construct: ClassVar[Callable[[Any, tuple[Any, ...], dict[str, Any]], None]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        QuantLayer.construct(self, args, kwargs)

    def quantizer_at(self, point: str) -> nn.Module:
        """The quantizer that acts at a place now."""
        return self.quantizers[point]

    def quantize_at(self, point: str, value: Any) -> Any:
        """The value through the quantizer of that place, if there is one. Tensors in a tuple or a
        dict share its range; what holds no features (integers, sparse tensors) passes."""
        if point not in self.quantizers:
            return value
        if isinstance(value, (tuple, list)):
            items = [self.quantize_at(point, v) for v in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {k: self.quantize_at(point, v) for k, v in value.items()}
        return self.quantizer_at(point)(value)[0] if is_quantizable(value) else value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outer = self._quantized_weights
        self._quantized_weights = {}
        try:
            return self._quantize_output(self.quantized_forward(*args, **kwargs))
        finally:
            self._quantized_weights = outer

    def _quantize_output(self, out: Any) -> Any:
        # Features come first; what may follow them is a state or attention coefficients.
        if type(out) is tuple:
            return (self.quantize_at("output", out[0]), *out[1:])
        return self.quantize_at("output", out)

    def quantized_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The float forward; families quantize their inputs here first."""
        return super().forward(*args, **kwargs)  # type: ignore[misc]

    def reset_parameters(self) -> None:
        r"""Resets the layer's parameters, and the ranges of everything inside it."""
        super().reset_parameters()  # type: ignore[misc]
        self._reset_ranges()

    def _reset_parameters(self) -> None:  # torch.nn.MultiheadAttention's name for it
        super()._reset_parameters()  # type: ignore[misc]
        self._reset_ranges()

    def _reset_ranges(self) -> None:
        # A layer may initialize the weights of its children itself, so their ranges reset here too.
        for module in self.modules():  # type: ignore[attr-defined]
            if isinstance(module, LearnedRangeQuant):
                module.reset_parameters()

    # A generated class cannot be found by its name, so an object is rebuilt from its base.
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        cls = type(self)
        if "float_class" not in vars(cls):  # a subclass that a user has written
            return super().__reduce_ex__(protocol)  # type: ignore[return-value]
        mixin = next(
            c for c in cls.__mro__ if issubclass(c, QuantLayer) and "float_class" not in vars(c)
        )
        return _rebuild, (mixin, cls.float_class, cls.weight_names), self.__dict__

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantLayer:
        rebuild, args, *_ = self.__reduce_ex__(4)
        new: QuantLayer = rebuild(*args)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__dict__, memo))  # type: ignore[attr-defined]
        return new


_CLASSES: dict[tuple[type, type, tuple[str, ...]], type] = {}


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
    if hasattr(wrapper, "wrapped_class"):
        # What wraps the propagation of a layer wraps that of its quantized form just so.
        return wrapper.wrap(quant_class(mixin, wrapper.wrapped_class, weight_names))
    key = (mixin, base, weight_names)
    if key not in _CLASSES:
        namespace: dict[str, Any] = {name: mixin.weight_access(name) for name in weight_names}
        namespace |= {
            "__init__": _init_of(base),
            "forward": _forward_of(mixin, base),
            # PyG caches generated code under "<module>_<name>": the base's module keeps it unique.
            "__module__": base.__module__,
            "__doc__": f"{base.__name__} with learned quantization, see {mixin.__name__}.",
            "float_class": base,
            "weight_names": weight_names,
        }
        namespace |= mixin._namespace(base) if hasattr(mixin, "_namespace") else {}
        bases: tuple[Any, ...] = (mixin, base)
        _CLASSES[key] = type(f"{mixin.class_prefix}{base.__name__}", bases, namespace)
    return _CLASSES[key]


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
