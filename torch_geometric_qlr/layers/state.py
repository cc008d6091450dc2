"""What the package keeps on a layer, all of it under one private name: ``layer._qlr``.

The object is a module, so that quantizers move, save and load with the layer. What belongs to one
call of the layer lies in a :class:`Call` of the running thread, never on the layer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_geometric_qlr.config import POINTS

__all__ = [
    "GAIN",
    "OPEN_GAIN",
    "STATE",
    "Call",
    "LayerState",
    "MadeClass",
    "float_class",
    "is_quantizable",
    "parameter_of",
    "state_of",
    "unwrapped_class",
    "weight_key",
    "where_is",
]

#: The attribute of a layer that holds its :class:`LayerState`; a prefix of everything else.
STATE = "_qlr"

#: The buffer of a :class:`LayerState` with the gain of the layer's input, see ``input_gain.py``. A
#: negative number stands for one, and for a gain that the next training batch may find.
GAIN = "input_gain"

#: That number.
OPEN_GAIN = -1.0


class MadeClass(NamedTuple):
    r"""What a generated class was made of; its attribute ``_qlr_made``.

    Args:
        mixin (type): The family.
        base (type): The float class.
        weight_names (tuple): Parameters that are read through a quantizer.
    """

    mixin: type
    base: type[nn.Module]
    weight_names: tuple[str, ...]


class Call:
    """One call of a layer, in one thread."""

    __slots__ = ("arguments", "hop", "inside", "kinds", "prepared", "weights")

    def __init__(self, arguments: Any = None, inside: frozenset[str] = frozenset()) -> None:
        #: Replaced methods that are running: what they call by the same name is the class's.
        self.inside = inside
        #: What the layer was called with.
        self.arguments = arguments
        #: How many times `propagate` has run.
        self.hop = 0
        #: Which of several quantizers each `propagate` takes, where they do not take turns.
        self.kinds: tuple[int, ...] = ()
        #: The flag that the layer sees switched off, because its edges come prepared.
        self.prepared = ""
        #: Weights as the layer multiplies by them, made when they are first read.
        self.weights: dict[str, Tensor] = {}

    @property
    def turn(self) -> int:
        """The place of the quantizer that acts now among several."""
        return self.kinds[self.hop] if self.hop < len(self.kinds) else self.hop


class _Calls(threading.local):
    def __init__(self) -> None:
        self.running: dict[LayerState, Call] = {}


_CALLS = _Calls()


class LayerState(nn.ModuleDict):
    r"""The quantizers of a layer by the place where they act, and what is known of the layer.

    Args:
        quantizers (dict, optional): By :data:`torch_geometric_qlr.config.POINTS`; raw weights
            under their :func:`weight_key`.

    Attributes:
        path (str): Name of the layer in its model.
        source_keys (dict): Argument of `propagate` that is quantized per node -> its place.
        edge_weight (str): Argument of `propagate` with weights of edges that are quantized.
        replaced (dict): Methods that somebody replaced on the object, by name.
        converted (bool): Whether the layer computes on codes only.
        observes (bool): Whether its quantizers are shown values and round nothing.
        backend (str): Who computes packed operations.
        choice (Any): The kernel for its messages, found out once.
        gain_is_open (bool, optional): Whether the next training batch finds the gain of the input;
            :obj:`None` if the buffer has to be asked.
        prepared (Any): What its calls have in common, see `codes/repeated.py`.
    """

    def __init__(self, quantizers: dict[str, nn.Module] | None = None) -> None:
        super().__init__(quantizers)
        self.path = ""
        self.source_keys: dict[str, str] = {}
        self.edge_weight = ""
        self.replaced: dict[str, Callable[..., Any]] = {}
        self.converted = False
        self.observes = False
        self.backend = "auto"
        self.reason = ""
        self.runs_as = ""
        self.choice: Any = None
        self.gain_is_open: bool | None = None
        self.prepared: Any = None
        self._traced: Call | None = None
        self._made: dict[str, Any] = {}

    # Keys are names of users' parameters: whatever they are, they never meet the attributes.

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __setitem__(self, key: str, quantizer: nn.Module) -> None:
        self._modules[key] = quantizer

    # The gain of the input ########################################################################

    def lacks_gain(self) -> bool:
        """Whether the gain of the input is to be found. Compiled code does not find any: to look
        would break its graph."""
        if torch.compiler.is_compiling():
            return False
        if self.gain_is_open is None:
            gain = self._buffers.get(GAIN)
            self.gain_is_open = gain is not None and not gain.is_meta and bool(gain < 0)
        return self.gain_is_open

    def forget_gain(self) -> None:
        """The weight was drawn anew: so is the gain, if one was found."""
        gain = self._buffers.get(GAIN)
        if gain is not None:
            gain.fill_(OPEN_GAIN)
            self.gain_is_open = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LayerState:
        # Like ranges, the gain stays in float32 under .half(), which has no room for it.
        gain = self._buffers.get(GAIN)
        super()._apply(fn, recurse)
        moved = self._buffers.get(GAIN)
        if gain is not None and moved is not None and moved.dtype != gain.dtype:
            self._buffers[GAIN] = gain.to(moved.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if GAIN in self._buffers:
            state_dict = {prefix + GAIN: self._buffers[GAIN], **state_dict}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if GAIN in self.__dict__:  # a state that replaces tensors sets them as attributes
            self._buffers[GAIN] = self.__dict__.pop(GAIN)
        self.gain_is_open = None

    # One call #####################################################################################

    @property
    def call(self) -> Call | None:
        """The call that is running in this thread."""
        if torch.compiler.is_compiling():
            return self._traced
        # A call that is compiled in parts runs some of them here.
        return _CALLS.running.get(self, self._traced)

    def begin(self, arguments: Any = None) -> Call | None:
        """Starts a call, and returns the one around it for :meth:`end`."""
        if torch.compiler.is_compiling():
            outer, self._traced = self._traced, Call()
            return outer
        outer = _CALLS.running.get(self)
        inside = frozenset() if outer is None else outer.inside
        _CALLS.running[self] = Call(arguments, inside)
        return outer

    def restart(self) -> None:
        """The layer computes once more in the same call."""
        call = self.call
        if call is not None:
            call.hop = 0

    def end(self, outer: Call | None) -> None:
        """Ends the call."""
        if torch.compiler.is_compiling() or self not in _CALLS.running:
            self._traced = outer
        elif outer is None:
            del _CALLS.running[self]
        else:
            _CALLS.running[self] = outer

    # Replaced methods #############################################################################

    def is_inside(self, name: str) -> bool:
        """Whether a replaced method is running, which then means the class's by that name."""
        if not self.replaced:  # as on nearly every layer
            return False
        call = self.call
        return call is not None and name in call.inside

    def method(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        r"""The method that somebody put on the object, or else that of the class.

        Args:
            name (str): Its name.
            own (callable): The float class's.
        """
        replaced = self.replaced.get(name)
        if replaced is None:
            return own
        call = self.call
        if call is None:
            return replaced

        def run(*args: Any, **kwargs: Any) -> Any:
            outer, call.inside = call.inside, call.inside | {name}
            try:
                return replaced(*args, **kwargs)
            finally:
                call.inside = outer

        return run

    # What is quantized where ######################################################################

    def quantizer_at(self, point: str) -> Any:
        """The quantizer that acts at a place now: one per hop, or one for each kind of thing that
        the hops propagate in turn."""
        found = self[point]
        if not isinstance(found, nn.ModuleList):
            return found
        call = self.call
        return found[(0 if call is None else call.turn) % len(found)]

    def quantize_at(self, point: str, value: Any) -> Any:
        """The value through the quantizer of that place, if there is one. Tensors in a tuple or a
        dict share its range; what holds no features (integers, sparse tensors) passes."""
        if point not in self:
            return value
        if isinstance(value, (tuple, list)):
            items = [self.quantize_at(point, v) for v in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {k: self.quantize_at(point, v) for k, v in value.items()}
        return self.quantizer_at(point)(value)[0] if is_quantizable(value) else value

    def shown_bits(self) -> str:
        """The widths for people: one number, or one per place; what has a width of its own is said
        if it differs."""
        widths = {
            name: next((m.bits for m in found.modules() if hasattr(m, "bits")), None)
            for name, found in self.items()
        }
        own = {"edge_weight": widths.pop("edge_weight")} if "edge_weight" in widths else {}
        if len(set(widths.values())) == 1:
            bits = next(iter(widths.values()))
            rest = (f"{name}_bits={width}" for name, width in own.items() if width != bits)
            return ", ".join([f"bits={bits}", *rest])
        widths |= own
        return ", ".join(f"{name}_bits={bits}" for name, bits in widths.items())

    def remembered(self, key: str, versions: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What was made of weights and ranges, as long as these have not changed."""
        known = self._made.get(key)
        if known is None or known[0] != versions:
            known = self._made[key] = (versions, make())
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}, "_traced": None, "prepared": None}


def is_quantizable(value: Any) -> bool:
    """Whether a value is a dense tensor of floats."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided


def state_of(layer: Any) -> LayerState:
    r"""What the package keeps on a quantized layer.

    Args:
        layer (torch.nn.Module): The layer.
    """
    state: Any = layer._modules[STATE]
    return state


def weight_key(name: str) -> str:
    r"""The key of a parameter's quantizer: its name, unless a place where features are quantized
    has that name.

    Args:
        name (str): The parameter.

    Example:
        >>> weight_key("att_src"), weight_key("output")
        ('att_src', 'weight:output')
    """
    is_place = name in POINTS and name != "weight"
    return f"weight:{name}" if is_place or name.startswith("source_") else name


def parameter_of(key: str) -> str:
    """The parameter that belongs to a :func:`weight_key`."""
    return key.removeprefix("weight:")


def float_class(layer: Any) -> type[nn.Module]:
    r"""The class of a layer before it was quantized; its own if it is not.

    Args:
        layer (torch.nn.Module): The layer.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> float_class(qlr.quantize(torch.nn.Linear(4, 2), bits=4)).__name__
        'Linear'
    """
    made = getattr(type(layer), "_qlr_made", None)
    return made.base if isinstance(made, MadeClass) else type(layer)


def unwrapped_class(layer: Any) -> type[Any]:
    """The class of a layer before it was quantized and smoothed."""
    cls: Any = float_class(layer)
    while hasattr(cls, "_qlr_wrapped"):
        cls = cls._qlr_wrapped
    found: type[Any] = cls
    return found


def where_is(layer: Any) -> str:
    """How an error message names a layer."""
    return state_of(layer).path or type(layer).__name__
