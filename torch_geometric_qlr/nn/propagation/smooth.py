"""Any propagation, taken as a smoothness-aware step: the layer keeps its class, re-classed."""

from __future__ import annotations

import copy
import functools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.layers.pyg import (
    PROPAGATE_NAMES,
    drop_bound_propagate,
    forget_cached,
    uncompiled_propagate,
)
from torch_geometric_qlr.nn.layer import QuantLayer, own_state
from torch_geometric_qlr.nn.message_passing import QuantMessagePassing
from torch_geometric_qlr.nn.propagation._common import num_entries
from torch_geometric_qlr.nn.propagation._step import (
    MultiplierState,
    Primal,
    Projection,
    check_options,
)
from torch_geometric_qlr.ops.smoothing import (
    constrained_step,
    gradient_step,
    initial_multiplier,
)
from torch_geometric_qlr.quantizers import Quantizer

__all__ = ["SmoothMessagePassing", "SmoothOptions", "SmoothState", "smooth_layer"]


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
class SmoothState:
    r"""What is known of a smooth layer; its attribute ``_qlr_smooth``.

    Args:
        options (SmoothOptions, optional): How it is smoothed; :obj:`None` if it is not.
        source (str): What it hands to `propagate` as features.
        note (str): What :func:`torch_geometric_qlr.plan` says of it.
    """

    options: Any
    source: str
    note: str


@dataclass
class _Pass:
    """What lasts from the first propagation of a forward to its last."""

    teleport: Tensor
    bound: float
    state: tuple[Tensor, Tensor]


class _Running(threading.local):
    """The forward of each smooth layer that runs in this thread."""

    def __init__(self) -> None:
        self.passes: dict[nn.Module, _Pass] = {}


_RUNNING = _Running()


def _passes(layer: Any) -> dict[nn.Module, _Pass]:
    """Where the running forward is kept: not on the layer, unless it is being traced."""
    if torch.compiler.is_compiling():
        passes: dict[nn.Module, _Pass] = layer._qlr_passes
        return passes
    return _RUNNING.passes


class SmoothMessagePassing(MessagePassing):
    r"""Mixin of layers whose every propagation is a step of
    :class:`~torch_geometric_qlr.nn.SMP`, with the layer's own operator :math:`\mathbf{P}`.

    Made by :class:`~torch_geometric_qlr.transforms.SmoothPropagation`. It stays outside of what
    quantizes, so that both products of a step are quantized like any other.
    """

    #: The class whose propagation is smoothed.
    _qlr_wrapped: ClassVar[type[nn.Module]]
    _qlr_smooth: SmoothState

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        _check_one_set(self, args[0] if args else kwargs.get("x"))
        passes = _passes(self)
        outer = passes.pop(self, None)
        try:
            return super().forward(*args, **kwargs)
        finally:
            _keep_state(self, passes.pop(self, None))
            if outer is not None:
                passes[self] = outer

    def reset_parameters(self) -> None:
        r"""Resets the layer's parameters, and starts a persistent multiplier anew."""
        super().reset_parameters()
        if _is_persistent(self):
            self._qlr_multiplier.fill_(self._qlr_smooth.options.init_lambda)
            self._qlr_slack.fill_(self._qlr_smooth.options.init_slack)

    def propagate(self, edge_index: Any, *args: Any, **kwargs: Any) -> Any:
        options, value = self._qlr_smooth.options, kwargs[self._qlr_smooth.source]
        end = 0 if self.flow == "source_to_target" else 1
        h = value[end] if isinstance(value, (tuple, list)) else value
        passes = _passes(self)
        now = passes[self] if self in passes else _start(self, h, edge_index)

        def product(x: Tensor) -> Tensor:
            if isinstance(value, (tuple, list)):
                pair = (x, value[1]) if end == 0 else (value[0], x)
                return self._qlr_propagate_once(edge_index, kwargs, pair)
            return self._qlr_propagate_once(edge_index, kwargs, x)

        out = gradient_step(options, h, product(h), now.teleport)
        if options.correction:
            change = out - h
            out, now.state, _ = constrained_step(
                options, out, change, product(change), now.state, now.bound
            )
        passes[self] = now
        return out

    def _qlr_propagate_once(self, edge_index: Any, kwargs: dict[str, Any], x: Any) -> Tensor:
        kwargs = {**kwargs, self._qlr_smooth.source: x}
        quantizes = isinstance(self, QuantMessagePassing)
        if not quantizes and (self.explain or self.decomposed_layers > 1):
            out: Tensor = uncompiled_propagate()(self, edge_index, **kwargs)
            return out
        out = super().propagate(edge_index, **kwargs)
        return out

    # A generated class cannot be found by its name, so an object is rebuilt from what it wraps.
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if isinstance(self, QuantLayer):
            rebuild, args, state, *_ = super().__reduce_ex__(protocol)
        else:
            rebuild, args, state = _new, (type(self)._qlr_wrapped,), own_state(self)
        return _rebuild, (rebuild, args), state

    def __deepcopy__(self, memo: dict[int, Any]) -> SmoothMessagePassing:
        rebuild, args, state = self.__reduce_ex__(4)
        new: SmoothMessagePassing = rebuild(*args)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(state, memo))
        return new

    @classmethod
    def _qlr_wrap(cls, wrapped: type[nn.Module]) -> type[Any]:
        """The smooth class of a layer class, quantized or not."""
        return _smooth_class(wrapped)


