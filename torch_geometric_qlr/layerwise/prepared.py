"""A model whose convolutions see blocks of a graph, and treat their edges as those of the whole."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch_geometric.nn import MessagePassing

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.layers.layer_spec import EdgePreparation
from torch_geometric_qlr.layers.state import float_class
from torch_geometric_qlr.layerwise.blocks import Block, EdgeTable, WholeGraph
from torch_geometric_qlr.nn.registry import class_facts

__all__ = ["InBlocks"]


class InBlocks:
    r"""A model to be called on blocks. It shares all numbers with the one it is made of, and that
    one stays as it is.

    What a convolution computes from its edges, such as the degrees by which it normalises them,
    needs the edges of all nodes of a block, which are not there. It is computed of the whole graph
    once, and handed to the convolution with the block.

    Args:
        model (torch.nn.Module): The model.
        graph (WholeGraph): The graph.

    Attributes:
        model (torch.nn.Module): What is called.
    """

    def __init__(self, model: nn.Module, graph: WholeGraph) -> None:
        self._graph = graph
        self._names = {id(m): n for n, m in model.named_modules()}
        self._made: dict[int, nn.Module] = {}
        self.model = self._copy(model)
        self._block: Block | None = None
        self._first: tuple[str, Any] | None = None

    def enter(self, block: Block) -> None:
        r"""A layer is about to be called on a block.

        Args:
            block (Block): The block.
        """
        self._block, self._first = block, None

    def of(self, module: nn.Module) -> nn.Module:
        r"""What stands for a module of the model.

        Args:
            module (torch.nn.Module): The module.

        Raises:
            InputError: If it is none of the model's.
        """
        if id(module) not in self._names:
            raise InputError(
                f"inference: {type(module).__name__} is a layer, and no part of the model. Pass "
                f"layers of the model that is run."
            )
        return self._made.get(id(module), module)

    # The copy #####################################################################################

    def _copy(self, module: nn.Module) -> nn.Module:
        """The module, or a copy of its outside, if there is a convolution inside."""
        if id(module) in self._made:
            return self._made[id(module)]
        if not any(isinstance(inner, MessagePassing) for inner in module.modules()):
            return module
        new = copy.copy(module)
        self._made[id(module)] = new
        if isinstance(module, MessagePassing):
            return self._followed(module, new)
        new.__dict__["_modules"] = {
            name: None if child is None else self._copy(child)
            for name, child in module._modules.items()
        }
        return new

    def _followed(self, conv: nn.Module, new: nn.Module) -> nn.Module:
        for name in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
            new.__dict__[name] = OrderedDict(conv.__dict__[name])
        known, path = _preparation(conv, self._graph.adj), self._names[id(conv)]
        if known is not None:
            setattr(new, known.flag, False)

        around = weakref.ref(self)  # or the graph would stay until a circle is looked for

        def hook(layer: Any, args: Any, kwargs: Any) -> Any:
            runs = around()
            assert runs is not None
            return runs._with_block(conv, path, known, args, kwargs)

        new.register_forward_pre_hook(hook, with_kwargs=True)
        return new

    # A call of a convolution ######################################################################

    def _with_block(
        self, conv: Any, path: str, known: EdgePreparation | None, args: Any, kwargs: Any
    ) -> Any:
        block = self._block
        assert block is not None
        signature = inspect.signature(conv.forward)
        arguments = signature.bind(*args, **kwargs)
        arguments.apply_defaults()
        given = arguments.arguments
        x = next(iter(given.values()))
        as_pair = isinstance(x, tuple)
        source = x[0] if as_pair else x
        self._check_one_hop(path, source)
        if known is None:
            return None
        if given["edge_index"] is not (block.pair_edges if as_pair else block.edges):
            raise InputError(
                f"inference: {path} is called with other edges than those of its layer. It "
                f"normalises or completes them, which needs the whole graph: do that before, and "
                f"switch {known.flag} off."
            )
        extra = self._extra(path, block, known, given)
        table = _prepared(conv, known, block.whole, extra, source.dtype)
        given["edge_index"] = table.edges_of(block, as_pair=as_pair)
        if known.extra:
            given[known.extra] = table.extras_of(block).get(known.extra)
        return (), given

    def _check_one_hop(self, path: str, source: Any) -> None:
        if self._first is None:
            self._first = (path, source)
        elif self._first[1] is not source:
            raise InputError(
                f"inference: one layer calls {self._first[0]} and then {path} on other features. A "
                f"block has the neighbours of its nodes and not theirs in turn: make each "
                f"convolution a layer of its own."
            )

    @staticmethod
    def _extra(path: str, block: Block, known: EdgePreparation, given: dict[str, Any]) -> str:
        """The name of what the graph has for its edges and the convolution is given."""
        value = given.get(known.extra) if known.extra else None
        if value is None:
            return ""
        for name, own in block.extras.items():
            if own is value:
                return name
        raise InputError(
            f"inference: {path} is called with {known.extra} that the data does not have. Put it "
            f"into the data as edge_weight or edge_attr."
        )


def _preparation(conv: nn.Module, adj: Any) -> EdgePreparation | None:
    """What a convolution does to its edges, if it is switched on."""
    known = class_facts(float_class(conv)).forward.edges
    if known is None or not known.flag or not getattr(conv, known.flag) or not known.takes(adj):
        return None
    return known


def _prepared(
    conv: Any, known: EdgePreparation, whole: WholeGraph, extra: str, dtype: torch.dtype
) -> EdgeTable:
    """The edges of the whole graph as a convolution makes them; layers that make the same ones
    share them."""
    options = tuple(repr(getattr(conv, name, None)) for name in known.options)
    key = (known, options, extra, dtype)
    if key not in whole.prepared:
        table, num_nodes = whole.table, whole.num_nodes
        features = torch.empty(num_nodes, 1, dtype=dtype, device="meta")
        given = table.extras.get(extra) if extra else None
        arguments = {"x": features, "edge_index": whole.adj}
        out = known.prepare(conv, arguments, whole.adj, given)
        adj, value = out if isinstance(out, tuple) else (out, given)
        extras = {} if value is None else {known.extra: value}
        whole.prepared[key] = EdgeTable(adj, extras, num_nodes)
    return whole.prepared[key]
