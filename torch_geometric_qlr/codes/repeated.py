"""Calls of a converted layer like those before, in which only the numbers are new.

A small result takes less time than to find out how it is computed. So what follows from the layer,
its ranges and its graph is put together once, and later calls look only whether all of that is
still what it was: the same objects, to which nobody has written. Whatever is unusual is left to the
code that knows all cases, and so are the words for what is wrong.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from torch_geometric_qlr.codes.chains import may_wait
from torch_geometric_qlr.codes.edge_weights import coded_weights, edge_weight_bits
from torch_geometric_qlr.codes.edges import kept_of
from torch_geometric_qlr.codes.gather import is_replaced, kernel_of, weighted_graph
from torch_geometric_qlr.codes.product import product, why_no_product
from torch_geometric_qlr.codes.weights import PackedWeight
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.layers.layer_spec import OwnTerm
from torch_geometric_qlr.layers.pyg import check_edges, is_left_alone, sends_from_sources
from torch_geometric_qlr.layers.state import STATE, LayerState
from torch_geometric_qlr.ops import storage_bits
from torch_geometric_qlr.sparse import Entry, Fingerprint, can_remember
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["is_plain_call", "repeated_forward", "repeated_product", "repeated_sum"]


def is_plain_call(layer: Any, x: Any) -> bool:
    r"""Whether a converted layer is called with dense floats, nothing of torch follows the call,
    and the layer is what the conversion left, as nearly always.

    Args:
        layer (torch.nn.Module): The layer.
        x (Any): The features.
    """
    if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.layout != torch.strided:
        return False
    if layer.training or torch.is_grad_enabled():
        return False
    if not torch.compiler.is_compiling() and (
        torch._C._get_tracing_state() is not None or torch._C._are_functorch_transforms_active()
    ):
        return False
    modules = layer._modules
    state = modules[STATE]
    if state.replaced or state.backend != "auto" or "parametrizations" in modules:
        return False
    for parameter in layer._parameters.values():
        if parameter is not None and parameter.dtype != torch.float32:
            return False
    return "output" not in state._modules


# Products #########################################################################################


class _Product(NamedTuple):
    """A Linear, ready to be called. Without a grid that lasts it only multiplies codes."""

    quantizer: Any
    lasting: Any
    packed: PackedTensor
    arguments: tuple[Any, ...]


def repeated_product(layer: Any, x: Tensor) -> Tensor | None:
    r"""What a Linear gives for a matrix, small ones in one op.

    Args:
        layer (torch.nn.Module): A converted Linear, in a call that :func:`is_plain_call`.
        x (torch.Tensor): The features.

    Returns:
        torch.Tensor: Or :obj:`None` if there is more to it.
    """
    state = layer._modules[STATE]
    if torch.compiler.is_compiling():
        return None if _is_more(layer, state) or x.dim() != 2 else product(layer, x)
    known = state.prepared
    if known is None or not _is_current(state, known):
        known = state.prepared = _prepared_product(layer, state, x)
        if known is None:
            return None
    packed, shape = known.packed, x.shape
    if len(shape) != 2 or shape[1] != packed.num_cols:
        return None
    rows = shape[0]
    if known.lasting is None or type(x) is not Tensor or may_wait(rows, packed.data.shape[0]):
        return product(layer, x)
    try:
        out: Tensor = torch.ops.qlr.quantize_linear(
            x, *known.arguments, layer._parameters.get("bias")
        )
    except InputError:
        return None
    return out


def _is_more(layer: Any, state: LayerState) -> bool:
    """Whether a Linear is more than the product of codes."""
    return "linear_output" in state._modules or bool(why_no_product(layer))


def _is_current(state: LayerState, known: _Product) -> bool:
    places: Any = state._modules
    if places["input"] is not known.quantizer or "linear_output" in places:
        return False
    if known.lasting is not None and not known.quantizer.lasts(known.lasting):
        return False
    packs: bool = places["weight"].packs(known.packed)
    return packs


def _prepared_product(layer: Any, state: LayerState, x: Tensor) -> _Product | None:
    weight = state._modules.get("weight")
    if not isinstance(weight, PackedWeight) or _is_more(layer, state):
        return None
    quantizer, packed = cast(Any, state["input"]), weight.packed
    lasting = quantizer.lasting_grid(x) if quantizer.is_frozen and x.dim() == 2 else None
    factor = (packed.data, packed.bits, packed.scale, packed.zero_point)
    return _Product(quantizer, lasting, packed, (*lasting.grid, *factor) if lasting else ())


# Sums #############################################################################################


class _Graph(NamedTuple):
    """What a conv met in its last call. What belongs to the graph goes with it."""

    terms: weakref.ref[Entry]
    flow: str
    rows: int


class _Sum(NamedTuple):
    """A conv, ready to be called. A graph that is met once, as in most batches, is not noted."""

    source: str
    weight: str
    is_optional: bool
    quantizer: Any
    lasting: Any
    coding: tuple[Any, ...]
    bits: int
    reduce: str
    met: _Graph | Fingerprint | None = None


#: In place of a `_Sum` for a conv that is none.
_NEVER = False


def repeated_sum(layer: Any, adj: Any, kwargs: dict[str, Any]) -> Tensor | None:
    r"""What :meth:`propagate` of a conv gives that adds up small packed rows.

    Args:
        layer (torch.nn.Module): A converted conv.
        adj (Any): Its edges.
        kwargs (dict): The other arguments of :meth:`propagate`.

    Returns:
        torch.Tensor: Or :obj:`None` if there is more to it.
    """
    if type(adj) is not Tensor or torch.compiler.is_compiling() or kwargs.get("size") is not None:
        return None
    x = _only_source(layer, kwargs)
    if x is None or not is_plain_call(layer, x):
        return None
    return _sum(layer, x, adj, kwargs)


def repeated_forward(layer: Any, term: OwnTerm, x: Tensor, adj: Any) -> Tensor | None:
    r"""What a conv hands to its child that adds a multiple of its own features to such a sum.

    Args:
        layer (torch.nn.Module): A converted conv, in a call that :func:`is_plain_call`.
        term (OwnTerm): What its forward does.
        x (torch.Tensor): Its features.
        adj (Any): Its edges.

    Returns:
        torch.Tensor: Or :obj:`None` if there is more to it.
    """
    if torch.compiler.is_compiling() or type(adj) is not Tensor or type(x) is not Tensor:
        return None
    if hasattr(type(layer), "_qlr_wrapped"):
        return None  # its propagation is several steps
    factor = term.factor(layer)
    return None if factor is None else _sum(layer, x, adj, {}, x, factor)


def _sum(
    layer: Any,
    x: Tensor,
    adj: Tensor,
    kwargs: dict[str, Any],
    addend: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor | None:
    shape = x.shape
    if len(shape) != 2 or shape.numel() == 0 or may_wait(*shape):
        return None
    known = _known_sum(layer, x)
    if known is None or layer.node_dim not in (0, -2):
        return None
    if not is_left_alone(layer) or is_replaced(layer):
        return None
    weight = kwargs.get(known.weight) if known.weight else None
    if weight is None and not known.is_optional:
        return None
    if weight is not None and (known.lasting.read_back is None or type(weight) is not Tensor):
        return None  # scales of sources go into their weights
    try:
        rowptr, col, weight, row_scale = _terms(layer, known, adj, weight, shape[0])
        if known.lasting.read_back is None:
            codes, scale, zero_point = torch.ops.qlr.quantize_rows(x, *known.coding)
        else:
            codes = torch.ops.qlr.quantize_pack(x, *known.coding)
            scale, zero_point = known.lasting.read_back
        out: Tensor = torch.ops.qlr.packed_spmm(
            *(rowptr, col, codes, shape[1], known.bits, scale, zero_point),
            *(weight, None, row_scale, None, addend, factor, known.reduce),
        )
    except InputError:
        return None
    return out


def _only_source(layer: Any, kwargs: dict[str, Any]) -> Any:
    """The features, if they are those of senders and receivers, whose number they give."""
    value = kwargs.get(kernel_of(layer).source)
    if type(value) is tuple:
        value = value[0] if len(value) == 2 and value[0] is value[1] else None
    return value if type(value) is Tensor else None


def _terms(layer: Any, known: _Sum, adj: Tensor, weight: Tensor | None, rows: int) -> Any:
    """What a sum takes of its graph; without a search if it is that of the call before."""
    met, parts = known.met, [adj] if weight is None else [adj, weight]
    if type(met) is _Graph and met.rows == rows and met.flow == layer.flow:
        entry = met.terms()
        if entry is not None and entry.made_from.matches(parts) and entry.is_unchanged():
            return entry.result
    check_edges(layer, adj)

    def build() -> Any:
        given = {} if weight is None else {known.weight: weight}
        graph, values = weighted_graph(layer, adj, rows, rows, given)
        return graph.rowptr, graph.col, *coded_weights(layer, graph, values)

    if not can_remember(parts):
        return build()
    again = type(met) is Fingerprint and met.matches(parts)
    key = ("terms", rows, layer.flow, weight is None, edge_weight_bits(layer))
    entry = kept_of(adj, key, build, weight) if again else None
    met = Fingerprint(parts) if entry is None else _Graph(weakref.ref(entry), layer.flow, rows)
    layer._modules[STATE].prepared = known._replace(met=met)
    return build() if entry is None else entry.result


def _known_sum(layer: Any, x: Tensor) -> _Sum | None:
    """What does not depend on the graph, and not on the matrix."""
    state = layer._modules[STATE]
    known = state.prepared
    if type(known) is not _Sum or not known.quantizer.lasts(known.lasting):
        if known is not _NEVER:
            known = state.prepared = _prepared_sum(layer, state, x)
    return known if type(known) is _Sum else None


def _prepared_sum(layer: Any, state: LayerState, x: Tensor) -> Any:
    choice = kernel_of(layer)
    if choice.reason or not _adds_up(layer, state):
        return _NEVER
    quantizer = _quantizer(state, choice.source)
    lasting = quantizer.lasting_grid(x)
    if lasting is None:
        return _NEVER
    grid = lasting.grid
    by_row = (grid.scale, grid.bits, grid.truncate, grid.aligned, grid.skew)
    by_matrix = (grid.scale, grid.zero_point, grid.bits, grid.truncate, grid.skew)
    return _Sum(
        *(choice.source, choice.weight, choice.is_optional, quantizer, lasting),
        by_row if lasting.read_back is None else by_matrix,
        *(storage_bits(grid.bits), choice.reduce),
    )


def _adds_up(layer: Any, state: LayerState) -> bool:
    """Whether a conv adds up what its sources send, quantized in the same way in every hop."""
    choice = kernel_of(layer)
    if choice.kernel not in ("spmm", "attention") or choice.reduce not in ("sum", "mean"):
        return False
    if choice.unless or "aggregate" in state or not sends_from_sources(layer, choice.source):
        return False
    if any(len(found) > 1 for found in state.values() if isinstance(found, nn.ModuleList)):
        return False
    return bool(_quantizer(state, choice.source).is_frozen)


def _quantizer(state: LayerState, source: str) -> Any:
    found: Any = state[state.source_keys[source]]
    return found[0] if isinstance(found, nn.ModuleList) else found
