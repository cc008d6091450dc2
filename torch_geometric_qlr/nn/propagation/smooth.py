"""Any propagation, taken as a smoothness-aware step: the layer keeps its class, re-classed."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.nn.layer import QuantLayer
from torch_geometric_qlr.nn.message_passing import QuantMessagePassing, uncompiled_propagate
from torch_geometric_qlr.nn.propagation._common import num_entries
from torch_geometric_qlr.nn.propagation._step import (
    MultiplierState,
    Primal,
    Projection,
    check_options,
    constrained_step,
    gradient_step,
    initial_multiplier,
)
from torch_geometric_qlr.quantizers import LearnedRangeQuant

__all__ = ["SmoothMessagePassing", "SmoothOptions", "smooth_layer"]


@dataclass(frozen=True, kw_only=True)
class SmoothOptions:
    r"""How propagation is smoothed; the names are those of :class:`~torch_geometric_qlr.nn.SMP`.

    Raises:
        ConfigError: If an option has no such value.
    """

    mu: float = 9.0
    eta: float = 0.1
    tau: float = 1e-3
    eta_lambda: float = 1e-5
    eta_slack: float = 1e-5
    init_lambda: float = 1e-3
    init_slack: float = 1e-3
    correction: bool = True
    primal: Primal = "paper"
    multiplier_state: MultiplierState = "forward"
    projection: Projection | None = None
    detach_multiplier: bool = False

    def __post_init__(self) -> None:
        check_options("SmoothPropagation", self)

    @property
    def products(self) -> int:
        """How often a step propagates: the representation, and its change."""
        return 2 if self.correction else 1


@dataclass
class _Pass:
    """What lasts from the first propagation of a forward to its last."""

    teleport: Tensor
    bound: float
    state: tuple[Tensor, Tensor]


class SmoothMessagePassing(MessagePassing):
    r"""Mixin of layers whose every propagation is a step of
    :class:`~torch_geometric_qlr.nn.SMP`, with the layer's own operator :math:`\mathbf{P}`.

    Made by :class:`~torch_geometric_qlr.transforms.SmoothPropagation`. It stays outside of what
    quantizes, so that both products of a step are quantized like any other.
    """

    #: The class whose propagation is smoothed, and what it hands to `propagate` as features.
    wrapped_class: ClassVar[type[nn.Module]]
    smooth_options: SmoothOptions
    smoothing_note: str
    _smooth_source: str
    _pass: _Pass | None = None

    @property
    def products_per_hop(self) -> int:
        """How often the layer's operator is applied where it used to be applied once."""
        return self.smooth_options.products

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._check_one_set(args[0] if args else kwargs.get("x"))
        outer, self._pass = self._pass, None
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._keep_state()
            self._pass = outer

    def reset_parameters(self) -> None:
        r"""Resets the layer's parameters, and starts a persistent multiplier anew."""
        super().reset_parameters()
        if self._is_persistent:
            self.smooth_multiplier.fill_(self.smooth_options.init_lambda)
            self.smooth_slack.fill_(self.smooth_options.init_slack)

    def propagate(self, edge_index: Any, *args: Any, **kwargs: Any) -> Any:
        options, value = self.smooth_options, kwargs[self._smooth_source]
        end = 0 if self.flow == "source_to_target" else 1
        h = value[end] if isinstance(value, (tuple, list)) else value
        now = self._start(h, edge_index) if self._pass is None else self._pass

        def product(x: Tensor) -> Tensor:
            if isinstance(value, (tuple, list)):
                pair = (x, value[1]) if end == 0 else (value[0], x)
                return self._propagate_once(edge_index, kwargs, pair)
            return self._propagate_once(edge_index, kwargs, x)

        out = gradient_step(options, h, product(h), now.teleport)
        if options.correction:
            change = out - h
            out, now.state, _ = constrained_step(
                options, out, change, product(change), now.state, now.bound
            )
        self._pass = now
        return out

    def _propagate_once(self, edge_index: Any, kwargs: dict[str, Any], x: Any) -> Tensor:
        kwargs = {**kwargs, self._smooth_source: x}
        quantizes = isinstance(self, QuantMessagePassing)
        if not quantizes and (self.explain or self.decomposed_layers > 1):
            out: Tensor = uncompiled_propagate()(self, edge_index, **kwargs)
            return out
        out = super().propagate(edge_index, **kwargs)
        return out

    def _start(self, h: Tensor, edge_index: Any) -> _Pass:
        if self._is_persistent:
            # Copies: backward needs the values that this call started with.
            state = (self.smooth_multiplier.clone(), self.smooth_slack.clone())
        else:
            state = initial_multiplier(self.smooth_options, h)
        bound = self.smooth_options.tau * num_entries(edge_index)
        return _Pass(self.smooth_options.eta * h, bound, state)

    def _keep_state(self) -> None:
        if self._is_persistent and self.training and self._pass is not None:
            multiplier, slack = self._pass.state
            self.smooth_multiplier.copy_(multiplier.detach())
            self.smooth_slack.copy_(slack.detach())

    @property
    def _is_persistent(self) -> bool:
        return self.smooth_options.multiplier_state == "persistent"

    def _check_one_set(self, x: Any) -> None:
        if isinstance(x, (tuple, list)) and any(other is not x[0] for other in x[1:]):
            raise InputError(
                f"{type(self).__name__}: x is a pair, one set of nodes sending to another. "
                f"Smoothing compares a representation with what was propagated, so both must be "
                f"the same nodes: pass one x, or exclude the layer from SmoothPropagation."
            )

    # A generated class cannot be found by its name, so an object is rebuilt from what it wraps.
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if isinstance(self, QuantLayer):
            rebuild, args, state, *_ = super().__reduce_ex__(protocol)
        else:
            rebuild, args, state = _new, (type(self).wrapped_class,), self.__dict__
        return _rebuild, (rebuild, args), state

    def __deepcopy__(self, memo: dict[int, Any]) -> SmoothMessagePassing:
        rebuild, args, state = self.__reduce_ex__(4)
        new: SmoothMessagePassing = rebuild(*args)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(state, memo))
        return new

    @classmethod
    def wrap(cls, wrapped: type[nn.Module]) -> type[Any]:
        """The smooth class of a layer class, quantized or not."""
        return _smooth_class(wrapped)


