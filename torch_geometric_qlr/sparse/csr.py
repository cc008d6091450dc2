"""A graph as compressed sparse rows: the edges of a target lie side by side."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch_geometric.index import index2ptr, ptr2index
from torch_geometric.utils import index_sort

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.ops.checks import out_of_range
from torch_geometric_qlr.sparse.adjacency import (
    Adjacency,
    adjacency_size,
    check_adjacency,
    compressed_rows,
    infer_num_nodes,
    is_compressed,
    to_edge_index,
)
from torch_geometric_qlr.sparse.cache import AdjacencyCache

__all__ = ["CSRGraph", "csr_graph", "sparse_csr"]

_INT32_MAX = 2**31 - 1
_CACHE = AdjacencyCache()


@dataclasses.dataclass(frozen=True, eq=False)
class CSRGraph:
    r"""The edges of a (possibly bipartite) graph, sorted by target.

    The sources of target ``i`` are ``col[rowptr[i]:rowptr[i + 1]]``, in the order in which the
    edges were given. Nothing is merged or dropped: duplicates stay, and so do nodes without edges.

    Args:
        rowptr (torch.Tensor): Where each target's edges begin, ``[num_dst + 1]``, ``int64``.
        col (torch.Tensor): The source of each edge, ``[E]``; ``int32`` if both the sources and the
            edges can be counted in it, else ``int64``.
        value (torch.Tensor, optional): The weight of each edge, ``[E]``.
        perm (torch.Tensor, optional): The place of each edge in the adjacency it came from,
            ``[E]``, of the type of ``col``; :obj:`None` if they are in its order.
        num_src (int): Number of source nodes.
        num_dst (int): Number of target nodes.

    Example:
        >>> graph = csr_graph(torch.tensor([[0, 2, 2], [1, 0, 1]]))
        >>> graph.rowptr, graph.col, graph.perm
        (tensor([0, 1, 3, 3]), tensor([2, 0, 2], dtype=torch.int32),
         tensor([1, 0, 2], dtype=torch.int32))
    """

    rowptr: Tensor
    col: Tensor
    value: Tensor | None
    perm: Tensor | None
    num_src: int
    num_dst: int

    @classmethod
    def from_edge_index(
        cls, edge_index: Tensor, value: Tensor | None, num_src: int, num_dst: int
    ) -> CSRGraph:
        r"""Sorts edges by target; :func:`csr_graph` is the one that remembers it.

        Args:
            edge_index (torch.Tensor): Sources and targets, ``[2, E]``.
            value (torch.Tensor, optional): Weights ``[E]``.
            num_src (int): Number of source nodes.
            num_dst (int): Number of target nodes.

        Raises:
            InputError: If an index is negative or has no node.
        """
        if _are_small(num_src, num_dst, edge_index.size(1)):
            try:
                rowptr, col, perm = torch.ops.qlr.csr(edge_index, num_src, num_dst)
            except InputError:
                _check_range(edge_index, num_src, num_dst)
                raise
        else:
            _check_range(edge_index, num_src, num_dst)
            target, perm = index_sort(edge_index[1], max_value=max(num_dst - 1, 0), stable=True)
            rowptr, col = index2ptr(target, num_dst), edge_index[0][perm]
        value = None if value is None else value[perm]
        return cls(rowptr, col, value, perm, num_src, num_dst)

    @classmethod
    def from_rows(cls, rowptr: Tensor, col: Tensor, value: Tensor | None, num_src: int) -> CSRGraph:
        r"""Takes checked rows as they are. Memory is shared where the type fits.

        Args:
            rowptr (torch.Tensor): Where each target's edges begin, ``[num_dst + 1]``.
            col (torch.Tensor): The source of each edge, ``[E]``.
            value (torch.Tensor, optional): Weights ``[E]``.
            num_src (int): Number of source nodes.
        """
        num_dst = rowptr.size(0) - 1
        col = col.int() if _are_small(num_src, num_dst, col.size(0)) else col
        return cls(rowptr.long(), col, value, None, num_src, num_dst)

    @property
    def num_edges(self) -> int:
        r"""Number of stored edges, duplicates included."""
        return self.col.size(0)

    @property
    def device(self) -> torch.device:
        r"""Where the graph lies."""
        return self.col.device

    def degree(self) -> Tensor:
        r"""Number of edges into each target, ``[num_dst]``."""
        return self.rowptr[1:] - self.rowptr[:-1]

    def with_weight(self, edge_weight: Tensor | None) -> CSRGraph:
        r"""The same graph with other weights.

        Args:
            edge_weight (torch.Tensor, optional): Weights in the order of the *original* edges,
                ``[E]``.
        """
        value = None if edge_weight is None else self.in_order(edge_weight)
        return dataclasses.replace(self, value=value)

    def in_order(self, values: Tensor) -> Tensor:
        r"""Values of the edges in the order of this graph.

        Args:
            values (torch.Tensor): In the order of the *original* edges, ``[E, *]``.
        """
        return values if self.perm is None else values.index_select(0, self.perm)

    def edge_index(self) -> Tensor:
        r"""Sources and targets ``[2, E]`` in the order of this graph, ``int64``."""
        return torch.stack([self.col.long(), ptr2index(self.rowptr, self.num_edges)])

    def transpose(self) -> CSRGraph:
        r"""The graph with all edges turned around, as a backward pass needs it.

        ``perm`` still leads to the adjacency from which *this* graph was made.
        """
        turned = CSRGraph.from_edge_index(
            self.edge_index().flip(0), self.value, self.num_dst, self.num_src
        )
        assert turned.perm is not None
        return dataclasses.replace(turned, perm=self._original(turned.perm))

    def _original(self, perm: Tensor) -> Tensor:
        return perm if self.perm is None else self.perm[perm]

    def to_torch_csr(self, dtype: torch.dtype | None = None) -> Tensor:
        r"""The matrix ``adj_t`` as ``torch.sparse_csr``, which shares the columns.

        Args:
            dtype (torch.dtype, optional): Type of the values, for unweighted edges ones of it.
                (default: :obj:`None`)
        """
        value = self.value
        if value is None:
            value = torch.ones(self.num_edges, dtype=dtype, device=self.device)
        size = (self.num_dst, self.num_src)
        return sparse_csr(self.rowptr, self.col, value.to(dtype or value.dtype), size)

    def to(self, device: torch.device | str) -> CSRGraph:
        r"""The graph on another device.

        Args:
            device (torch.device or str): Where to.
        """
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> CSRGraph:
        return dataclasses.replace(
            self,
            rowptr=function(self.rowptr),
            col=function(self.col),
            value=None if self.value is None else function(self.value),
            perm=None if self.perm is None else function(self.perm),
        )


def _are_small(*counts: int) -> bool:
    """Whether 32 bits number them; sizes are not known while a model is traced."""
    return torch.compiler.is_compiling() or max(counts) <= _INT32_MAX


def sparse_csr(rowptr: Tensor, col: Tensor, value: Tensor, size: tuple[int, int]) -> Tensor:
    r"""A ``torch.sparse_csr`` matrix, quietly.

    Torch warns about every first matrix of a process ("beta state", "invariant checks"). The
    checks wait for the device and, on indices that come from a sort, have nothing to find.

    Args:
        rowptr (torch.Tensor): Where each row begins, ``[size[0] + 1]``.
        col (torch.Tensor): Columns ``[E]``.
        value (torch.Tensor): Values ``[E]``.
        size (tuple): Rows and columns.

    Example:
        >>> rowptr, col = torch.tensor([0, 1, 2]), torch.tensor([1, 0])
        >>> sparse_csr(rowptr, col, torch.ones(2), (2, 2)).to_dense()
        tensor([[0., 1.],
                [1., 0.]])
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)
        rowptr = rowptr.to(col.dtype)  # torch wants one type for both
        return torch.sparse_csr_tensor(rowptr, col, value, size=size, check_invariants=False)


