"""What every quantized layer shares: it *is* the float layer, re-classed, plus a dict of quantizers.

Re-classing (``module.__class__ = QuantX``) keeps the parameters, the buffers, the keys of the
``state_dict``, the inherited ``forward`` and everything a user has put on the object. A weight is
quantized by a class-level property, and only while the layer computes: from outside,
``layer.weight`` is the float ``Parameter`` that initializers, optimizers and checkpoints work on.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from torch import Tensor, nn

from torch_geometric_qlr.quantizers import LearnedRangeQuant

__all__ = ["QuantLayer", "quant_class"]


class _QuantizedWeight:
    """Reads a parameter through its quantizer while the layer computes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, layer: QuantLayer | None, owner: type) -> Any:
        if layer is None:
            return self
        raw = layer._parameters.get(self.name)  # type: ignore[attr-defined]
        weights = layer.__dict__.get("_quantized_weights")
        if raw is None or weights is None or self.name not in layer.quantizers:
            return raw
        if self.name not in weights:
            weights[self.name] = layer.quantizers[self.name](raw)[0]
        return weights[self.name]

    # A data descriptor, so that it wins over the instance. nn.Module.__setattr__ never calls it for
    # a Parameter; whatever else is assigned to a weight is refused there as well.
    def __set__(self, layer: QuantLayer, value: Any) -> None:
        raise TypeError(f"cannot assign {type(value).__name__} to the parameter {self.name!r}")


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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The base must see itself, not this class, while it inspects its own signatures.
        from torch_geometric_qlr.nn.rewrite import construct

        construct(self, type(self).float_class, args, kwargs)

    def quantize_at(self, point: str, value: Any) -> Any:
        """The value through the quantizer of that place, if there is one."""
        if point not in self.quantizers or not isinstance(value, Tensor):
            return value
        quantizer = self.quantizers[point]
        assert isinstance(quantizer, LearnedRangeQuant)
        return quantizer(value)[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outer = self._quantized_weights
        self._quantized_weights = {}
        try:
            return self.quantize_at("output", self.quantized_forward(*args, **kwargs))
        finally:
            self._quantized_weights = outer

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
        mixin = next(c for c in type(self).__mro__[1:] if issubclass(c, QuantLayer))
        return _rebuild, (mixin, self.float_class, self.weight_names), self.__dict__

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantLayer:
        new = _rebuild(*self.__reduce_ex__(4)[1])
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
    key = (mixin, base, weight_names)
    if key not in _CLASSES:
        namespace: dict[str, Any] = {name: _QuantizedWeight(name) for name in weight_names}
        namespace |= {
            # PyG caches generated code under "<module>_<name>": the base's module keeps it unique.
            "__module__": base.__module__,
            "__doc__": f"{base.__name__} with learned quantization, see {mixin.__name__}.",
            "float_class": base,
            "weight_names": weight_names,
        }
        namespace |= mixin._namespace(base) if hasattr(mixin, "_namespace") else {}
        _CLASSES[key] = type(f"Quant{base.__name__}", (mixin, base), namespace)
    return _CLASSES[key]


def _rebuild(mixin: type[QuantLayer], base: type[nn.Module], names: tuple[str, ...]) -> QuantLayer:
    cls = quant_class(mixin, base, names)
    layer: QuantLayer = cls.__new__(cls)
    return layer
