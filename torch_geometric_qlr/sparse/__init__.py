"""One view of every adjacency a PyG layer takes: edges, CSR, normalised matrix; built once."""

from __future__ import annotations

from torch_geometric_qlr.sparse.adjacency import (
    Adjacency,
    adjacency_size,
    infer_num_nodes,
    is_matrix,
    to_edge_index,
    with_values,
)
from torch_geometric_qlr.sparse.cache import (
    AdjacencyCache,
    Entry,
    Fingerprint,
    can_remember,
    limit_memory,
)
from torch_geometric_qlr.sparse.csr import CSRGraph, csr_graph, sparse_csr
from torch_geometric_qlr.sparse.incidence import Incidence, symmetric_edges
from torch_geometric_qlr.sparse.memo import EdgeMemo, anchor_in
from torch_geometric_qlr.sparse.normalize import (
    gcn_edges,
    gcn_norm,
    in_form_of,
    inverse_sqrt_degree,
    propagation_adjacency,
)

__all__ = [
    "Adjacency",
    "AdjacencyCache",
    "CSRGraph",
    "EdgeMemo",
    "Entry",
    "Fingerprint",
    "Incidence",
    "adjacency_size",
    "anchor_in",
    "can_remember",
    "csr_graph",
    "gcn_edges",
    "gcn_norm",
    "in_form_of",
    "infer_num_nodes",
    "inverse_sqrt_degree",
    "is_matrix",
    "limit_memory",
    "propagation_adjacency",
    "sparse_csr",
    "symmetric_edges",
    "to_edge_index",
    "with_values",
]
