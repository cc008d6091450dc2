"""Blocks of a graph: some nodes, all of their neighbours, and the edges between these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch_geometric.index import ptr2index
from torch_geometric.typing import SparseTensor

from torch_geometric_qlr.sparse import CSRGraph, csr_graph, is_matrix, sparse_csr

__all__ = ["Block", "EdgeTable", "WholeGraph", "loops_like"]


class EdgeTable:
    r"""Edges of a graph by their targets, with what belongs to them.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]``, or a matrix ``adj_t``.
        extras (dict): Weights or features of plain edges, by name.
        num_nodes (int): Number of nodes.
    """

    def __init__(self, adj: Any, extras: Mapping[str, Tensor], num_nodes: int) -> None:
        self.extras = dict(extras)
        self._form = "edges"
        if is_matrix(adj):  # its size is that of all nodes
            self._form = "SparseTensor" if isinstance(adj, SparseTensor) else "matrix"
        self.csr: CSRGraph = csr_graph(adj, num_src=num_nodes, num_dst=num_nodes)

    @property
    def is_matrix(self) -> bool:
        """Whether the graph is a matrix."""
        return self._form != "edges"

    def edges_of(self, block: Block, *, as_pair: bool = False) -> Any:
        r"""The edges into the nodes of a block, in the form that the graph has.

        Args:
            block (Block): The block, whose numbers of nodes they are given in.
            as_pair (bool): Whether its own nodes are numbered by themselves as targets.
        """
        rowptr = self.csr.rowptr[block.start : block.end + 1]
        begin, end = int(rowptr[0]), int(rowptr[-1])
        rowptr, col = rowptr - begin, block.local(self.csr.col[begin:end])
        if not as_pair:  # the other nodes have no edges, and come before and behind
            before, after = block.own.start, block.nodes.numel() - block.own.stop
            rowptr = torch.cat([rowptr[:1].expand(before), rowptr, rowptr[-1:].expand(after)])
        value = None if self.csr.value is None else self.csr.value[begin:end].to(block.device)
        return self.in_form(rowptr.to(block.device), col.to(block.device), value)

    def extras_of(self, block: Block) -> dict[str, Tensor]:
        r"""What belongs to these edges.

        Args:
            block (Block): The block.
        """
        begin, end = (int(self.csr.rowptr[i]) for i in (block.start, block.end))
        perm = slice(begin, end) if self.csr.perm is None else self.csr.perm[begin:end].long()
        return {n: v[perm].to(block.device) for n, v in self.extras.items()}

    def in_form(self, rowptr: Tensor, col: Tensor, value: Tensor | None) -> Any:
        r"""Rows of sources in the form that the graph has.

        Args:
            rowptr (torch.Tensor): Where the edges of each node begin.
            col (torch.Tensor): Their sources.
            value (torch.Tensor, optional): Values of a matrix.
        """
        size = (rowptr.numel() - 1, rowptr.numel() - 1)
        if self._form == "SparseTensor":
            options: Any = {"sparse_sizes": size, "is_sorted": True}
            return SparseTensor(rowptr=rowptr, col=col, value=value, **options)
        if self._form == "matrix":
            assert value is not None
            return sparse_csr(rowptr, col, value, size)
        return torch.stack([col, ptr2index(rowptr, col.numel())])


class WholeGraph:
    r"""A graph that is gone through in blocks of consecutive nodes.

    Args:
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]``, or a matrix ``adj_t``.
        extras (dict): Weights or features of plain edges, by name.
        num_nodes (int): Number of nodes.
        device (torch.device): Where blocks are wanted.
    """

    #: So many edges and nodes are in a block, unless there is a node with more.
    budget = 1 << 20

    def __init__(
        self, adj: Any, extras: Mapping[str, Tensor], num_nodes: int, device: torch.device
    ) -> None:
        self.adj, self.num_nodes, self.device = adj, num_nodes, device
        self.table = EdgeTable(adj, extras, num_nodes)
        #: Edges as a layer prepares them, by the layer and what it was given with them.
        self.prepared: dict[Any, EdgeTable] = {}

    def blocks(self, batch_size: int | None = None) -> Iterator[Block]:
        r"""All of its nodes in blocks, in order.

        Args:
            batch_size (int, optional): So many nodes in each; by default as :attr:`budget` allows.
        """
        rowptr = self.table.csr.rowptr
        inside = torch.zeros(self.num_nodes, dtype=torch.bool, device=rowptr.device)
        position = torch.zeros(self.num_nodes, dtype=torch.long, device=rowptr.device)
        weights = rowptr + torch.arange(rowptr.numel(), device=rowptr.device)
        start = 0
        while True:
            if batch_size is None:
                end = int(torch.searchsorted(weights, weights[start] + self.budget, right=True)) - 1
            else:
                end = start + batch_size
            end = min(max(end, start + 1), self.num_nodes)
            yield Block(self, start, end, inside, position)
            start = end
            if start >= self.num_nodes:
                return


class Block:
    r"""Consecutive nodes, their neighbours, and the edges that lead to the former.

    Args:
        whole (WholeGraph): The graph.
        start, end (int): The nodes.
        inside, position (torch.Tensor): Memory for all nodes: which are neighbours, none when a
            block begins; and the number of each in the block.

    Attributes:
        nodes (torch.Tensor): All nodes of the block, in the order of the graph: so are edges then.
        own (slice): Which of them it is made for.
    """

    def __init__(
        self, whole: WholeGraph, start: int, end: int, inside: Tensor, position: Tensor
    ) -> None:
        self.whole, self.start, self.end = whole, start, end
        self.device, self._position = whole.device, position
        csr = whole.table.csr
        inside[csr.col[int(csr.rowptr[start]) : int(csr.rowptr[end])].long()] = True
        inside[start:end] = True
        self.nodes = inside.nonzero().view(-1)
        before = int(inside[:start].sum())
        self.own = slice(before, before + end - start)
        inside[self.nodes] = False
        position[self.nodes] = torch.arange(self.nodes.numel(), device=position.device)

    @cached_property
    def edges(self) -> Any:
        """What a layer takes for its edges."""
        return self.whole.table.edges_of(self)

    @cached_property
    def pair_edges(self) -> Any:
        """The same where a layer takes nodes that send and nodes that receive apart: the latter are
        the block's own, numbered by themselves."""
        return self.whole.table.edges_of(self, as_pair=True)

    @cached_property
    def extras(self) -> dict[str, Tensor]:
        """Weights or features of the edges, by name."""
        return self.whole.table.extras_of(self)

    def local(self, nodes: Tensor) -> Tensor:
        r"""The numbers that nodes have in the block.

        Args:
            nodes (torch.Tensor): Nodes of the block, as the graph numbers them.
        """
        return self._position[nodes.long()]


def loops_like(whole: WholeGraph, num_nodes: int) -> Block:
    r"""A block like those of a graph that needs no other rows than its own: nodes that are their
    only neighbours.

    Args:
        whole (WholeGraph): The graph whose edges have the form that is wanted.
        num_nodes (int): Number of nodes.
    """
    table = whole.table
    count = min(num_nodes, table.csr.num_edges)
    loops = torch.arange(count, device=table.csr.device)
    rowptr = torch.arange(num_nodes + 1, device=loops.device).clamp_(max=count)
    value = None if table.csr.value is None else table.csr.value[:count]
    extras = {name: values[:count] for name, values in table.extras.items()}
    adj = table.in_form(rowptr, loops, value)
    return next(WholeGraph(adj, extras, num_nodes, whole.device).blocks(max(1, num_nodes)))