def csr_graph(
    adj: Adjacency,
    edge_weight: Tensor | None = None,
    *,
    num_src: int | None = None,
    num_dst: int | None = None,
) -> CSRGraph:
    r"""Reads any adjacency as a :class:`CSRGraph`, built once per adjacency object.

    Building sorts the edges and checks their range, which waits for the device once. Calling again
    with the same, unchanged object costs nothing; weights that require grad are only rearranged.
    Rows that are compressed already (``torch.sparse_csr``, ``SparseTensor``) are not sorted, and
    the memory of their columns is shared if they are ``int32``.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]`` or a sparse matrix
            ``adj_t``.
        edge_weight (torch.Tensor, optional): Weights ``[E]`` that belong to plain edges.
            (default: :obj:`None`)
        num_src (int, optional): Number of source nodes; by default as ``adj`` has it, else the
            larger of the largest index plus one and ``num_dst``. (default: :obj:`None`)
        num_dst (int, optional): Number of target nodes, likewise. (default: :obj:`None`)

    Raises:
        InputError: If an index is negative or has no node, or if the sizes contradict those of a
        matrix.

    Example:
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> csr_graph(edge_index) is csr_graph(edge_index)
        True
        >>> csr_graph(edge_index, torch.tensor([0.5, 2.0])).value
        tensor([0.5000, 2.0000])
    """

    check_adjacency(adj)

    def build() -> CSRGraph:
        if is_compressed(adj):
            return _from_matrix(adj, num_src, num_dst)
        edge_index, value = to_edge_index(adj)
        sizes = _sizes(adj, edge_index, num_src, num_dst)
        # Detached where possible: the values of a matrix are a view that would keep it alive.
        if value is not None and not value.requires_grad:
            value = value.detach()
        return CSRGraph.from_edge_index(edge_index.detach(), value, *sizes)

    if edge_weight is None:
        return _CACHE.get(adj, ("csr", num_src, num_dst), build)
    to_edge_index(adj, edge_weight)  # checks them
    graph = csr_graph(adj, num_src=num_src, num_dst=num_dst)
    if edge_weight.requires_grad:
        return graph.with_weight(edge_weight)
    key = ("weighted", num_src, num_dst)
    return _CACHE.get(adj, key, lambda: graph.with_weight(edge_weight.detach()), edge_weight)


