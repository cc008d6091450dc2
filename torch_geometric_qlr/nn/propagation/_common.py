"""What the propagation layers share: the check of their input, dropout of edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.typing import Adj, SparseTensor

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.sparse import is_matrix, sparse_csr


def check_features(module: torch.nn.Module, x: Tensor) -> None:
    r"""Raises an :class:`~torch_geometric_qlr.errors.InputError` unless ``x`` is ``[N, F]`` floats.

    Args:
        module (torch.nn.Module): Who got it.
        x (torch.Tensor): Node features.
    """
    name = type(module).__name__
    if not isinstance(x, Tensor):
        raise InputError(
            f"{name}: x is a {type(x).__name__}, it must be one tensor. Propagation "
            "keeps the nodes, so it does not take the two sets of a bipartite graph."
        )
    if x.dim() != 2 or not x.is_floating_point() or x.layout != torch.strided:
        raise InputError(
            f"{name}: x has shape {list(x.shape)}, type {x.dtype} and layout {x.layout}; it "
            "must be a dense [num_nodes, num_features] tensor of floats. Convert it with "
            "x.to_dense() or x.float()."
        )


def num_entries(edge_index: Adj) -> int:
    r"""Number of edges, or of stored entries of a matrix.

    Args:
        edge_index (torch.Tensor or SparseTensor): Edges ``[2, E]`` or a sparse matrix.
    """
    if not is_matrix(edge_index):
        return edge_index.size(1)
    return int(edge_index.nnz() if isinstance(edge_index, SparseTensor) else edge_index._nnz())


def drop_edges(
    edge_index: Tensor, edge_weight: Tensor | None, p: float
) -> tuple[Tensor, Tensor | None]:
    r"""Sets a share of the entries of an adjacency to zero and scales up the rest.

    Args:
        edge_index (torch.Tensor): Edges ``[2, E]`` or a CSR matrix.
        edge_weight (torch.Tensor, optional): Weights ``[E]`` of the edges.
        p (float): Probability of an entry to become zero.
    """
    if p == 0.0:
        return edge_index, edge_weight
    if is_matrix(edge_index):
        value = F.dropout(edge_index.values(), p=p)
        rowptr, col = edge_index.crow_indices(), edge_index.col_indices()
        return sparse_csr(rowptr, col, value, (edge_index.size(0), edge_index.size(1))), None
    if edge_weight is None:
        edge_weight = torch.ones(edge_index.size(1), device=edge_index.device)
    return edge_index, F.dropout(edge_weight, p=p)
