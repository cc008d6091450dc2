"""Every adjacency a PyG layer takes, read as edges that point from source to target."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.index import ptr2index
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import is_sparse
from torch_geometric.utils.num_nodes import maybe_num_nodes

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.quantizers.sparse_values import with_values as with_stored_values

__all__ = [
    "Adjacency",
    "adjacency_size",
    "check_adjacency",
    "compressed_rows",
    "infer_num_nodes",
    "is_compressed",
    "is_matrix",
    "to_edge_index",
    "with_values",
]

# ``SparseTensor`` is PyG's stand-in class when torch-sparse is not installed, so nothing is
# imported here.
Adjacency: TypeAlias = Tensor | SparseTensor

_INDEX_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def is_matrix(adj: Any) -> bool:
    r"""Tells a sparse matrix from a list of edges.

    A ``torch.sparse`` or ``torch_sparse.SparseTensor`` matrix is the *transposed* adjacency, as
    everywhere in PyG: its rows are the targets.

    Args:
        adj (Any): What a layer got as ``edge_index``.

    Example:
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> is_matrix(edge_index), is_matrix(torch.eye(3).to_sparse())
        (False, True)
    """
    return bool(is_sparse(adj))


def to_edge_index(
    adj: Adjacency, edge_weight: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    r"""Reads any adjacency as ``(edge_index, weight)``, row 0 the sources and row 1 the targets.

    Unlike :func:`torch_geometric.utils.to_edge_index` this takes plain edges too, keeps the
    duplicates of a matrix in coordinate format, invents no weights, and turns the rows and columns
    of a (transposed) matrix around, so that all forms of one graph give the same edges.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]`` or a sparse matrix
            ``adj_t``.
        edge_weight (torch.Tensor, optional): Weights ``[E]`` that belong to plain edges.
            (default: :obj:`None`)

    Shapes:
        - **output:** edge indices :math:`(2, |\mathcal{E}|)` of type ``int64``,
          weights :math:`(|\mathcal{E}|)` or :obj:`None`

    Raises:
        InputError: If ``adj`` is none of these, or has weights of its own and gets others.

    Example:
        >>> adj_t = torch.tensor([[0.0, 2.0], [0.0, 0.0]]).to_sparse_csr()  # one edge, 1 -> 0
        >>> to_edge_index(adj_t)
        (tensor([[1],
                [0]]), tensor([2.]))
    """
    if is_matrix(adj):
        if edge_weight is not None:
            raise InputError(
                "edge_weight was given next to a sparse matrix, which carries its own values. "
                "Put the weights into the matrix, or pass edge_index and edge_weight."
            )
        target, source, value = _matrix_entries(adj)
        return torch.stack([source.long(), target.long()]), value
    edge_index = _checked_edges(adj)
    if edge_weight is not None and edge_weight.size(0) != edge_index.size(1):
        raise InputError(
            f"edge_weight has {edge_weight.size(0)} entries for {edge_index.size(1)} edges. "
            "Pass one weight per column of edge_index."
        )
    return edge_index.long(), edge_weight


def with_values(adj: Adjacency, values: Tensor) -> Adjacency:
    r"""A matrix with other values at the same places.

    Args:
        adj (torch.Tensor or SparseTensor): The matrix.
        values (torch.Tensor): One for each entry, in the order of :func:`to_edge_index`.

    Example:
        >>> with_values(torch.eye(2).to_sparse_csr(), torch.tensor([2.0, 3.0])).to_dense()
        tensor([[2., 0.],
                [0., 3.]])
    """
    if isinstance(adj, SparseTensor):
        return adj.set_value(values, layout="coo")
    if adj.layout == torch.sparse_coo and not adj.is_coalesced():  # its duplicates stay
        return torch.sparse_coo_tensor(adj._indices(), values, adj.shape, check_invariants=False)
    return with_stored_values(adj, values)


def adjacency_size(adj: Adjacency) -> tuple[int | None, int | None]:
    r"""Numbers of source and target nodes as far as the object itself knows them.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges or a sparse matrix ``adj_t``.

    Example:
        >>> adjacency_size(torch.zeros(3, 5).to_sparse()), adjacency_size(torch.empty(2, 0).long())
        ((5, 3), (None, None))
    """
    if is_matrix(adj):
        return int(adj.size(1)), int(adj.size(0))
    if isinstance(adj, EdgeIndex):
        num_src, num_dst = adj.sparse_size()
        return num_src, num_dst
    return None, None


def infer_num_nodes(adj: Adjacency, num_nodes: int | None = None) -> int:
    r"""Number of nodes of a (square) graph.

    As told, as the object knows it, or the largest index plus one. The last case reads the edges,
    which waits for the device: layers pass ``num_nodes``.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges or a sparse matrix ``adj_t``.
        num_nodes (int, optional): Known number. (default: :obj:`None`)

    Raises:
        InputError: If a matrix has another size.

    Example:
        >>> infer_num_nodes(torch.tensor([[0, 4], [1, 2]]))
        5
    """
    known = [size for size in (*adjacency_size(adj), num_nodes) if size is not None]
    if any(size != known[0] for size in known[1:]):
        raise InputError(
            f"The graph has {sorted(set(known))} nodes by different counts. A layer on one set of "
            "nodes needs a square adjacency with a row for each row of x."
        )
    return known[0] if known else int(maybe_num_nodes(adj))


def is_compressed(adj: Any) -> bool:
    r"""Whether the targets of a matrix are compressed rows already.

    Args:
        adj (Any): What a layer got as ``edge_index``.
    """
    return isinstance(adj, SparseTensor) or (
        isinstance(adj, Tensor) and adj.layout == torch.sparse_csr
    )


def compressed_rows(adj: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Offsets, sources and weights of a matrix whose rows are compressed.

    Args:
        adj (torch.Tensor or SparseTensor): A matrix ``adj_t``, see :func:`is_compressed`.

    Example:
        >>> compressed_rows(torch.tensor([[0.0, 2.0], [0.0, 0.0]]).to_sparse_csr())
        (tensor([0, 1, 1]), tensor([1]), tensor([2.]))
    """
    if isinstance(adj, SparseTensor):
        rowptr, col, value = adj.csr()
        return rowptr, col, value
    return adj.crow_indices(), adj.col_indices(), adj.values()


