"""The layers of a model one by one: each a function of rows and a block of the graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn import Sequential as PyGSequential
from torch_geometric.nn.models.basic_gnn import BasicGNN

from torch_geometric_qlr.codes.chains import rows_of
from torch_geometric_qlr.errors import InputError, UnsupportedLayerError
from torch_geometric_qlr.layers.pyg import sequential_children
from torch_geometric_qlr.layers.state import float_class
from torch_geometric_qlr.layerwise.blocks import Block
from torch_geometric_qlr.layerwise.prepared import InBlocks
from torch_geometric_qlr.nn.registry import class_facts

__all__ = ["Step", "steps_of"]

#: From the rows of all nodes of a block to those of its own.
Step = Callable[[Any, Block], Tensor]

_GRAPH = ("edge_index", "adj_t", "edge_weight", "edge_attr")


def steps_of(runs: InBlocks, original: nn.Module, layers: Sequence[Any] | None) -> list[Step]:
    r"""The layers of a model.

    Args:
        runs (InBlocks): The model as it runs on blocks.
        original (torch.nn.Module): The model itself.
        layers (list, optional): What the user says they are.

    Raises:
        UnsupportedLayerError: If nobody knows.
        InputError: If one of them is no layer.
    """
    model: Any = runs.model
    if layers is not None:
        steps = [_of_user(runs, layer, f"layers[{i}]") for i, layer in enumerate(layers)]
    elif isinstance(original, BasicGNN) and type(original).forward is BasicGNN.forward:
        steps = _of_basic_gnn(model)
    elif isinstance(original, PyGSequential):
        steps = _of_sequential(model)
    elif isinstance(original, MessagePassing):
        steps = [_of_user(runs, original, type(original).__name__)]
    else:
        raise UnsupportedLayerError(
            f"inference: nobody can see which layers {type(original).__name__} calls, and in which "
            f"order. Say it: layers=[lambda model, x, edge_index: model.conv1(x, edge_index)"
            f".relu(), ...], with one convolution in each."
        )
    if not steps:
        raise InputError("inference: layers is empty. Pass one function for each convolution.")
    return steps


# As a user says it ################################################################################


def _of_user(runs: InBlocks, layer: Any, name: str) -> Step:
    if isinstance(layer, nn.Module):
        module = runs.of(layer)
        named = _named(layer.forward, 2, name)
        return lambda x, block: _convolved(module, x, block, **_extras(named, block))
    if not callable(layer):
        raise InputError(f"inference: {name} is a {type(layer).__name__}, and no layer.")
    named = _named(layer, 3, name)

    def call(x: Any, block: Block) -> Tensor:
        return _own(layer(runs.model, x, block.edges, **_extras(named, block)), block)

    return call


def _named(function: Any, count: int, name: str) -> set[str]:
    """What a layer takes of the data besides its first arguments."""
    parameters = inspect.signature(function).parameters
    required = [p.name for p in parameters.values() if p.default is p.empty]
    if len(parameters) < count or not set(required[count:]) <= set(_GRAPH):
        shape = "(x, edge_index)" if count == 2 else "(model, x, edge_index)"
        raise InputError(
            f"inference: {name} takes ({', '.join(parameters)}); a layer takes {shape}, and "
            f"edge_weight and edge_attr by name. The model it is given runs on blocks; it must "
            f"not call another one."
        )
    return set(list(parameters)[count:])


def _extras(named: set[str], block: Block) -> dict[str, Tensor]:
    return {name: value for name, value in block.extras.items() if name in named}


def _convolved(conv: Any, x: Any, block: Block, *args: Any, **extras: Tensor) -> Tensor:
    """What a convolution gives for a block's own nodes. One that takes those that receive apart is
    spared all other nodes of the block, which are many times as many."""
    if block.whole.table.is_matrix or not class_facts(float_class(conv)).forward.pairs:
        return _own(conv(x, block.edges, *args, **extras), block)
    out: Tensor = conv((x, rows_of(x, block.own)), block.pair_edges, *args, **extras)
    return out


def _own(out: Any, block: Block) -> Tensor:
    """The rows of a block's own nodes."""
    if not isinstance(out, Tensor) or out.dim() == 0 or out.size(0) != block.nodes.numel():
        shown = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            f"inference: a layer gives {shown} for {block.nodes.numel()} nodes; it gives a row for "
            f"each of them."
        )
    return out[block.own]


# Models of PyG ####################################################################################


def _of_basic_gnn(model: Any) -> list[Step]:
    """As `BasicGNN.forward` does it. Where its end reads all layers, each hands on what the earlier
    ones have made, beside its own."""
    names = [n for n in ("edge_weight", "edge_attr") if getattr(model, f"supports_{n}")]
    joins = hasattr(model, "jk")
    last = model.num_layers - 1

    def step(i: int) -> Step:
        def run(x: Any, block: Block) -> Tensor:
            earlier = x[block.own] if joins and i > 0 else None
            own = x[:, -model.hidden_channels :].contiguous() if joins and i > 0 else x
            out = _convolved(model.convs[i], own, block, **_extras(set(names), block))
            if i < last or model.jk_mode is not None:
                out = _activated(model, model.norms[i], out)
            if earlier is not None:
                out = torch.cat([earlier, out], dim=-1)
            return _ended(model, out) if i == last else out

        return run

    return [step(i) for i in range(model.num_layers)]


def _activated(model: Any, norm: nn.Module, x: Tensor) -> Tensor:
    if model.act is not None and model.act_first:
        x = model.act(x)
    x = norm(x)
    return model.act(x) if model.act is not None and not model.act_first else x


def _ended(model: Any, x: Tensor) -> Tensor:
    if hasattr(model, "jk"):
        x = model.jk(list(x.split(model.hidden_channels, dim=-1)))
    return model.lin(x) if hasattr(model, "lin") else x


def _of_sequential(model: Any) -> list[Step]:
    """Children in a row, of which each that takes edges begins a layer."""
    groups: list[list[tuple[Any, list[str]]]] = [[]]
    features, has_conv = None, False
    for module, taken, made in sequential_children(model):
        others = taken[1:]
        is_chain = features in (None, taken[0]) and len(made) == 1
        if not is_chain or (others and not _are_of_a_graph(others)):
            raise UnsupportedLayerError(
                f"inference: {type(module).__name__} of the Sequential takes "
                f"{', '.join(taken)} and gives {', '.join(made)}: its layers are no chain from "
                f"features to features. Say them: layers=[lambda model, x, edge_index: ...]."
            )
        if others and has_conv:
            groups.append([])
        has_conv = has_conv or bool(others)
        groups[-1].append((module, others))
        features = made[0]
    return [_in_a_row(group) for group in groups]


def _are_of_a_graph(names: list[str]) -> bool:
    return names[0] in ("edge_index", "adj_t") and set(names[1:]) <= {"edge_weight", "edge_attr"}


def _in_a_row(children: list[tuple[Any, list[str]]]) -> Step:
    def run(x: Any, block: Block) -> Tensor:
        is_own = False
        for module, others in children:
            if not others:
                x = module(x)
            else:
                extras = (block.extras.get(name) for name in others[1:])
                x, is_own = _convolved(module, x, block, *extras), True
        return x if is_own else _own(x, block)

    return run
