"""What an exported program may change of its example inputs: the numbers of nodes and of edges.

From the examples follow which dimensions these are, and inputs of other sizes: larger ones to trace
with, in which no two sizes are the same by chance, and smaller ones to compare answers on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_geometric_qlr.errors import InputError

__all__ = ["GraphInputs", "check_plain"]

_NODES, _EDGES = "nodes", "edges"
_INTEGERS = (torch.int64, torch.int32)


def check_plain(inputs: Any, name: str) -> tuple[Any, ...]:
    r"""Inputs of a model as a tuple, if a file can take such.

    Args:
        inputs (tuple): Dense tensors, numbers and :obj:`None`, in the order of ``forward``.
        name (str): What they are called in an error.

    Raises:
        InputError: If they are something else.
    """
    if isinstance(inputs, Tensor) or not isinstance(inputs, Sequence):
        raise InputError(
            f"{name} is a {type(inputs).__name__}; pass the arguments of the model's forward in "
            f"their order, as a tuple: (x, edge_index)."
        )
    for at, value in enumerate(inputs):
        plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided
        if not (plain or value is None or isinstance(value, (bool, int, float))):
            raise InputError(
                f"{name}[{at}] is a {type(value).__name__}; an exported model takes dense tensors, "
                f"numbers and None. Pass a graph as edge_index."
            )
    return tuple(inputs)


class _Place(NamedTuple):
    """A dimension that may change."""

    argument: int
    dim: int
    name: str


class GraphInputs:
    r"""Example inputs, the dimensions of them that count nodes or edges, and others derived.

    The first integer tensor of shape :math:`(2, |\mathcal{E}|)` is the graph, the first other
    tensor has a row per node. What else has as many rows as there are edges, or nodes, has one for
    each.

    Args:
        inputs (tuple): The example inputs, as :func:`check_plain` leaves them.

    Raises:
        InputError: If there is no tensor with rows, or no node or edge in the example.

    Example:
        >>> x, edge_index = torch.rand(3, 8), torch.tensor([[0, 1], [1, 2]])
        >>> example = GraphInputs((x, edge_index))
        >>> example.words
        '3 nodes (dimension 0 of input 0) and 2 edges (dimension 1 of input 1)'
        >>> [tuple(t.shape) for t in example.larger()]
        [(6, 8), (2, 7)]
    """

    def __init__(self, inputs: tuple[Any, ...]) -> None:
        self.inputs = inputs
        self.graph = next((i for i, t in enumerate(inputs) if _is_graph(t)), None)
        rows = [i for i, t in enumerate(inputs) if _has_rows(t) and i != self.graph]
        if not rows:
            raise InputError("example_inputs has no tensor with a row for each node.")
        self.sizes = {_NODES: inputs[rows[0]].size(0)}
        if self.graph is not None:
            self.sizes[_EDGES] = inputs[self.graph].size(1)
        for name, size in self.sizes.items():
            if size == 0:
                raise InputError(f"example_inputs has no {name}; pass an example with some.")
        self.places = list(self._places(rows))

    def _places(self, rows: Iterable[int]) -> Iterable[_Place]:
        first, *others = rows
        yield _Place(first, 0, _NODES)
        if self.graph is not None:
            yield _Place(self.graph, 1, _EDGES)
        for at in others:
            t = self.inputs[at]
            names = [name for name, size in self.sizes.items() if size == t.size(0)]
            if names:
                # Of as many edges as nodes: integers are batches of nodes, floats go with edges.
                yield _Place(at, 0, names[-1] if t.is_floating_point() else names[0])

    @property
    def dynamic_shapes(self) -> tuple[Any, ...]:
        """What :func:`torch.export.export` is told."""
        shapes: list[Any] = [{} if isinstance(t, Tensor) else None for t in self.inputs]
        for place in self.places:
            shapes[place.argument][place.dim] = torch.export.Dim.DYNAMIC
        return tuple(shapes)

    @property
    def words(self) -> str:
        """What may change, for people."""
        parts = []
        for name, size in self.sizes.items():
            where = [f"dimension {p.dim} of input {p.argument}" for p in self.places]
            where = [w for w, p in zip(where, self.places, strict=True) if p.name == name]
            parts.append(f"{size} {name} ({', '.join(where)})")
        return " and ".join(parts)

    def larger(self) -> tuple[Any, ...]:
        """A few nodes and edges more, so that no size is that of another dimension by chance."""
        moving = {(p.argument, p.dim) for p in self.places}
        taken = {
            size
            for at, t in enumerate(self.inputs)
            if isinstance(t, Tensor)
            for dim, size in enumerate(t.shape)
            if (at, dim) not in moving
        }
        sizes = {}
        for more, (name, size) in zip((3, 5), self.sizes.items(), strict=False):
            size += more
            while size in taken:
                size += 1
            taken.add(size)
            sizes[name] = size
        return self._of(sizes)

    def smaller(self) -> tuple[Any, ...]:
        """About half of the nodes, and a third of the edges."""
        parts = {_NODES: 2, _EDGES: 3}
        return self._of({name: -(-size // parts[name]) for name, size in self.sizes.items()})

    def _of(self, sizes: dict[str, int]) -> tuple[Any, ...]:
        """The inputs with other sizes: rows again or fewer, and every edge moved on by a node."""
        made = list(self.inputs)
        for at, dim, name in self.places:
            size, t = sizes[name], made[at]
            # Edges start anew; of nodes the last repeats, so that what is sorted stays sorted.
            index = torch.arange(size, device=t.device)
            index = index % t.size(dim) if name == _EDGES else index.clamp(max=t.size(dim) - 1)
            made[at] = t.detach().index_select(dim, index)
        if self.graph is not None:
            made[self.graph] = (made[self.graph] + 1) % sizes[_NODES]
        return tuple(made)


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _is_graph(value: Any) -> bool:
    return _has_rows(value) and value.dim() == 2 and value.size(0) == 2 and value.dtype in _INTEGERS
