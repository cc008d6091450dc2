"""PyG's loaders over packed features, with worker processes and without."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import HGTLoader, LinkNeighborLoader, NeighborLoader
from torch_geometric.nn import GCN, GraphSAGE, to_hetero
from torch_geometric.transforms import Compose

import torch_geometric_qlr as qlr
from tests.helpers.optional import needs_sampler
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.loader import GatherFeatures, PackedFeatureStore
from torch_geometric_qlr.tensor import PackedTensor
from torch_geometric_qlr.transforms import PackFeatures, UnpackFeatures

# Said by PyG of any sampler but pyg-lib's.
pytestmark = [
    needs_sampler,
    pytest.mark.cpu,
    pytest.mark.filterwarnings("ignore:Using '.*' without a 'pyg-lib':UserWarning"),
]

NODES, SEEDS = 120, 16
ALL = {"num_neighbors": [-1, -1], "batch_size": SEEDS}


class Case:
    """A graph, a converted model that has seen it, and a file of its features."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.x = torch.rand(NODES, 40)
        self.edges = torch.randint(NODES, (2, 500))
        self.y = torch.arange(NODES)
        self.float_model = GraphSAGE(40, 16, num_layers=2, out_channels=3).eval()
        self.quantized = qlr.quantize(self.float_model, bits=4).eval()
        self.quantized(self.x, self.edges)
        self.model = qlr.convert(self.quantized)
        self.path = folder / "x.safetensors"
        PackedFeatureStore.write(self.path, self.x, bits=4)
        self.store = PackedFeatureStore(self.path)
        self.store[None, "y", None] = self.y
        self.packed = self.store[None, "x", None]
        self.truth = self.model(self.packed, self.edges)

    @property
    def graph(self) -> Data:
        out = Data()
        out.put_edge_index(self.edges, layout="coo", size=(NODES, NODES))
        return out

    @property
    def data(self) -> Data:
        return Data(edge_index=self.edges, y=self.y, num_nodes=NODES, w=torch.rand(500))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("loaders"))


def ways(case: Case, **options: Any) -> Iterator[NeighborLoader]:
    """How a loader can come to packed features."""
    options = {**ALL, **options}
    seeds = torch.arange(NODES)
    yield NeighborLoader((case.store, case.graph), input_nodes=seeds, **options)
    yield NeighborLoader(case.data, transform=GatherFeatures(case.store), **options)
    data = PackFeatures(bits=4)(Data(x=case.x, edge_index=case.edges, y=case.y))
    yield NeighborLoader(data, transform=GatherFeatures(), **options)


def check(case: Case, loader: NeighborLoader) -> None:
    seen = 0
    for batch in loader:
        assert type(batch.x) is PackedTensor and len(batch.x) == batch.num_nodes
        assert batch.x.equal(case.packed.index_select(batch.n_id))
        assert torch.equal(batch.y, batch.n_id)
        out = case.model(batch.x, batch.edge_index)[: batch.batch_size]
        assert torch.equal(out, case.truth[batch.n_id[: batch.batch_size]])
        seen += batch.batch_size
    assert seen == NODES


def test_batches_are_packed_and_answers_those_of_the_whole_graph(case: Case) -> None:
    for loader in ways(case):
        check(case, loader)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.heavy)])
