"""The data sets of the examples, each with a generated stand-in for a machine without a network."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
import torch_geometric.transforms as T
from aiohttp import ClientError
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.datasets import DBLP, Planetoid, TUDataset
from torch_geometric.utils import (
    coalesce,
    degree,
    erdos_renyi_graph,
    remove_self_loops,
    stochastic_blockmodel_graph,
    to_undirected,
)

from _common import EXTRA, require

# What a download raises when there is no network, or when a proxy answers in its place.
DOWNLOAD_ERRORS = (OSError, ClientError, TimeoutError)


@dataclass(frozen=True)
class Citation:
    """One graph with its train, validation and test nodes, and where it is from."""

    data: Data
    num_classes: int
    description: str


def load_citation(
    root: Path, name: str = "Cora", generated: bool = False, sparse: bool = False
) -> Citation:
    """A Planetoid data set in its public split, or a generated graph where it cannot be had.

    With ``sparse`` the features are a sparse matrix. Nearly all of them are zeros, so a model that
    starts with a linear layer takes a fraction of the time, and gives the same answers.
    """
    if not generated:
        require(
            find_spec("scipy") is not None,
            "PyG reads Planetoid with scipy",
            f"{EXTRA}, or pass --generated",
        )
        try:
            data = Planetoid(str(root), name=name, transform=T.NormalizeFeatures())[0]
            return _describe(data, f"{name}, public split", sparse)
        except DOWNLOAD_ERRORS as error:
            announce(
                f"{name} is not under {root} and could not be downloaded ({type(error).__name__})."
            )
    announce("Using a GENERATED graph of Cora's shape. Its accuracies say nothing about Cora.")
    data = T.NormalizeFeatures()(citation_like_graph())
    return _describe(data, "generated Cora-shaped graph (stochastic block model)", sparse)


def load_graphs(root: Path, name: str, generated: bool) -> tuple[Sequence[Data], int, int, str]:
    """A TU data set, or generated graphs: graphs, number of features and classes, origin."""
    if not generated:
        try:
            dataset = TUDataset(str(root), name=name, use_node_attr=True)
            graphs = [data if data.x is not None else _with_degrees(data) for data in dataset]
            about = f"{name} ({len(graphs)} graphs)"
            return graphs, graphs[0].num_node_features, dataset.num_classes, about
        except DOWNLOAD_ERRORS as error:
            announce(
                f"{name} is not under {root} and could not be downloaded ({type(error).__name__})."
            )
    announce("Using GENERATED graphs: random, small-world and hub-dominated ones, with noise.")
    graphs = degree_profile_graphs()
    return graphs, graphs[0].num_node_features, 3, f"generated graphs ({len(graphs)})"


def load_dblp(root: Path, generated: bool) -> tuple[HeteroData, str]:
    """DBLP, or a generated graph of authors and papers; conferences have one constant feature."""
    if not generated:
        require(
            find_spec("scipy") is not None,
            "PyG reads DBLP with scipy",
            f"{EXTRA}, or pass --generated",
        )
        try:
            data = DBLP(str(root / "dblp"), transform=T.Constant(node_types="conference"))[0]
            return data, f"DBLP ({data.num_nodes} nodes, {data.num_edges} edges)"
        except DOWNLOAD_ERRORS as error:
            announce(
                f"DBLP is not under {root} and could not be downloaded ({type(error).__name__})."
            )
    announce("Using a GENERATED graph of authors and papers. Its accuracies say nothing of DBLP.")
    data = bibliography_graph()
    return data, f"generated bibliography ({data.num_nodes} nodes, {data.num_edges} edges)"


def announce(message: str) -> None:
    """A line that cannot be overlooked, on stderr so that the table stays clean."""
    print(f"*** {message}", file=sys.stderr, flush=True)


def citation_like_graph(
    num_nodes: int = 2708,
    num_classes: int = 7,
    num_words: int = 1433,
    words_per_node: int = 18,
    seed: int = 0,
) -> Data:
    """A stochastic block model with bag-of-words features, in the shape of Cora and its split.

    A node has about four neighbours, seven in ten of its own class, and each of its words comes
    with probability 0.25 from the vocabulary of its class, otherwise from anywhere.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = torch.full((num_classes,), num_nodes // num_classes)
        sizes[: num_nodes % num_classes] += 1
        # Expected neighbours: 2.8 in the class of the node, 1.2 spread over the other classes.
        probs = torch.full((num_classes, num_classes), 1.2 / (num_classes - 1))
        probs.fill_diagonal_(2.8)
        probs *= num_classes / num_nodes
        edge_index = stochastic_blockmodel_graph(sizes, probs)
        y = torch.arange(num_classes).repeat_interleave(sizes)

        vocabulary = num_words // num_classes
        own = torch.randint(vocabulary, (num_nodes, words_per_node)) + (y * vocabulary).view(-1, 1)
        any_word = torch.randint(num_words, (num_nodes, words_per_node))
        words = torch.where(torch.rand(num_nodes, words_per_node) < 0.25, own, any_word)
        x = torch.zeros(num_nodes, num_words).scatter_(1, words, 1.0)
        data = Data(x=x, edge_index=edge_index, y=y)
        split = T.RandomNodeSplit("random", num_train_per_class=20, num_val=500, num_test=1000)
        return split(data)


def bibliography_graph(num_papers: int = 600, num_classes: int = 4, seed: int = 0) -> HeteroData:
    """Papers of a few fields, each with an author, a term and a conference that mostly are of it.

    Types of nodes and edges come in the order of PyG's DBLP.
    """
    rng = torch.Generator().manual_seed(seed)
    counts = {"author": 200, "paper": num_papers, "term": 48, "conference": 12}
    fields = {kind: torch.arange(count) % num_classes for kind, count in counts.items()}
    data = HeteroData()
    for kind, width in (("author", 32), ("paper", 64), ("term", 16)):
        of_field = torch.randn(num_classes, width, generator=rng)
        noise = torch.randn(len(fields[kind]), width, generator=rng)
        data[kind].x = 0.3 * of_field[fields[kind]] + noise
    data["conference"].x = torch.ones(len(fields["conference"]), 1)
    papers = torch.arange(num_papers)
    ends = {}
    for kind in ("author", "term", "conference"):
        per_field = len(fields[kind]) // num_classes
        other = torch.randint(num_classes, (num_papers,), generator=rng)
        strays = torch.rand(num_papers, generator=rng) < 0.2
        field = torch.where(strays, other, fields["paper"])
        ends[kind] = field + num_classes * torch.randint(per_field, (num_papers,), generator=rng)
    for source, target in itertools.product(fields, fields):
        if source == "paper" and target != "paper":
            data[source, "to", target].edge_index = torch.stack([papers, ends[target]])
        elif source != "paper" and target == "paper":
            data[source, "to", target].edge_index = torch.stack([ends[source], papers])
    data["author"].y = fields["author"]
    order = torch.randperm(len(fields["author"]), generator=rng)
    for name, nodes in zip(("train", "val", "test"), order.split([60, 60, 80]), strict=True):
        data["author"][f"{name}_mask"] = torch.zeros(len(order), dtype=torch.bool)
        data["author"][f"{name}_mask"][nodes] = True
    return data


def degree_profile_graphs(num_graphs: int = 300, num_nodes: int = 24, seed: int = 0) -> list[Data]:
    """Graphs of three kinds with about four neighbours per node, a fifth of their edges rewired."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        graphs = []
        for i in range(num_graphs):
            edge_index = _profile_edges(i % 3, num_nodes)
            edge_index = _rewire(edge_index, num_nodes, share=0.2)
            data = Data(edge_index=edge_index, num_nodes=num_nodes, y=torch.tensor([i % 3]))
            graphs.append(_with_degrees(data))
        return graphs


def _profile_edges(kind: int, num_nodes: int) -> Tensor:
    """Edges of a random (0), a ring-lattice (1) or a hub-dominated graph (2)."""
    if kind == 0:
        return erdos_renyi_graph(num_nodes, 4.0 / num_nodes)
    nodes = torch.arange(num_nodes)
    if kind == 1:
        steps = torch.tensor([1, 2]).repeat_interleave(num_nodes)
        source = nodes.repeat(2)
        return to_undirected(torch.stack([source, (source + steps) % num_nodes]))
    weights = 1.0 / (nodes + 1.0)
    pairs = torch.multinomial(weights, 6 * num_nodes, replacement=True).view(2, -1)
    return to_undirected(remove_self_loops(pairs)[0], num_nodes=num_nodes)


def _rewire(edge_index: Tensor, num_nodes: int, share: float) -> Tensor:
    """Gives a share of the edges a random other end, so that no kind can be told for certain."""
    upper = edge_index[:, edge_index[0] < edge_index[1]]
    moved = torch.rand(upper.size(1)) < share
    other = torch.randint(num_nodes, (upper.size(1),))
    upper = torch.stack([upper[0], torch.where(moved, other, upper[1])])
    return to_undirected(coalesce(remove_self_loops(upper)[0]), num_nodes=num_nodes)


def _with_degrees(data: Data, largest: int = 15) -> Data:
    """Node features for graphs that have none: the degree, one-hot, clamped to the largest."""
    degrees = degree(data.edge_index[0], data.num_nodes, dtype=torch.long).clamp(max=largest)
    data.x = F.one_hot(degrees, largest + 1).float()
    return data


def _describe(data: Data, origin: str, sparse: bool) -> Citation:
    if sparse:
        # An explicit choice: torch warns of sparse tensors until it is made, either way.
        torch.sparse.check_sparse_tensor_invariants.disable()
        data.x = data.x.to_sparse()
    num_classes = int(data.y.max()) + 1
    text = f"{origin} ({data.num_nodes} nodes, {data.num_edges} edges)"
    return Citation(data, num_classes, text)
