"""Converted message passing: packed rows gathered along a CSR."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.typing import SparseTensor

from torch_geometric_qlr.errors import QLRWarning
from torch_geometric_qlr.nn.message_passing import QuantMessagePassing
from torch_geometric_qlr.nn.packed.deferred import Deferred, Epilogue, Stage, stage_of
from torch_geometric_qlr.nn.packed.edges import graph_of, remembering
from torch_geometric_qlr.nn.packed.hops import all_hops
from torch_geometric_qlr.nn.packed.layer import PackedLayer
from torch_geometric_qlr.nn.packed.linear import scaled
from torch_geometric_qlr.nn.packed.ranges import FrozenRange
from torch_geometric_qlr.nn.packed.routes import Route
from torch_geometric_qlr.nn.packed.scope import backend_scope, defer, is_deferring
from torch_geometric_qlr.sparse import CSRGraph, is_matrix
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor
from torch_geometric_qlr.tensor import functional as packed

__all__ = ["PackedMessagePassing"]

_HOOKS = tuple(
    f"_{name}_forward_{kind}hooks"
    for name in ("propagate", "message", "aggregate", "message_and_aggregate")
    for kind in ("", "pre_")
)


class PackedMessagePassing(PackedLayer, QuantMessagePassing):
    r"""A conv whose messages are integer codes,

    .. math::
        \mathbf{x}^{\prime}_i = S \sum_{j \in \mathcal{N}(i)} w_{ij} \, (\mathbf{c}_j - Z),

    gathered from packed rows. The CSR view of the graph and its normalisation are built once per
    adjacency object. Layers without such a kernel compute as the quantized layer does.
    """

    route: Route
    _has_told: bool = False
    _float_forward: Callable[..., Any]

    def quantized_forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._expects_features:
            self._check_features(args[0] if args else kwargs.get("x"))
        self._quant_hop = 0
        args = tuple(_entering(value) for value in args)
        done = all_hops(self, args, kwargs)
        if done is not None:
            return done
        return type(self)._float_forward(self, *args, **kwargs)

    def propagate(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Any:
        value = kwargs.get(self.route.source)
        i, j = (1, 0) if self.flow == "source_to_target" else (0, 1)
        pair = value if isinstance(value, (tuple, list)) else (value, value)
        source = pair[j]
        if not self._can_gather(source):
            return super().propagate(edge_index, size=size, **kwargs)
        sizes = self._check_input(edge_index, size)
        for dim in (i, j):
            if isinstance(pair[dim], Tensor):
                self._set_size(sizes, dim, pair[dim])
        num_dst = sizes[j] if sizes[i] is None else sizes[i]
        assert num_dst is not None

        quantizer = self.quantizer_at(self._source_keys[self.route.source])
        assert isinstance(quantizer, FrozenRange)
        if self.route.kernel == "spmm" or self._attends_to_none(source, kwargs):
            rows, shape = self._spread(source)
            out = defer(self._gather(edge_index, rows.codes(quantizer), num_dst, kwargs))
            out = out if shape is None else out.view(num_dst, *shape).transpose(0, 1)
        else:
            codes = _flat(source).codes(quantizer)
            alpha, keeps_heads = self._coefficients(edge_index, sizes, source, kwargs)
            out = defer(self._attend(edge_index, codes, num_dst, alpha))
            out = out.view(num_dst, *source.shape[1:]) if keeps_heads else out
        out = self.quantize_at("aggregate", out)
        self._quant_hop += 1
        return out

    def can_chain(self, x: Any) -> bool:
        """Whether nothing happens between hops but what a kernel does."""
        single = isinstance(x, Tensor) and x.dim() == 2
        plain = self.route.kernel == "spmm" and self.route.reduce == "sum" and single
        return plain and "aggregate" not in self.quantizers and self._can_gather(x)

    def _can_gather(self, source: Any) -> bool:
        """Whether this call is what the route was found for."""
        if self.reason or self.explain or self.decomposed_layers > 1:
            return False
        if any(getattr(self, hooks) for hooks in _HOOKS):
            return False
        fits = (
            isinstance(source, Tensor)
            and source.layout == torch.strided
            and source.dtype == torch.float32
            and source.dim() in (2, 3)
        )
        if not fits and not self._has_told:
            self._has_told = True
            warnings.warn(
                f"{self.path or type(self).__name__}: the source {self.route.source!r} is no "
                f"float32 tensor of 2 or 3 dimensions, so its messages are not packed.",
                QLRWarning,
                stacklevel=4,
            )
        return fits

    def _attends_to_none(self, source: Tensor, kwargs: dict[str, Any]) -> bool:
        """Whether a message that could multiply by coefficients is given weights, or nothing."""
        one_weight = source.dim() == 2 or kwargs.get(self.route.weight) is None
        return self.route.kernel == "attention" and one_weight

    def _spread(self, source: Tensor) -> tuple[Stage, tuple[int, ...] | None]:
        """A source as rows per node. Layers with several stacks have them before the nodes."""
        if source.dim() == 2:
            return stage_of(source), None
        rows = source.transpose(0, 1) if self.node_dim == -2 else source
        return _flat(rows), tuple(rows.shape[1:])

    # Sums with weights of the edges ##############################################################

    def _gather(self, adj: Any, codes: PackedTensor, num_dst: int, kwargs: dict[str, Any]) -> Stage:
        graph, weight = self.weighted_graph(adj, codes.size(0), num_dst, kwargs)
        reduce, backend = self.route.reduce, self.backend
        if reduce in ("max", "min"):
            return self._extremum(graph, weight, codes)

        def run(e: Epilogue, out: OutputQuantizer | None) -> Any:
            with backend_scope(backend):
                return packed.spmm(
                    graph.rowptr,
                    graph.col,
                    scaled(codes, e.factor, e.column),
                    edge_weight=weight,
                    bias=e.bias,
                    addend=e.addend,
                    addend_scale=e.addend_scale,
                    reduce=reduce,
                    relu=e.relu,
                    out=out,
                )

        shape, stretches = (num_dst, codes.size(1)), codes.scale.numel() == 1
        return Stage(run, shape, codes.device, adds=True, stretches=stretches, owner=self)

    def _extremum(self, graph: CSRGraph, weight: Tensor | None, codes: PackedTensor) -> Stage:
        largest = self.route.reduce == "max"
        if weight is None:
            return Stage.of_value(packed.extremum(graph.rowptr, graph.col, codes, largest=largest))
        # A weight may turn the order around, so every message is made.
        messages = codes.index_select(graph.col).dequantize() * weight.view(-1, 1)
        values = torch.segment_reduce(
            messages, "max" if largest else "min", offsets=graph.rowptr.long(), initial=None
        )
        return Stage.of_value(values.masked_fill(graph.degree().view(-1, 1) == 0, 0.0))

    def weighted_graph(
        self, adj: Any, num_src: int, num_dst: int, kwargs: dict[str, Any]
    ) -> tuple[CSRGraph, Tensor | None]:
        """The graph and its weights, which PyG takes from the matrix or from an argument."""
        name = self.route.weight
        weight = kwargs.get(name) if name else None
        if not is_matrix(adj):
            if weight is not None and weight.dim() != 1:  # the graph is remembered by the object
                weight = weight.view(-1)
            graph = graph_of(adj, weight, num_src, num_dst, self.flow)
            return graph, graph.value
        graph = graph_of(adj, None, num_src, num_dst, self.flow)
        if self.fuse:
            # The fused product reads the values, whether or not the message has a weight.
            reads = bool(name) or not isinstance(adj, SparseTensor)
            return graph, graph.value if reads else None
        if weight is not None:
            return graph, graph.in_order(weight.view(-1))
        return graph, graph.value if name == "edge_weight" else None

    # Sums with coefficients per edge and head ####################################################

    def _attend(self, adj: Any, codes: PackedTensor, num_dst: int, alpha: Tensor) -> Stage:
        graph = graph_of(adj, None, codes.size(0), num_dst, self.flow)
        alpha, backend = graph.in_order(alpha), self.backend

        def run(e: Epilogue, out: OutputQuantizer | None) -> Any:
            with backend_scope(backend):
                x = scaled(codes, e.factor)
                return packed.attention(
                    graph.rowptr, graph.col, x, alpha, bias=e.bias, relu=e.relu, out=out
                )

        return Stage(run, (num_dst, codes.size(1)), codes.device, owner=self)

    def _coefficients(
        self, adj: Any, sizes: list[int | None], source: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, bool]:
        """One coefficient per edge and head, and whether messages keep the heads apart."""
        heads = source.size(1) if source.dim() == 3 else 1
        if self.route.kernel == "attention":
            alpha: Tensor = kwargs[self.route.weight]
            return alpha.view(-1, heads), source.dim() == 3
        message = self._message_of_ones(adj, sizes, source, dict(kwargs))
        per_head = message.reshape(message.size(0), heads, message[:1].numel() // heads)
        return per_head[:, :, 0], message.dim() == 3

    def _message_of_ones(
        self, adj: Any, sizes: list[int | None], source: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        """The layer's own message, with ones for a source: what it multiplies its source by."""
        name = self.route.source
        for other, key in self._source_keys.items():
            if other != name and other in kwargs:
                kwargs[other] = self._quantize_source(key, kwargs[other])
        ones, value = torch.ones((), device=source.device).expand(source.shape), kwargs[name]
        if isinstance(value, (tuple, list)):
            j = 0 if self.flow == "source_to_target" else 1
            ones = tuple(ones if d == j else v for d, v in enumerate(value))  # type: ignore[assignment]
        collected = self._collect(self._user_args, adj, sizes, {**kwargs, name: ones})
        arguments = self.inspector.collect_param_data("message", collected)
        # The values of a matrix are no edge features, unless they were given as such.
        arguments |= {n: kwargs.get(n) for n in ("edge_attr",) if n in arguments}
        out: Tensor = self.float_class.message(self, **arguments)  # type: ignore[attr-defined]
        return out

    @classmethod
    def _namespace(cls, base: Any) -> dict[str, Any]:
        own = {
            "_float_forward": staticmethod(remembering(base.forward)),
            "edge_updater": base.edge_updater,
        }
        return {**super()._namespace(base), **own}


def _flat(x: Tensor) -> Stage:
    """One row per node, heads or stacks side by side."""
    return stage_of(x.reshape(x.size(0), math.prod(x.shape[1:])))


def _entering(value: Any) -> Any:
    """Features at the door of a layer: codes as tensors, and floats so that products with
    constants (a teleport term) reach a kernel."""
    if isinstance(value, PackedTensor):
        return Deferred(stage_of(value))
    if type(value) in (tuple, list):
        return type(value)(_entering(v) for v in value)
    plain = type(value) is Tensor and is_deferring() and value.layout == torch.strided
    if plain and value.dim() == 2 and value.dtype == torch.float32 and value.is_contiguous():
        return Deferred(Stage.of_value(value))
    return value
