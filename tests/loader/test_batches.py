"""Training, calibration and inference on the batches of every loader of PyG."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData, TemporalData
from torch_geometric.loader import (
    ClusterData,
    ClusterLoader,
    DataLoader,
    GraphSAINTEdgeSampler,
    GraphSAINTNodeSampler,
    GraphSAINTRandomWalkSampler,
    HGTLoader,
    LinkNeighborLoader,
    NeighborLoader,
    TemporalDataLoader,
)
from torch_geometric.nn import (
    GAT,
    GCN,
    GIN,
    GraphSAGE,
    TGNMemory,
    TransformerConv,
    global_add_pool,
    to_hetero,
)
from torch_geometric.nn.models.tgn import IdentityMessage, LastAggregator

import torch_geometric_qlr as qlr
from tests.helpers.optional import needs_sampler, needs_torch_sparse
from torch_geometric_qlr.errors import ConfigError, QLRWarning
from torch_geometric_qlr.quantizers import LearnedRangeQuant

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.filterwarnings("ignore:Using '.*' without a 'pyg-lib':UserWarning"),
]

NODES, EDGES, IN, OUT = 150, 700, 12, 4
Forward = Callable[[nn.Module, Any], Tensor]


def graph() -> Data:
    rng = torch.Generator().manual_seed(0)
    edges = torch.randint(NODES, (2, EDGES), generator=rng)
    x = torch.randn(NODES, IN, generator=rng)
    return Data(x=x, edge_index=edges, y=(x[:, :OUT]).argmax(1))


def nodes(model: nn.Module, batch: Any) -> Tensor:
    out: Tensor = model(batch.x, batch.edge_index)
    return out


def loss_of_nodes(out: Tensor, batch: Any) -> Tensor:
    count = getattr(batch, "batch_size", None) or batch.num_nodes
    return F.cross_entropy(out[:count], batch.y[:count])


def trained(
    model: nn.Module, loader: Iterable[Any], forward: Forward, loss: Callable[[Tensor, Any], Tensor]
) -> nn.Module:
    """A quantized model after an epoch, in which weights and ranges have moved."""
    torch.manual_seed(0)
    quantized = qlr.quantize(model, bits=4).train()
    groups = qlr.parameter_groups(quantized, lr=0.01, weight_decay=0.0)
    optimizer = torch.optim.Adam(groups)
    for batch in loader:
        optimizer.zero_grad()
        loss(forward(quantized, batch), batch).backward()
        optimizer.step()
    moved = [q.gamma.grad for q in quantized.modules() if isinstance(q, LearnedRangeQuant)]
    assert any(g is not None and bool(g.abs().sum() > 0) for g in moved)
    return quantized.eval()


def converted(quantized: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QLRWarning)  # of layers that are slow
        return qlr.convert(quantized)


def check_converted(quantized: nn.Module, loader: Iterable[Any], forward: Forward) -> nn.Module:
    """Each batch gets the same answers from the converted model, bit for bit."""
    packed = converted(quantized)
    count = 0
    for batch in loader:
        with torch.no_grad():
            assert torch.equal(forward(packed, batch), forward(quantized, batch))
        count += 1
    assert count > 1
    return packed


def check_calibrated(model: nn.Module, loader: Iterable[Any], forward: Forward) -> None:
    """Eight bits without training: near the float model."""
    quantized = qlr.quantize(model, bits=8)
    calibration = qlr.calibrate(quantized, loader, forward, progress=False)
    assert calibration.batches > 1 and calibration.unobserved == []
    packed = qlr.convert(quantized.eval())
    for batch in loader:
        with torch.no_grad():
            truth, found = forward(model.eval(), batch), forward(packed, batch)
        assert qlr.metrics.sqnr(truth, found) > 25


def check_loader(
    model: nn.Module,
    loader: Iterable[Any],
    forward: Forward = nodes,
    loss: Callable[[Tensor, Any], Tensor] = loss_of_nodes,
) -> nn.Module:
    check_calibrated(model.eval(), loader, forward)
    return check_converted(trained(model, loader, forward, loss), loader, forward)


# Samples of one graph #############################################################################


@needs_sampler
@pytest.mark.parametrize("cls", [GCN, GraphSAGE, GIN, GAT])
def test_neighbors(cls: Any) -> None:
    data = graph()
    loader = NeighborLoader(data, num_neighbors=[5, 5], batch_size=32, shuffle=True)
    packed = check_loader(cls(IN, 16, 2, OUT), loader)
    # `calibrate` takes of a batch what the forward names, and batch_size is no matter of its norms.
    qlr.calibrate(qlr.quantize(cls(IN, 16, 2, OUT, norm="batch_norm")), loader, progress=False)
    if cls is not GCN:  # whose degrees are those of the sample
        every = NeighborLoader(data, num_neighbors=[-1, -1], batch_size=32)
        found = [packed(b.x, b.edge_index)[: b.batch_size] for b in every]
        torch.testing.assert_close(torch.cat(found), packed(data.x, data.edge_index))


@needs_sampler
def test_links() -> None:
    loader = LinkNeighborLoader(
        graph(),
        num_neighbors=[5, 5],
        batch_size=100,
        neg_sampling="binary",
        edge_label_index=graph().edge_index[:, :300],
    )

    def scores(model: nn.Module, batch: Any) -> Tensor:
        source, target = model(batch.x, batch.edge_index)[batch.edge_label_index]
        return (source * target).sum(-1)

    def loss(out: Tensor, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(out, batch.edge_label)

    check_loader(GraphSAGE(IN, 16, 2), loader, scores, loss)


@needs_sampler
def test_types_of_nodes() -> None:
    data = HeteroData()
    data["a"].x, data["a"].y = graph().x, graph().y
    data["b"].x = torch.randn(40, IN)
    ends = torch.randint(NODES, (400,)), torch.randint(40, (400,))
    data["a", "to", "b"].edge_index = torch.stack(ends)
    data["b", "of", "a"].edge_index = torch.stack(ends[::-1])
    model = to_hetero(GraphSAGE((-1, -1), 16, 2, OUT), data.metadata())
    model(data.x_dict, data.edge_index_dict)

    def seeds(model: nn.Module, batch: Any) -> Tensor:
        out: Tensor = model(batch.x_dict, batch.edge_index_dict)["a"][: batch["a"].batch_size]
        return out

    def loss(out: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(out, batch["a"].y[: len(out)])

    options: Any = {"input_nodes": "a", "batch_size": 50}
    for loader in (
        NeighborLoader(data, num_neighbors=[5, 5], **options),
        HGTLoader(data, [30, 30], **options),
    ):
        check_loader(model, list(loader), seeds, loss)


def test_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    # Which nodes are together is METIS's affair, which few builds have.
    monkeypatch.setattr(
        ClusterData, "_metis", lambda self, edge_index, num_nodes: torch.arange(num_nodes) % 6
    )
    parts = ClusterData(graph(), num_parts=6, log=False)
    check_loader(GCN(IN, 16, 2, OUT), ClusterLoader(parts, batch_size=2))


@needs_torch_sparse
@pytest.mark.parametrize(
    "sampler, options",
    [
        (GraphSAINTNodeSampler, {}),
        (GraphSAINTEdgeSampler, {}),
        (GraphSAINTRandomWalkSampler, {"walk_length": 2}),
    ],
)
def test_saint(sampler: Any, options: Any) -> None:
    torch.manual_seed(0)
    loader = sampler(graph(), batch_size=30, num_steps=4, sample_coverage=100, log=False, **options)
    batches = list(loader)

    def weighted(model: nn.Module, batch: Any) -> Tensor:
        out: Tensor = model(batch.x, batch.edge_index, batch.edge_norm)
        return out

    def loss(out: Tensor, batch: Any) -> Tensor:
        return (F.cross_entropy(out, batch.y, reduction="none") * batch.node_norm).sum()

    check_loader(GCN(IN, 16, 2, OUT, normalize=False), batches, weighted, loss)


# Layers on ever fewer nodes #######################################################################


def sampled_by_hops(data: Data, seeds: Tensor, hops: int) -> Data:
    """All neighbours of some nodes, then theirs, in the order in which a sampler meets them. Those
    of PyG tell the numbers of each hop with pyg-lib only."""
    source, target = data.edge_index
    nodes, frontier = seeds, seeds
    counts, edges = [len(seeds)], []
    for _ in range(hops):
        edges.append(torch.isin(target, frontier).nonzero().view(-1))
        new = source[edges[-1]].unique()
        frontier = new[~torch.isin(new, nodes)]
        nodes = torch.cat([nodes, frontier])
        counts.append(len(frontier))
    number = torch.zeros(NODES, dtype=torch.long)
    number[nodes] = torch.arange(len(nodes))
    return Data(
        x=data.x[nodes],
        y=data.y[nodes],
        edge_index=number[data.edge_index[:, torch.cat(edges)]],
        batch_size=len(seeds),
        num_sampled_nodes=counts,
        num_sampled_edges=[len(e) for e in edges],
    )


@pytest.mark.parametrize("cls", [GraphSAGE, GIN, GAT])
def test_trimmed_layers(cls: Any) -> None:
    """Layers leave out what their seeds do not need, with the same answers for them."""
    loader = [sampled_by_hops(graph(), seeds, 3) for seeds in torch.arange(12).split(3)]
    assert all(batch.num_sampled_nodes[-1] > 0 for batch in loader)

    def trimmed(model: nn.Module, batch: Any) -> Tensor:
        sampled = {
            "num_sampled_nodes_per_hop": batch.num_sampled_nodes,
            "num_sampled_edges_per_hop": batch.num_sampled_edges,
        }
        out: Tensor = model(batch.x, batch.edge_index, **sampled)[: batch.batch_size]
        return out

    model = cls(IN, 16, 3, OUT)
    packed = check_loader(model, loader, trimmed)
    for batch in loader:
        seeds = slice(batch.batch_size)
        torch.testing.assert_close(trimmed(packed, batch), nodes(packed, batch)[seeds])


@needs_sampler
def test_layer_by_layer_by_pyg() -> None:
    """PyG's own inference normalises a GCN by the degrees of its batches: of the float model and of
    the converted one, which agree in that. Ours does not."""
    data = graph()
    loader = NeighborLoader(data, num_neighbors=[-1], batch_size=25)
    model: Any = GCN(IN, 16, 2, OUT).eval()
    quantized: Any = trained(GCN(IN, 16, 2, OUT), [data], nodes, loss_of_nodes)
    packed = qlr.convert(quantized)
    eight = qlr.quantize(model, bits=8)
    qlr.calibrate(eight, [data, *loader], progress=False)
    eight = qlr.convert(eight.eval())
    with torch.no_grad():
        truth = model(data.x, data.edge_index)
    off = model.inference(loader)
    assert qlr.metrics.sqnr(truth, off) < 15
    assert qlr.metrics.sqnr(off, eight.inference(loader)) > 25
    with torch.no_grad():
        assert torch.equal(packed.inference(loader), quantized.inference(loader))
    torch.testing.assert_close(qlr.inference(model, data, progress=False), truth)
    assert torch.equal(
        qlr.inference(packed, data, batch_size=25, progress=False), packed(data.x, data.edge_index)
    )
    for batch in loader:
        args = (0, batch.x, batch.edge_index, batch.batch_size)
        assert torch.equal(packed.inference_per_layer(*args), quantized.inference_per_layer(*args))


# Many graphs, and events ##########################################################################


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gnn, self.lin = GIN(IN, 16, 2, norm="batch_norm"), nn.Linear(16, OUT)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Any:
        return self.lin(global_add_pool(self.gnn(x, edge_index), batch))


def test_many_graphs() -> None:
    rng = torch.Generator().manual_seed(0)
    graphs = [
        Data(
            x=torch.randn(size, IN, generator=rng),
            edge_index=torch.randint(size, (2, 3 * size), generator=rng),
            y=torch.tensor([size % OUT]),
        )
        for size in range(4, 24)
    ]

    def pooled(model: nn.Module, batch: Any) -> Tensor:
        out: Tensor = model(batch.x, batch.edge_index, batch.batch)
        return out

    loader = list(DataLoader(graphs, batch_size=5, shuffle=True))
    model = Pooled()
    check_calibrated(model.eval(), loader, pooled)
    quantized = trained(model, loader, pooled, lambda out, b: F.cross_entropy(out, b.y))
    packed = qlr.convert(quantized)
    for batch in loader:  # a kernel that takes batch norm over rounds in another order
        with torch.no_grad():
            torch.testing.assert_close(pooled(packed, batch), pooled(quantized, batch))


EVENTS, TIME = 200, 8


def events() -> TemporalData:
    rng = torch.Generator().manual_seed(0)
    return TemporalData(
        src=torch.randint(20, (EVENTS,), generator=rng),
        dst=torch.randint(20, 40, (EVENTS,), generator=rng),
        t=torch.arange(EVENTS),
        msg=torch.randn(EVENTS, IN, generator=rng),
    )


class Temporal(nn.Module):
    """A memory of events, and attention over those of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = TGNMemory(40, IN, 16, TIME, IdentityMessage(IN, 16, TIME), LastAggregator())
        self.conv, self.lin = TransformerConv(16, 16, edge_dim=IN), nn.Linear(32, 1)

    def forward(self, src: Tensor, dst: Tensor, t: Tensor, msg: Tensor) -> Any:
        n_id, where = torch.cat([src, dst]).unique(return_inverse=True)
        edges = where.view(2, -1)
        z, _ = self.memory(n_id)
        z = self.conv(z, edges, msg)
        return self.lin(torch.cat([z[edges[0]], z[edges[1]]], dim=1))


