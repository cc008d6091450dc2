"""Messages as packed rows that are gathered along a CSR."""

from __future__ import annotations

import math
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor
from torch_geometric.typing import SparseTensor

from torch_geometric_qlr.codes.chains import codes_of, handed_out, plain
from torch_geometric_qlr.codes.edge_weights import Terms, terms_of
from torch_geometric_qlr.codes.edges import graph_of
from torch_geometric_qlr.codes.kernel_choice import KernelChoice, choose_kernel
from torch_geometric_qlr.codes.mode import backend_scope, has_codes
from torch_geometric_qlr.codes.stage import Epilogue, Stage
from torch_geometric_qlr.errors import QLRWarning
from torch_geometric_qlr.layers.pyg import (
    fuses,
    has_hooks,
    has_own_product,
    is_left_alone,
    message_arguments,
    node_counts,
)
from torch_geometric_qlr.layers.state import float_class, state_of, where_is
from torch_geometric_qlr.sparse import CSRGraph, is_matrix
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor
from torch_geometric_qlr.tensor import functional as packed

#: What somebody may replace on the object.
_METHODS = frozenset({"propagate", "message", "aggregate", "update", "message_and_aggregate"})

#: What was said of a layer already.
_TOLD: weakref.WeakKeyDictionary[Any, tuple[str, ...]] = weakref.WeakKeyDictionary()

__all__ = [
    "gather",
    "is_replaced",
    "kernel_of",
    "stretched_columns",
    "weighted_graph",
    "why_not_now",
]


def kernel_of(layer: Any) -> KernelChoice:
    r"""The kernel for a quantized conv, found out when it is first asked for.

    Args:
        layer (torch.nn.Module): The layer.
    """
    state = state_of(layer)
    if state.choice is None:
        state.choice = choose_kernel(layer)
    choice: KernelChoice = state.choice
    return choice


def is_replaced(layer: Any) -> bool:
    """Whether somebody put a method on the object by which it sends messages."""
    own = layer.__dict__  # of many attributes
    for name in _METHODS:
        if name in own:
            return True
    return False


def why_not_now(layer: Any) -> str:
    r"""Why a layer that has a kernel cannot use it as it is set up now.

    Args:
        layer (torch.nn.Module): The layer.
    """
    if is_left_alone(layer) and not is_replaced(layer):
        return ""
    if layer.explain:
        return "it is being explained"
    if layer.decomposed_layers > 1:
        return f"decomposed_layers is {layer.decomposed_layers}"
    if has_hooks(layer):
        return "a hook sits on its messages"
    name = next(name for name in layer.__dict__ if name in _METHODS)
    return f"its {name}() was replaced on the object"


def gather(layer: Any, edge_index: Any, size: Any, kwargs: dict[str, Any]) -> Tensor | None:
    r"""What :meth:`propagate` of a conv returns, computed on codes.

    Args:
        layer (torch.nn.Module): The conv.
        edge_index (torch.Tensor or EdgeIndex or SparseTensor): The edges.
        size (tuple, optional): The sizes of both sets of nodes.
        kwargs (dict): The other arguments of :meth:`propagate`.

    Returns:
        torch.Tensor: Or :obj:`None` if it has to be computed in floating point.
    """
    choice = kernel_of(layer)
    if choice.reason:
        return None
    value = kwargs.get(choice.source)
    # PyG's generated code takes the sources of a pair from its first place, whatever the flow.
    source = value[0] if isinstance(value, (tuple, list)) else value
    if not _fits(layer, choice, source, edge_index, kwargs):
        return None
    assert isinstance(source, Tensor)
    sizes, num_dst = node_counts(layer, edge_index, size, kwargs)
    quantizer = state_of(layer).quantizer_at(state_of(layer).source_keys[choice.source])
    if choice.kernel == "spmm" or _attends_to_none(choice, source, kwargs):
        return _sums(layer, choice, edge_index, source, quantizer, num_dst, kwargs)
    alpha, keeps_heads = _coefficients(layer, choice, edge_index, sizes, source, kwargs)
    out = _attended(layer, edge_index, source, quantizer, num_dst, alpha)
    return out.view(num_dst, *source.shape[1:]) if keeps_heads else out


def _fits(layer: Any, choice: KernelChoice, source: Any, adj: Any, kwargs: dict[str, Any]) -> bool:
    """Whether this call is what the kernel was chosen for; says once if not."""
    reason = why_not_now(layer)
    if not reason and fuses(layer, adj) and has_own_product(float_class(layer)):
        reason = "it has a message_and_aggregate() of its own"
    if not reason and choice.unless and kwargs.get(choice.unless) is not None:
        reason = f"{choice.unless} is given"
    if not reason and not (has_codes(layer, source) and source.dim() in (2, 3)):
        reason = f"the source {choice.source!r} is no float32 tensor of 2 or 3 dimensions"
    if not reason and not _nodes_are_rows(layer, choice, source):
        reason = f"its nodes are along dimension {layer.node_dim}"
    if not reason and choice.weight and not choice.is_optional:
        if kwargs.get(choice.weight) is None and not is_matrix(adj):
            return False  # PyG says what is missing
    if reason and state_of(layer).converted and reason not in _TOLD.get(layer, ()):
        _TOLD[layer] = (*_TOLD.get(layer, ()), reason)
        warnings.warn(
            f"{where_is(layer)}: its messages are computed in floating point: {reason}.",
            QLRWarning,
            stacklevel=4,
        )
    return not reason