def _start(layer: Any, h: Tensor, edge_index: Any) -> _Pass:
    options = layer._qlr_smooth.options
    if _is_persistent(layer):
        # Copies: backward needs the values that this call started with.
        state = (layer._qlr_multiplier.clone(), layer._qlr_slack.clone())
    else:
        state = initial_multiplier(options, h)
    return _Pass(options.eta * h, options.tau * num_entries(edge_index), state)


def _keep_state(layer: Any, last: _Pass | None) -> None:
    if _is_persistent(layer) and layer.training and last is not None:
        multiplier, slack = last.state
        layer._qlr_multiplier.copy_(multiplier.detach())
        layer._qlr_slack.copy_(slack.detach())


def _is_persistent(layer: Any) -> bool:
    return bool(layer._qlr_smooth.options.multiplier_state == "persistent")


def _check_one_set(layer: Any, x: Any) -> None:
    if isinstance(x, (tuple, list)) and any(other is not x[0] for other in x[1:]):
        raise InputError(
            f"{type(layer).__name__}: x is a pair, one set of nodes sending to another. Smoothing "
            f"compares a representation with what was propagated, so both must be the same nodes: "
            f"pass one x, or exclude the layer from SmoothPropagation."
        )


_CLASSES: dict[type, type] = {}


def _smooth_class(wrapped: type[nn.Module]) -> type[Any]:
    if wrapped not in _CLASSES:
        _CLASSES[wrapped] = _make_class(wrapped)
    return _CLASSES[wrapped]


def _make_class(wrapped: type[Any]) -> type[Any]:
    # Whichever of them PyG calls is the smoothing one. The signature of the forward stays that of
    # the layer.
    propagate = SmoothMessagePassing.__dict__["propagate"]
    namespace: dict[str, Any] = dict.fromkeys(PROPAGATE_NAMES, propagate)

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
        "_qlr_wrapped": wrapped,
    }
    if issubclass(wrapped, QuantLayer):
        namespace["_qlr_made"] = wrapped._qlr_made
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
    layer._qlr_smooth = SmoothState(options, source, note)
    layer._qlr_passes = {}
    drop_bound_propagate(layer)
    # Features that a layer cached were propagated in another way.
    forget_cached(layer)
    if options.multiplier_state == "persistent":
        tensor = next(iter([*layer.parameters(), *layer.buffers()]), torch.empty(0))
        for name, start in (("multiplier", options.init_lambda), ("slack", options.init_slack)):
            layer.register_buffer(f"_qlr_{name}", torch.tensor(start, device=tensor.device))
    if isinstance(layer, QuantMessagePassing) and options.products > 1:
        _double_quantizers(layer)
    layer.__class__ = _smooth_class(type(layer))


def _double_quantizers(layer: QuantMessagePassing) -> None:
    """Every hop gets a second quantizer, for its change; the first keeps its range."""
    for point, found in layer._qlr.items():
        if not (point.startswith("source_") or point in ("message", "aggregate")):
            continue
        doubled: list[Quantizer] = []
        for quantizer in found if isinstance(found, nn.ModuleList) else [found]:
            assert isinstance(quantizer, Quantizer)
            fresh = copy.deepcopy(quantizer)
            fresh.reset_parameters()
            doubled += [quantizer, fresh]
        for hop, quantizer in enumerate(doubled):
            quantizer.path = _at_hop(quantizer.path, hop)
        layer._qlr[point] = nn.ModuleList(doubled).train(layer.training)


def _at_hop(path: str, hop: int) -> str:
    path = re.sub(r", hop \d+", "", path)
    return f"{path[:-1]}, hop {hop})" if path.endswith(")") else f"{path}, hop {hop}"


def _new(cls: type[Any]) -> Any:
    return object.__new__(cls)


def _rebuild(rebuild: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    layer = rebuild(*args)
    layer.__class__ = _smooth_class(type(layer))
    return layer
