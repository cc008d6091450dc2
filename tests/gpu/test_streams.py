"""What only a GPU has: work that the host does not wait for, in graphs and in streams."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

import torch_geometric_qlr as qlr

NODES, FEATURES = 3000, 64


def graph(device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and edges, among them those of a hub."""
    torch.manual_seed(seed)
    edge_index = torch.randint(NODES, (2, 20_000))
    edge_index[1, :4000] = 0
    return torch.randn(NODES, FEATURES).to(device), edge_index.to(device)


def converted(x: Tensor, edge_index: Tensor, bits: int = 4) -> nn.Module:
    model = qlr.quantize(GCN(FEATURES, 32, 2, 8).to(x.device), bits=bits).train()
    model(x, edge_index)
    return qlr.convert(model)


@pytest.fixture
def host_never_waits(cuda: torch.device) -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("bits", (2, 4, 8))
@torch.no_grad()
def test_a_converted_model_is_captured_in_a_graph(bits: int, cuda: torch.device) -> None:
    x, edge_index = graph(cuda)
    model = converted(x, edge_index, bits)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # what is remembered of a graph, and compiled
            model(x, edge_index)
    torch.cuda.current_stream().wait_stream(side)
    capture = torch.cuda.CUDAGraph()
    with torch.cuda.graph(capture):
        out = model(x, edge_index)
    for seed in (1, 2):
        x.copy_(graph(cuda, seed)[0])
        capture.replay()
        assert torch.equal(out, model(x, edge_index))


@torch.no_grad()
def test_two_streams_run_one_model(cuda: torch.device) -> None:
    model, graphs = converted(*graph(cuda)), [graph(cuda, seed) for seed in (0, 1)]
    expected = [model(*given) for given in graphs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in graphs]
    found: list[list[Tensor]] = [[], []]
    for _ in range(10):
        for stream, given, outs in zip(streams, graphs, found, strict=True):
            with torch.cuda.stream(stream):
                outs.append(model(*given))
    torch.cuda.synchronize()
    for outs, truth in zip(found, expected, strict=True):
        assert all(torch.equal(out, truth) for out in outs)


@torch.no_grad()
def test_the_host_does_not_wait_for_a_converted_model(
    cuda: torch.device, request: pytest.FixtureRequest
) -> None:
    x, edge_index = graph(cuda)
    model = converted(x, edge_index)
    for _ in range(2):
        model(x, edge_index)
    request.getfixturevalue("host_never_waits")
    model(x, edge_index)


@pytest.mark.parametrize("config", ({"bits": 4}, {"bits": 2, "truncation": "bt*"}), ids=str)
@pytest.mark.parametrize(
    "make",
    (
        lambda: GCN(FEATURES, 32, 2, 8, cached=True),
        lambda: GraphSAGE(FEATURES, 32, 2, 8),
        lambda: GIN(FEATURES, 32, 2, 8),
        lambda: GAT(FEATURES, 32, 2, 8, add_self_loops=False),
    ),
    ids=("GCN", "SAGE", "GIN", "GAT"),
)
def test_the_host_does_not_wait_in_training(
    make, config, cuda: torch.device, request: pytest.FixtureRequest
) -> None:
    x, edge_index = graph(cuda)
    model = qlr.quantize(make().to(cuda), **config).train()
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model(x, edge_index).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    step()  # the first one starts the ranges, and looks
    request.getfixturevalue("host_never_waits")
    losses = [step() for _ in range(3)]
    torch.cuda.set_sync_debug_mode("default")
    assert all(bool(loss.isfinite()) for loss in losses)