def check_adjacency(adj: Any) -> None:
    r"""Refuses what is none of the forms of an adjacency.

    Args:
        adj (Any): What was passed as one.

    Raises:
        InputError: If it is none.
    """
    if not isinstance(adj, Tensor) and not is_matrix(adj):
        raise InputError(
            f"{type(adj).__name__} is no adjacency. Pass edge_index, an EdgeIndex, a torch.sparse "
            "matrix or a torch_sparse.SparseTensor."
        )


def _checked_edges(adj: Any) -> Tensor:
    check_adjacency(adj)
    if adj.dtype not in _INDEX_DTYPES or adj.dim() != 2 or adj.size(0) != 2:
        raise InputError(
            f"edge_index has shape {list(adj.shape)} and type {adj.dtype}; it must be [2, E] of "
            "integers. A dense adjacency matrix becomes one with torch_geometric.utils."
            "dense_to_sparse."
        )
    return adj.as_tensor() if isinstance(adj, EdgeIndex) else adj


def _matrix_entries(adj: Adjacency) -> tuple[Tensor, Tensor, Tensor | None]:
    """Row, column and value of every stored entry, in stored order."""
    if isinstance(adj, SparseTensor):
        return adj.coo()
    if adj.layout == torch.sparse_coo:
        # The underscored accessors alone show a matrix that was never coalesced: its duplicates
        # stay.
        row, col = adj._indices().detach()
        return row, col, adj.values() if adj.is_coalesced() else adj._values()
    if adj.layout == torch.sparse_csr:
        row = ptr2index(adj.crow_indices().detach())
        return row, adj.col_indices().detach(), adj.values()
    if adj.layout == torch.sparse_csc:
        col = ptr2index(adj.ccol_indices().detach())
        return adj.row_indices().detach(), col, adj.values()
    raise InputError(f"Sparse layout {adj.layout} is not supported. Use CSR, CSC or COO.")
