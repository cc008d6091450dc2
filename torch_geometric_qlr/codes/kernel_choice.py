"""Which kernel computes a conv's messages: what its own ``message`` does is read and tried."""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing, aggr

from torch_geometric_qlr.layers.layer_spec import MessageFacts, facts_of
from torch_geometric_qlr.layers.pyg import has_bound_propagate, has_own_propagate
from torch_geometric_qlr.layers.state import float_class, state_of

__all__ = ["KernelChoice", "choose_kernel", "copies_source", "is_pure", "summed_weight"]


@dataclass(frozen=True)
class KernelChoice:
    r"""How one conv propagates.

    Args:
        kernel (str): :obj:`"spmm"`, :obj:`"attention"`, :obj:`"coefficients"` (attention, with
            coefficients that :obj:`message` computes) or an empty string for none.
        source (str): Argument of :obj:`propagate` that is gathered.
        weight (str): Argument that multiplies it, if any.
        reduce (str): :obj:`"sum"`, :obj:`"mean"`, :obj:`"max"` or :obj:`"min"`.
        reason (str): Why there is no kernel.
        is_optional (bool): Whether :obj:`weight` may be :obj:`None`.
        unless (str): Argument of :obj:`propagate` with which the messages are something else.
    """

    kernel: str = ""
    source: str = ""
    weight: str = ""
    reduce: str = "sum"
    reason: str = ""
    is_optional: bool = True
    unless: str = ""


_REDUCE: Mapping[type, str] = {
    aggr.SumAggregation: "sum",
    aggr.MeanAggregation: "mean",
    aggr.MaxAggregation: "max",
    aggr.MinAggregation: "min",
}


def choose_kernel(layer: Any) -> KernelChoice:
    r"""The kernel for a quantized conv, or why there is none. It depends on the code of the layer
    and its options, never on values that training or a file may replace.

    Args:
        layer (torch.nn.Module): The layer.
    """
    state = state_of(layer)
    if not state.source_keys:
        if "message" in state:
            return KernelChoice(reason="it computes a message per edge")
        return KernelChoice(reason="its messages stay in floating point")
    for name in ("propagate", "message"):
        if name in state.replaced:
            return KernelChoice(reason=_replaced(name))
    return _choice(layer, float_class(layer), tuple(state.source_keys), facts_of(layer).message)


def summed_weight(layer: Any, cls: Any, sources: tuple[str, ...], known: MessageFacts) -> str:
    r"""The argument of :obj:`propagate` with a weight for each edge, by which a conv multiplies its
    source before it sums up; empty if there is none.

    Args:
        layer (torch.nn.Module): The conv, quantized or not.
        cls (type): Its float class.
        sources (tuple): Arguments of :obj:`propagate` that are quantized per node.
        known (MessageFacts): What is known of its :obj:`message`.

    Example:
        >>> from torch_geometric.nn import GCNConv, SAGEConv
        >>> summed_weight(GCNConv(4, 2), GCNConv, ("x",), MessageFacts())
        'edge_weight'
        >>> summed_weight(SAGEConv(4, 2), SAGEConv, ("x",), MessageFacts())
        ''
    """
    if not sources:
        return ""
    choice = _choice(layer, cls, sources, known)
    return choice.weight if choice.reduce in ("sum", "mean") else ""


def _choice(layer: Any, cls: Any, sources: tuple[str, ...], known: MessageFacts) -> KernelChoice:
    reason = _obstacle(layer, cls)
    if reason:
        return KernelChoice(reason=reason)
    reduce = _REDUCE[type(layer.aggr_module)]
    if known.coefficients in sources or known.copies in sources:
        return _by_facts(layer, known, reduce)
    if len(sources) > 1:
        return KernelChoice(reason=f"its messages combine {' and '.join(sources)}")
    (source,) = sources
    return _by_message(layer, cls, source, reduce)


def _by_facts(layer: Any, known: MessageFacts, reduce: str) -> KernelChoice:
    """The kernel for a message of which the row of its class says what it does."""
    reason = known.obstacle(layer)
    if known.coefficients and reduce != "sum":
        reason = f"it attends with {layer.aggr_module}"
    if reason:
        return KernelChoice(reason=reason)
    if known.coefficients:
        return KernelChoice("coefficients", known.coefficients, unless=known.unless)
    return KernelChoice("spmm", known.copies, reduce=reduce, unless=known.unless)


def _replaced(name: str) -> str:
    return f"its {name}() was replaced on the object"


