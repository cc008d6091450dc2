"""Sparse feature matrices, by their stored values."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch_geometric.index import ptr2index

__all__ = ["entries", "row_norms", "with_values"]


def entries(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Row and column of each stored value, in order.

    Args:
        x (torch.Tensor): A matrix in coalesced COO, CSR or CSC layout.

    Example:
        >>> entries(torch.tensor([[0.0, 2.0], [3.0, 0.0]]).to_sparse())
        (tensor([0, 1]), tensor([1, 0]))
    """
    if x.layout == torch.sparse_coo:
        row, col = x.indices()
        return row, col
    if x.layout == torch.sparse_csr:
        return ptr2index(x.crow_indices()), x.col_indices()
    return x.row_indices(), ptr2index(x.ccol_indices())


def row_norms(x: Tensor) -> Tensor:
    r"""The Euclidean norm of each row.

    Args:
        x (torch.Tensor): A dense tensor, of which the last dimension is a row, or a sparse matrix.

    Example:
        >>> row_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]).to_sparse())
        tensor([5., 0.])
    """
    if x.layout == torch.strided:
        return x.norm(dim=-1)
    x = x.coalesce() if x.layout == torch.sparse_coo else x
    squares = x.values().new_zeros(x.size(0)).index_add_(0, entries(x)[0], x.values().square())
    return squares.sqrt()


def with_values(x: Tensor, values: Tensor) -> Tensor:
    r"""The matrix with other values at the same places.

    Args:
        x (torch.Tensor): A matrix in coalesced COO, CSR or CSC layout.
        values (torch.Tensor): Its new stored values, in order.

    Example:
        >>> with_values(torch.eye(2).to_sparse(), torch.tensor([2.0, 3.0])).to_dense()
        tensor([[2., 0.],
                [0., 3.]])
    """
    # The pattern is that of a tensor torch has made; checking it again would stall the device.
    unchecked: dict[str, Any] = {"check_invariants": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)
        if x.layout == torch.sparse_coo:
            return torch.sparse_coo_tensor(
                x.indices(), values, x.shape, is_coalesced=True, **unchecked
            )
        if x.layout == torch.sparse_csr:
            return torch.sparse_csr_tensor(
                x.crow_indices(), x.col_indices(), values, x.shape, **unchecked
            )
        return torch.sparse_csc_tensor(
            x.ccol_indices(), x.row_indices(), values, x.shape, **unchecked
        )