# The memory encodes times only while it is trained.
@pytest.mark.filterwarnings("ignore:no data has reached memory.time_enc.lin.input")
def test_events() -> None:
    model = Temporal()

    def scores(model: Any, batch: Any) -> Tensor:
        out: Tensor = model(batch.src, batch.dst, batch.t, batch.msg)
        return out

    def remembered(model: Any, batch: Any) -> Tensor:
        out = scores(model, batch)
        model.memory.update_state(batch.src, batch.dst, batch.t, batch.msg)
        model.memory.detach()
        return out

    loader = TemporalDataLoader(events(), batch_size=50)
    quantized = trained(model, loader, remembered, lambda out, batch: out.pow(2).mean())
    check_converted(quantized, loader, scores)
    # The arguments that the model names are taken of a batch by themselves, and of all events.
    named, called = qlr.quantize(Temporal(), bits=8), qlr.quantize(Temporal(), bits=8)
    assert qlr.calibrate(named, loader, progress=False).batches == 4
    assert qlr.calibrate(called, loader, scores, progress=False).batches == 4
    assert qlr.calibrate(named, events(), progress=False).batches == 1
    assert "conv.lin_key.input" in qlr.calibrate(named, loader, progress=False).observed
    with pytest.raises(ConfigError, match="there is no batch"):
        qlr.calibrate(named, [], progress=False)