def _from_matrix(adj: Adjacency, num_src: int | None, num_dst: int | None) -> CSRGraph:
    own_src, own_dst = adjacency_size(adj)
    assert own_src is not None and own_dst is not None
    _check_sizes((num_src, num_dst), (own_src, own_dst))
    rowptr, col, value = compressed_rows(adj)
    _check_range((col,), own_src, own_dst)
    # Detached where possible: the values of a matrix are a view that would keep it alive.
    if value is not None and not value.requires_grad:
        value = value.detach()
    return CSRGraph.from_rows(rowptr.detach(), col.detach(), value, own_src)


def _check_sizes(given: tuple[int | None, int | None], own: tuple[int | None, int | None]) -> None:
    for name, wanted, found in zip(("num_src", "num_dst"), given, own, strict=True):
        if wanted is not None and found is not None and wanted != found:
            raise InputError(f"{name} is {wanted}, but the adjacency was made for {found}.")


def _sizes(
    adj: Adjacency, edge_index: Tensor, num_src: int | None, num_dst: int | None
) -> tuple[int, int]:
    own_src, own_dst = adjacency_size(adj)
    _check_sizes((num_src, num_dst), (own_src, own_dst))
    num_src = own_src if num_src is None else num_src
    num_dst = own_dst if num_dst is None else num_dst
    if num_src is None and num_dst is None:
        num_src = num_dst = infer_num_nodes(edge_index)
    elif num_src is None or num_dst is None:
        largest = infer_num_nodes(edge_index)
        num_src = max(largest, num_dst or 0) if num_src is None else num_src
        num_dst = max(largest, num_src) if num_dst is None else num_dst
    return num_src, num_dst


def _check_range(ends: Iterable[Tensor], num_src: int, num_dst: int) -> None:
    """Whether sources, and targets unless they are rows, are nodes. In a traced model the ops see
    to that."""
    if torch.compiler.is_compiling():
        return
    for name, index, count in zip(("source", "target"), ends, (num_src, num_dst), strict=False):
        problem = out_of_range(name, index, count)
        if problem:
            raise InputError(f"{problem}.")