def _obstacle(layer: Any, cls: Any) -> str:
    for name in ("propagate", "message", "aggregate", "update", "message_and_aggregate"):
        if name in layer.__dict__ and not (name == "propagate" and has_bound_propagate(layer)):
            return _replaced(name)
    if has_own_propagate(cls):
        return "it has a propagate() of its own"
    for name in ("aggregate", "update"):
        if getattr(cls, name) is not getattr(MessagePassing, name):
            return f"it has an {name}() of its own"
    if type(layer.aggr_module) not in _REDUCE:
        return f"it aggregates with {layer.aggr_module}"
    return ""


def _by_message(layer: Any, cls: Any, source: str, reduce: str) -> KernelChoice:
    taken = list(inspect.signature(cls.message).parameters)[1:]
    others = [name for name in taken if name != f"{source}_j"]
    if f"{source}_j" not in taken or len(others) > 1:
        return KernelChoice(reason=f"its messages are made of {', '.join(taken)}")
    if not is_pure(cls.message):
        return KernelChoice(reason="its message() reads more than its arguments")
    sender, other = f"{source}_j", others[0] if others else ""
    if not other:
        if copies_source(cls.message, sender):
            return KernelChoice("spmm", source, reduce=reduce)
        return KernelChoice(reason=f"its messages are no multiple of {sender}")
    is_optional = copies_source(cls.message, sender, other, given=False)
    if copies_source(cls.message, sender, other, heads=True):
        if reduce != "sum":
            return KernelChoice(reason=f"it attends with {layer.aggr_module}")
        return KernelChoice("attention", source, other, is_optional=is_optional)
    if copies_source(cls.message, sender, other):
        return KernelChoice("spmm", source, other, reduce, is_optional=is_optional)
    if is_optional and not _reads(cls.message, other):
        return KernelChoice("spmm", source, reduce=reduce)
    return KernelChoice(reason=f"its messages are no multiple of {sender}")


def _reads(message: Any, argument: str) -> bool:
    """Whether the code of a message looks at an argument at all."""
    return any(
        argument in (i.argval if isinstance(i.argval, tuple) else (i.argval,))
        for i in dis.get_instructions(message.__code__)
    )


def is_pure(message: Any) -> bool:
    r"""Whether a message is made of its arguments alone: its code reads neither the layer nor
    variables of its module or of a function around it, which may have other values later.

    Args:
        message (callable): The method.

    Example:
        >>> from torch_geometric.nn import GCNConv, FAConv
        >>> is_pure(GCNConv.message), is_pure(FAConv.message)
        (True, False)
    """
    if not isinstance(message, types.FunctionType) or message.__closure__:
        return False
    code = message.__code__
    if not code.co_varnames or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        return False
    own = code.co_varnames[0]
    for instruction in dis.get_instructions(code):
        values = (
            instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        )
        if instruction.opname.startswith("LOAD_FAST") and own in values:
            return False
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found = message.__globals__.get(str(instruction.argval), None)
            constant = isinstance(found, (types.ModuleType, type, types.BuiltinFunctionType))
            if str(instruction.argval) in message.__globals__ and not constant:
                return False
    return True


def copies_source(
    message: Any, source: str, weight: str = "", *, heads: bool = False, given: bool = True
) -> bool:
    r"""Whether a message returns its source, times its weight if it has one: tried with several
    values, among them negative ones, fractions and zeros.

    Args:
        message (callable): The method; it is called without a layer.
        source (str): The argument that holds source features.
        weight (str): The argument that may multiply them.
        heads (bool): Whether to try with one weight per head.
        given (bool): Whether to give it a weight.
    """
    generator, device = torch.Generator("cpu").manual_seed(0), torch.device("cpu")
    shape = (7, 2, 4) if heads else (7, 4)
    for scale in (1.0, -3.0, 0.01, 1e3):
        x = torch.randn(shape, generator=generator, device=device) * scale
        x[0], x[1] = 0.0, x[1].round()
        w = torch.randn(shape[:-1], generator=generator, device=device) * scale
        w[2] = 0.0
        arguments: dict[str, Tensor | None] = {source: x.clone()}
        if weight:
            arguments[weight] = w.clone() if given else None
        try:
            with torch.no_grad():
                out = message(None, **arguments)
        except Exception:  # whatever a user's message does with numbers it was not made for
            return False
        expected = x * w.unsqueeze(-1) if weight and given else x
        if not isinstance(out, Tensor) or out.shape != x.shape or not torch.equal(out, expected):
            return False
        if not torch.equal(arguments[source], x):  # type: ignore[arg-type]
            return False  # it writes into the features
    return True
