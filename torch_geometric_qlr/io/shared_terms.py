"""What several layers compute of one graph is computed once in an exported program.

Run by Python, layers share what is remembered of a graph: sorted edges, normalisation, codes of
weights. A traced program remembers nothing, and has all of it once for each layer.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

__all__ = ["functional_module", "is_random", "share_terms"]

#: On sizes, and what takes a result apart.
_BUILTIN = frozenset({operator.getitem, operator.add, operator.sub, operator.mul})


def functional_module(program: torch.export.ExportedProgram) -> fx.GraphModule:
    r"""The operations of a program, none of which writes to what another one reads.

    Args:
        program (torch.export.ExportedProgram): The program.
    """
    module = program.run_decompositions({}).module(check_guards=False)
    _register_constants(module)
    return module


def _register_constants(module: fx.GraphModule) -> None:
    """Constants are plain attributes, which torch does not find again when it traces the module
    once more, if it has lifted one more of the same name."""
    for node in module.graph.find_nodes(op="get_attr"):
        path, _, name = node.target.rpartition(".")
        owner = module.get_submodule(path)
        value = owner.__dict__.get(name)
        if isinstance(value, torch.Tensor):
            delattr(owner, name)
            owner.register_buffer(name, value, persistent=False)


def share_terms(module: fx.GraphModule) -> None:
    r"""One node in the place of all that do the same to the same.

    Args:
        module (torch.fx.GraphModule): Of operations that are functions.

    Example:
        >>> def twice(x):
        ...     return torch.ops.aten.neg.default(x) * torch.ops.aten.neg.default(x)
        >>> module = fx.symbolic_trace(twice)
        >>> share_terms(module)
        >>> sum(node.op == "call_function" for node in module.graph.nodes)
        2
    """
    known: dict[Any, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node.users or not _is_function(node.target):
            continue
        first = known.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            module.graph.erase_node(node)
    module.recompile()


def _is_function(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return target in _BUILTIN
    return not (is_random(target) or target._schema.is_mutable)


def is_random(target: Any) -> bool:
    r"""Whether an operation gives something else in each call.

    Args:
        target (Any): What a node of a program calls.
    """
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
