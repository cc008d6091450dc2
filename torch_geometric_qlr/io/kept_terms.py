"""An exported program in two: what is computed of some inputs alone, and what is left to do.

Run by Python, a converted model computes sorted edges, normalisation and codes of edge weights once
per graph. A program remembers nothing; but whoever calls it may keep the results of its first part.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.io.shared_terms import is_random

__all__ = ["Parts", "parts_of"]


class Parts(NamedTuple):
    r"""Two modules that are called with the same inputs.

    Args:
        terms (torch.nn.Module): Gives a tuple of tensors.
        rest (torch.nn.Module): Takes them behind the inputs, and gives what the whole does.
        shapes (tuple): Which of their dimensions may change, as :func:`torch.export.export` has it.
    """

    terms: nn.Module
    rest: nn.Module
    shapes: tuple[dict[int, Any], ...]


def parts_of(module: fx.GraphModule, fixed: Collection[int]) -> Parts:
    r"""Takes apart what depends on some inputs, and on sizes of the others, alone.

    Args:
        module (torch.fx.GraphModule): Of operations that are functions, with the values that they
            were traced with (``meta["val"]``).
        fixed (Collection[int]): Positions of those inputs.

    Raises:
        InputError: If nothing is computed of them alone.
    """
    places = module.graph.find_nodes(op="placeholder")
    inside, sizes = _computed_of(module.graph, {places[at] for at in fixed}, set(places))
    rest, terms = _rest(module.graph, _that_depend(inside, {places[at] for at in fixed}))
    if not terms:
        raise InputError(
            f"fixed_inputs={sorted(fixed)}: nothing is computed of these inputs alone, so there is "
            f"nothing to keep. They are positions among the inputs, from 0; edge_index is often 1."
        )
    first = fx.Graph()
    env = {place: first.placeholder(place.name) for place in places}
    for node in module.graph.nodes:
        if node in inside or node in sizes:
            env[node] = first.node_copy(node, env.__getitem__)
    first.output(tuple(env[node] for node in terms))
    first.eliminate_dead_code()
    spec = module._out_spec
    assert spec is not None  # as torch.export leaves it
    out = _Unflattened(fx.GraphModule(module, rest), spec)
    return Parts(fx.GraphModule(module, first), out, tuple(map(_changing, terms)))


class _Unflattened(nn.Module):
    """Gives what a program gives, in the containers of the model."""

    def __init__(self, program: fx.GraphModule, spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.program, self.spec = program, spec

    def forward(self, *inputs: Any) -> Any:
        return pytree.tree_unflatten(self.program(*inputs), self.spec)


def _computed_of(
    graph: fx.Graph, fixed: set[fx.Node], places: set[fx.Node]
) -> tuple[set[fx.Node], set[fx.Node]]:
    """The tensors that are computed of some inputs, and numbers that may be asked on the way."""
    inside: set[fx.Node] = set()
    sizes: set[fx.Node] = set()
    for node in graph.nodes:
        known = inside | sizes | fixed
        if node.op == "get_attr":
            inside.add(node)
        elif node.op != "call_function" or node.is_impure() or is_random(node.target):
            continue
        elif _is_number(node):
            if all(arg in known or arg in places for arg in node.all_input_nodes):
                sizes.add(node)
        elif all(arg in known for arg in node.all_input_nodes):
            inside.add(node)
    return inside, sizes


def _that_depend(inside: set[fx.Node], fixed: set[fx.Node]) -> set[fx.Node]:
    """Those that the inputs themselves have a part in. Of constants and sizes each part of the
    program computes what it needs."""
    found = set(fixed)
    for place in fixed:
        for node in place.graph.nodes:
            if node in inside and not found.isdisjoint(node.all_input_nodes):
                found.add(node)
    return found - fixed


def _changing(node: fx.Node) -> dict[int, Any]:
    shape = node.meta["val"].shape
    return {d: torch.export.Dim.AUTO for d, n in enumerate(shape) if isinstance(n, torch.SymInt)}


def _is_number(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)) or (
        node.target in (operator.ge, operator.le, operator.eq) and not isinstance(value, Tensor)
    )


def _rest(graph: fx.Graph, inside: set[fx.Node]) -> tuple[fx.Graph, list[fx.Node]]:
    """The graph that is handed what is computed inside, and which nodes these are."""
    rest = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.find_nodes(op="placeholder"):
        env[node] = rest.placeholder(node.name)
    handed = [node for node in graph.nodes if node in inside and _is_read(node, inside)]
    for node in handed:
        env[node] = rest.placeholder(node.name)
    for node in graph.nodes:
        # Assertions were for whoever traced; where sizes are inputs there is nothing to assert.
        if not (node in env or node in inside or _is_assertion(node)):
            env[node] = rest.node_copy(node, env.__getitem__)
    rest.eliminate_dead_code()
    for node in handed:
        if not env[node].users:
            rest.erase_node(env[node])
    return rest, [node for node in handed if env[node] in rest.nodes]


def _is_read(node: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether something outside reads a tensor."""
    is_tensor = isinstance(node.meta.get("val"), Tensor)
    return is_tensor and any(user not in inside for user in node.users)


def _is_assertion(node: fx.Node) -> bool:
    return node.op == "call_function" and "_assert_" in str(node.target)