def _nodes_are_rows(layer: Any, choice: KernelChoice, source: Tensor) -> bool:
    """Whether the nodes come first, or after stacks that are summed each like the others.
    `node_dim` is an attribute that may be set at any time."""
    stacked = source.dim() == 3 and choice.kernel == "spmm" and _has_stacks(layer, source)
    return stacked or layer.node_dim in (0, -source.dim())


def _has_stacks(layer: Any, source: Tensor) -> bool:
    """Whether only the features come after the nodes, so that what comes before are stacks."""
    return layer.node_dim in (-2, source.dim() - 2)


def _attends_to_none(choice: KernelChoice, source: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether a message that could multiply by coefficients is given weights, or nothing."""
    one_weight = source.dim() == 2 or kwargs.get(choice.weight) is None
    return choice.kernel == "attention" and one_weight


# Sums with weights of the edges ##################################################################


def _sums(
    layer: Any,
    choice: KernelChoice,
    adj: Any,
    source: Tensor,
    quantizer: Any,
    num_dst: int,
    kwargs: dict[str, Any],
) -> Tensor:
    def of(codes: PackedTensor, is_part: bool = False) -> Tensor:
        graph, weight = weighted_graph(layer, adj, codes.data.size(0), num_dst, kwargs)
        if choice.reduce in ("max", "min"):
            largest = choice.reduce == "max"
            return _extremum(graph, weight, codes, largest, state_of(layer).backend)
        terms = terms_of(layer, graph, weight, codes, is_part=is_part)
        return handed_out(_sum(layer, graph, terms, choice.reduce))

    if source.dim() == 2:
        return of(codes_of(source, quantizer))
    # Layers with several stacks have them before the nodes, others have heads behind them.
    stacks = 0 if _has_stacks(layer, source) else 1
    if not _shares_range(quantizer):
        parts = _parts(source, quantizer, stacks)
        return torch.stack([of(part, is_part=True) for part in parts], dim=stacks)
    by_node = source.transpose(0, 1) if stacks == 0 else source
    out = of(codes_of(_flat(by_node), quantizer)).view(num_dst, *by_node.shape[1:])
    return out.transpose(0, 1).contiguous() if stacks == 0 else out


def _sum(layer: Any, graph: CSRGraph, terms: Terms, reduce: str) -> Stage:
    state, codes = state_of(layer), terms.sources
    shape = (graph.num_dst, codes.num_cols)

    def run(e: Epilogue, out: OutputQuantizer | None) -> Any:
        return packed.spmm(
            graph.rowptr,
            graph.col,
            stretched_columns(codes, e.column),
            edge_weight=terms.weight,
            row_scale=terms.row_scale,
            bias=e.bias,
            addend=e.addend,
            addend_scale=e.addend_scale,
            reduce=reduce,
            relu=e.relu,
            out=out,
        )

    stretches = codes.scale.numel() == 1 and codes.zero_point.numel() == 1
    return Stage(run, shape, codes.data.device, state, adds=True, stretches=stretches)


def stretched_columns(x: PackedTensor, column: Tensor | None, factor: float = 1.0) -> PackedTensor:
    """The values of a packed tensor times a constant, and one for every column."""
    if factor == 1.0 and column is None:
        return x
    scale, zero_point = x.scale * factor, x.zero_point
    if column is not None:
        scale, zero_point = torch.broadcast_tensors(scale * column.view(1, -1), zero_point)
    return PackedTensor.unchecked(x.data, x.num_cols, x.bits, scale, zero_point)


def _extremum(
    graph: CSRGraph, weight: Tensor | None, codes: PackedTensor, largest: bool, backend: str
) -> Tensor:
    with backend_scope(backend):
        if weight is None:
            return packed.extremum(graph.rowptr, graph.col, codes, largest=largest)
        # A weight may turn the order around, so every message is made.
        messages = codes.index_select(graph.col).dequantize() * weight.view(-1, 1)
    values = torch.segment_reduce(
        messages, "max" if largest else "min", offsets=graph.rowptr, initial=None
    )
    return values.masked_fill(graph.degree().view(-1, 1) == 0, 0.0)


def weighted_graph(
    layer: Any, adj: Any, num_src: int, num_dst: int, kwargs: dict[str, Any]
) -> tuple[CSRGraph, Tensor | None]:
    r"""The graph and its weights, which PyG takes from the matrix or from an argument.

    Args:
        layer (torch.nn.Module): The conv.
        adj (torch.Tensor or EdgeIndex or SparseTensor): What it propagates along.
        num_src (int): Number of nodes that send.
        num_dst (int): Number of nodes that receive.
        kwargs (dict): The arguments of :meth:`propagate`.
    """
    name = kernel_of(layer).weight
    weight = kwargs.get(name) if name else None
    if not is_matrix(adj):
        graph = graph_of(layer, adj, weight, num_src, num_dst)
        return graph, graph.value
    graph = graph_of(layer, adj, None, num_src, num_dst)
    if fuses(layer, adj):
        # The fused product reads the values, whether or not the message has a weight.
        reads = bool(name) or not isinstance(adj, SparseTensor)
        return graph, graph.value if reads else None
    if weight is not None:
        return graph, graph.in_order(weight.view(-1))
    return graph, graph.value if name == "edge_weight" else None


# Sums with coefficients per edge and head ########################################################


def _attended(
    layer: Any, adj: Any, source: Tensor, quantizer: Any, num_dst: int, alpha: Tensor
) -> Tensor:
    graph = graph_of(layer, adj, None, source.size(0), num_dst)
    alpha = graph.in_order(alpha)
    if source.dim() == 3 and not _shares_range(quantizer):
        parts = [
            handed_out(_attend(layer, graph, head, alpha[:, h : h + 1]))
            for h, head in enumerate(_parts(source, quantizer, 1))
        ]
        return torch.cat(parts, dim=-1)
    return handed_out(_attend(layer, graph, codes_of(_flat(source), quantizer), alpha))


def _attend(layer: Any, graph: CSRGraph, codes: PackedTensor, alpha: Tensor) -> Stage:
    state = state_of(layer)

    def run(e: Epilogue, out: OutputQuantizer | None) -> Any:
        return packed.attention(
            graph.rowptr, graph.col, codes, alpha, bias=e.bias, relu=e.relu, out=out
        )

    return Stage(run, (graph.num_dst, codes.size(1)), codes.device, state)


def _coefficients(
    layer: Any,
    choice: KernelChoice,
    adj: Any,
    sizes: list[int | None],
    source: Tensor,
    kwargs: dict[str, Any],
) -> tuple[Tensor, bool]:
    """One coefficient per edge and head, and whether messages keep the heads apart."""
    heads = source.size(1) if source.dim() == 3 else 1
    if choice.kernel == "attention":
        alpha: Tensor = plain(kwargs[choice.weight])
        return alpha.view(-1, heads), source.dim() == 3
    message = plain(_message_of_ones(layer, choice, adj, sizes, source, dict(kwargs)))
    per_head = math.prod(message.shape[1:]) // heads
    return message.reshape(message.size(0), heads, per_head)[:, :, 0], message.dim() == 3


def _message_of_ones(
    layer: Any,
    choice: KernelChoice,
    adj: Any,
    sizes: list[int | None],
    source: Tensor,
    kwargs: dict[str, Any],
) -> Tensor:
    """The layer's own message, with ones for a source: what it multiplies its source by."""
    name, state = choice.source, state_of(layer)
    for other, key in state.source_keys.items():
        if other != name and other in kwargs:
            kwargs[other] = state.quantize_at(key, plain(kwargs[other]))
    ones, value = torch.ones((), device=source.device).expand(source.shape), kwargs[name]
    if isinstance(value, (tuple, list)):
        ones = tuple(ones if d == 0 else v for d, v in enumerate(value))  # type: ignore[assignment]
    arguments = message_arguments(layer, adj, sizes, {**kwargs, name: ones})
    # The values of a matrix are no edge features, unless they were given as such.
    arguments |= {n: kwargs.get(n) for n in ("edge_attr",) if n in arguments}
    message: Any = float_class(layer).message  # type: ignore[attr-defined]
    out: Tensor = message(layer, **arguments)
    return out


# Sources of three dimensions #####################################################################


def _flat(x: Tensor) -> Tensor:
    """One row per node, heads or stacks side by side."""
    return x if x.dim() == 2 else x.reshape(x.size(0), math.prod(x.shape[1:]))


def _shares_range(quantizer: Any) -> bool:
    """Whether one range serves all that lies side by side."""
    return bool(quantizer.config.granularity == "tensor")


def _parts(source: Tensor, quantizer: Any, dim: int) -> list[PackedTensor]:
    """The codes of each stack or head. They are made together, as in training, so that the
    quantizer sees one batch."""
    codes = quantizer.pack(plain(source))

    def cut(rows: Tensor) -> list[Tensor]:
        parts = rows.view(*source.shape[:2], rows.size(1)).unbind(dim)
        return [part.contiguous() for part in parts]

    def ranges(numbers: Tensor) -> list[Tensor]:
        by_row = quantizer.groups.axis == 0 and numbers.dim() == 2
        return cut(numbers) if by_row else [numbers] * source.size(dim)

    pieces = zip(cut(codes.data), ranges(codes.scale), ranges(codes.zero_point), strict=True)
    return [PackedTensor(data, codes.num_cols, codes.bits, *affine) for data, *affine in pieces]