def test_worker_processes(case: Case, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    for i, loader in enumerate(ways(case, num_workers=2, multiprocessing_context=method)):
        if method == "fork" or i == 0:  # to start afresh takes seconds
            check(case, loader)


def mapped_memory(path: Path) -> tuple[int, int]:
    """Bytes of a file that this process has mapped and touched, and how many are its own."""
    sizes, inside = {"Rss:": 0, "Anonymous:": 0}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, size, *_ = [*line.split(), ""]
        if not name.endswith(":"):  # the first line of a map
            inside = line.endswith(str(path))
        elif inside and name in sizes:
            sizes[name] += 1024 * int(size)
    return sizes["Rss:"], sizes["Anonymous:"]


class Report:
    """Adds to a batch who made it, and what of the file it holds itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, data: Data) -> Data:
        data.pid, data.held = os.getpid(), mapped_memory(self.path)
        return data


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads /proc")
def test_workers_map_the_file_and_copy_nothing(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    PackedFeatureStore.write(path, torch.rand(20_000, 256))
    transform = Compose([GatherFeatures(PackedFeatureStore(path)), Report(path)])
    options: Any = {"num_workers": 2, "multiprocessing_context": "spawn"}
    batches = list(NeighborLoader(case.data, transform=transform, **ALL, **options))
    assert len({batch.pid for batch in batches} - {os.getpid()}) == 2
    assert all(mapped > 0 and own == 0 for mapped, own in (batch.held for batch in batches))


@pytest.mark.parametrize("negatives", [None, "binary"])
def test_links(case: Case, negatives: str | None) -> None:
    options = {**ALL, "edge_label_index": (None, case.edges), "neg_sampling": negatives}
    for batch in LinkNeighborLoader((case.store, case.graph), **options):
        assert batch.x.equal(case.packed.index_select(batch.n_id))
        assert torch.equal(
            case.model(batch.x, batch.edge_index),
            case.model(case.packed.index_select(batch.n_id), batch.edge_index),
        )
    options["edge_label_index"] = case.edges
    transform = GatherFeatures(case.store)
    for batch in LinkNeighborLoader(case.data, transform=transform, **options):
        assert batch.x.equal(case.packed.index_select(batch.n_id))


def hetero(case: Case) -> tuple[HeteroData, Any]:
    """A graph with two types of nodes, and a converted model for it."""
    graph = HeteroData()
    graph["paper"].x, graph["tag"].x = case.x, case.x[:30]
    graph["paper"].y = case.y
    ends = torch.randint(NODES, (200,)), torch.randint(30, (200,))
    graph["paper", "has", "tag"].edge_index = torch.stack(ends)
    graph["tag", "of", "paper"].edge_index = torch.stack(ends[::-1])
    model = to_hetero(GraphSAGE((-1, -1), 16, 2, 3), graph.metadata())
    model(graph.x_dict, graph.edge_index_dict)
    quantized = qlr.quantize(model, bits=4).eval()
    quantized(graph.x_dict, graph.edge_index_dict)
    return graph, qlr.convert(quantized)


@pytest.mark.parametrize("workers", [0, 2])
def test_types_of_nodes(case: Case, workers: int, tmp_path: Path) -> None:
    graph, model = hetero(case)
    path = tmp_path / "x.safetensors"
    PackedFeatureStore.write(path, graph.x_dict, bits=4)
    store, packed = PackedFeatureStore(path), PackFeatures(bits=4)(graph)
    truth = model(packed.x_dict, packed.edge_index_dict)["paper"]
    bare = HeteroData({key: {"num_nodes": graph[key].num_nodes} for key in graph.node_types})
    for kind in graph.edge_types:
        bare[kind].edge_index = graph[kind].edge_index
    options: Any = {"input_nodes": "paper", "batch_size": SEEDS, "num_workers": workers}
    every = {**options, "num_neighbors": [-1, -1]}
    for loader, whole in (
        (NeighborLoader((store, bare), **every), True),
        (NeighborLoader(bare, transform=GatherFeatures(store), **every), True),
        (NeighborLoader(packed, transform=GatherFeatures(), **every), True),
        (HGTLoader(packed, [20, 20], transform=GatherFeatures(), **options), False),
        (HGTLoader(bare, [20, 20], transform=GatherFeatures(store), **options), False),
    ):
        for batch in loader:
            for name, features in batch.x_dict.items():
                assert type(features) is PackedTensor
                assert features.equal(packed[name].x.index_select(batch[name].n_id))
            out = model(batch.x_dict, batch.edge_index_dict)["paper"]
            assert out.shape == (batch["paper"].num_nodes, 3)
            if whole:
                seeds = batch["paper"].n_id[:SEEDS]
                assert torch.equal(
                    out[: len(seeds)][: batch["paper"].batch_size],
                    truth[seeds][: batch["paper"].batch_size],
                )


def test_models_that_are_not_converted(case: Case) -> None:
    """A quantized one reads the values; a float one is given them."""
    values = case.packed.dequantize()
    for loader in ways(case):
        for batch in loader:
            seeds = batch.n_id[: batch.batch_size]
            with torch.no_grad():
                out = case.quantized(batch.x, batch.edge_index)
                assert torch.equal(out, case.quantized(batch.x.dequantize(), batch.edge_index))
                unpacked = UnpackFeatures()(batch)
                assert torch.equal(unpacked.x, values[batch.n_id])
                out = case.float_model(unpacked.x, batch.edge_index)[: batch.batch_size]
            torch.testing.assert_close(out, case.float_model(values, case.edges)[seeds])
            break


def test_a_quantized_model_trains_on_packed_batches(case: Case) -> None:
    model = qlr.quantize(GCN(40, 8, num_layers=2, out_channels=3), bits=4).train()
    for loader in ways(case):
        batch = next(iter(loader))
        model.zero_grad()
        model(batch.x, edge_index=batch.edge_index).sum().backward()
        assert all(p.grad is not None for p in qlr.weight_parameters(model))


def test_a_batch_without_its_nodes_is_refused(case: Case) -> None:
    with pytest.raises(InputError, match=r"n_id.*NeighborLoader"):
        GatherFeatures(case.store)(case.data)
    data = case.data
    data.n_id = torch.tensor([1])
    with pytest.raises(InputError, match="no packed features"):
        GatherFeatures()(data)
    with pytest.raises(InputError, match="no packed features"):
        GatherFeatures(PackedFeatureStore())(data)