_CLASSES: dict[type, type] = {}


def _smooth_class(wrapped: type[nn.Module]) -> type[Any]:
    if wrapped not in _CLASSES:
        _CLASSES[wrapped] = _make_class(wrapped)
    return _CLASSES[wrapped]


def _make_class(wrapped: type[Any]) -> type[Any]:
    # PyG switches between three names of `propagate`; all of them are the smoothing one. The
    # signature of the forward stays that of the layer.
    propagate = SmoothMessagePassing.__dict__["propagate"]
    namespace: dict[str, Any] = dict.fromkeys(
        ("propagate", "_orig_propagate", "_jinja_propagate"), propagate
    )

    @functools.wraps(wrapped.forward)
    def forward(self: SmoothMessagePassing, *args: Any, **kwargs: Any) -> Any:
        return SmoothMessagePassing.forward(self, *args, **kwargs)

    namespace |= {
        "forward": forward,
        # PyG looks for methods that a class has of its own, not for those of a mixin before it.
        "message": wrapped.message,
        "edge_updater": wrapped.edge_updater,
        "__module__": wrapped.__module__,
        "__doc__": f"{wrapped.__name__} whose propagation is smoothed.",
        "wrapped_class": wrapped,
    }
    if issubclass(wrapped, QuantLayer):
        namespace["float_class"] = wrapped.float_class
    bases: tuple[Any, ...] = (SmoothMessagePassing, wrapped)
    return type(f"Smooth{wrapped.__name__}", bases, namespace)


def smooth_layer(layer: MessagePassing, source: str, options: SmoothOptions, note: str) -> None:
    r"""Makes the propagation of a layer smooth, in place.

    Args:
        layer (MessagePassing): The layer, quantized or not.
        source (str): The argument of :obj:`propagate` that holds its features.
        options (SmoothOptions): How.
        note (str): What :func:`torch_geometric_qlr.plan` says of the layer.
    """
    layer.smooth_options = options
    layer.smoothing_note = note
    layer._smooth_source = source
    layer.__dict__.pop("propagate", None)
    # Features that a layer cached were propagated in another way.
    for name in [n for n in layer.__dict__ if n.startswith("_cached_")]:
        setattr(layer, name, None)
    if options.multiplier_state == "persistent":
        tensor = next(iter([*layer.parameters(), *layer.buffers()]), torch.empty(0))
        for name, start in (("multiplier", options.init_lambda), ("slack", options.init_slack)):
            layer.register_buffer(f"smooth_{name}", torch.tensor(start, device=tensor.device))
    if isinstance(layer, QuantMessagePassing) and options.products > 1:
        _double_quantizers(layer)
    layer.__class__ = _smooth_class(type(layer))


def _double_quantizers(layer: QuantMessagePassing) -> None:
    """Every hop gets a second quantizer, for its change; the first keeps its range."""
    for point, found in layer.quantizers.items():
        if not (point.startswith("source_") or point in ("message", "aggregate")):
            continue
        doubled: list[LearnedRangeQuant] = []
        for quantizer in found if isinstance(found, nn.ModuleList) else [found]:
            assert isinstance(quantizer, LearnedRangeQuant)
            fresh = copy.deepcopy(quantizer)
            fresh.reset_parameters()
            doubled += [quantizer, fresh]
        for hop, quantizer in enumerate(doubled):
            quantizer.path = _at_hop(quantizer.path, hop)
        layer.quantizers[point] = nn.ModuleList(doubled).train(layer.training)


def _at_hop(path: str, hop: int) -> str:
    path = re.sub(r", hop \d+", "", path)
    return f"{path[:-1]}, hop {hop})" if path.endswith(")") else f"{path}, hop {hop}"


def _new(cls: type[Any]) -> Any:
    return object.__new__(cls)


def _rebuild(rebuild: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    layer = rebuild(*args)
    layer.__class__ = _smooth_class(type(layer))
    return layer
