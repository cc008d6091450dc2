"""Attention coefficients that one operation computes are those of PyG."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch_geometric.nn import GATConv, MessagePassing
from torch_geometric.utils import softmax

import torch_geometric_qlr as qlr
from torch_geometric_qlr.nn import registry

NODES, EDGES = 30, 140
OP = "qlr::edge_softmax"


class OwnUpdate(GATConv):
    """Attends in a way of its own."""

    def edge_update(self, alpha_j, alpha_i, edge_attr, index, ptr, dim_size):
        return torch.sigmoid(alpha_j + alpha_i)


CONVS: dict[str, Callable[[], MessagePassing]] = {
    "one head": lambda: GATConv(12, 8),
    "heads": lambda: GATConv(12, 8, heads=3, negative_slope=0.4),
    "mean": lambda: GATConv(12, 8, heads=4, concat=False, add_self_loops=False),
    "edge features": lambda: GATConv(12, 8, heads=2, edge_dim=3),
    "one edge feature": lambda: GATConv(12, 8, heads=2, edge_dim=1, add_self_loops=False),
    "pair": lambda: GATConv((12, 12), 8, heads=2, add_self_loops=False),
    "residual": lambda: GATConv(12, 8, heads=2, residual=True, dropout=0.6),
}


def inputs(name: str) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(NODES, 12, generator=rng)
    edges = torch.randint(NODES, (2, EDGES), generator=rng)
    features = {"edge features": (EDGES, 3), "one edge feature": (EDGES,)}
    if name not in features:
        return x, edges
    return x, edges, torch.rand(features[name], generator=rng)


def quantized(conv: MessagePassing, *given: Any) -> Any:
    model = qlr.quantize(conv, bits=8).eval()
    with torch.no_grad():
        model(*given)
    return model


def ops_of(call: Callable[[], Any]) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return {event.name for event in seen.events()}


@pytest.mark.parametrize("name", CONVS)
def test_coefficients_are_those_of_the_layer(name):
    torch.manual_seed(0)
    given = inputs(name)
    model = quantized(CONVS[name](), *given)
    by_gradients, (edges, expected) = model(*given, return_attention_weights=True)
    with torch.no_grad():
        for m in (model, qlr.convert(model)):
            out, (own_edges, alpha) = m(*given, return_attention_weights=True)
            assert OP in ops_of(lambda m=m: m(*given))
            assert torch.equal(own_edges, edges)
            assert torch.allclose(alpha, expected, rtol=1e-5, atol=1e-7)
            assert torch.allclose(out, by_gradients, rtol=1e-4, atol=1e-5)


def test_weights_of_sorted_edges_and_of_matrices():
    torch.manual_seed(0)
    x, edges = inputs("heads")
    edges = edges[:, edges[1].argsort(stable=True)]
    conv = GATConv(12, 8, heads=2, add_self_loops=False)
    packed = qlr.convert(quantized(conv, x, edges))
    matrix = torch.sparse_coo_tensor(edges.flip(0), torch.ones(EDGES), (NODES, NODES)).coalesce()
    unique = matrix.indices().flip(0)
    with torch.no_grad():
        assert torch.equal(packed(x, matrix.to_sparse_csr()), packed(x, unique))
        assert torch.allclose(packed(x, edges), conv(x, edges), atol=0.1)


def hooked(conv: Any) -> Any:
    conv.register_edge_update_forward_hook(lambda module, inputs, out: out * 0.5)
    return conv


def replaced(conv: Any) -> Any:
    conv.edge_update = lambda *args, **kwargs: OwnUpdate.edge_update(conv, *args, **kwargs)
    return conv


def turned(conv: Any) -> Any:
    conv.flow = "target_to_source"
    return conv


UNUSUAL: dict[str, Callable[[], Any]] = {
    "a method of its own": lambda: OwnUpdate(12, 8, heads=2),
    "a hook": lambda: hooked(GATConv(12, 8, heads=2)),
    "the other flow": lambda: turned(GATConv(12, 8, heads=2)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_attends_otherwise_computes_its_own(name):
    torch.manual_seed(0)
    x, edges = inputs(name)
    conv = UNUSUAL[name]().eval()
    model = quantized(conv, x, edges)
    with torch.no_grad():
        out = model(x, edges)
        assert OP not in ops_of(lambda: model(x, edges))
    assert torch.allclose(out, model(x, edges), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("edges", [torch.empty(2, 0, dtype=torch.long), torch.tensor([[0], [1]])])
def test_graphs_with_few_edges(edges):
    torch.manual_seed(0)
    conv = GATConv(12, 8, heads=2, add_self_loops=False)
    x = inputs("heads")[0]
    model = quantized(conv, *inputs("heads"))
    with torch.no_grad():
        out = qlr.convert(model)(x, edges)
        assert out.shape == (NODES, 16)
        assert torch.equal(out, model(x, edges))


class Attends(MessagePassing):
    """Attention of one head, whose logits are the first two features."""

    slope = 0.1

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        alpha = self.edge_updater(edge_index, logits=(x[:, :1], x[:, 1:2]))
        return self.propagate(edge_index, x=x.unsqueeze(1), alpha=alpha)[:, 0]

    def edge_update(
        self, logits_j: Tensor, logits_i: Tensor, index: Tensor, dim_size: int
    ) -> Tensor:
        logits = torch.nn.functional.leaky_relu(logits_j + logits_i, self.slope)
        return softmax(logits, index, num_nodes=dim_size)

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        return alpha.unsqueeze(-1) * x_j


def test_of_a_layer_that_was_registered(monkeypatch):
    monkeypatch.setattr(registry, "_USER", dict(registry._USER))  # nobody else knows it
    facts = qlr.nn.EdgeUpdateFacts(logits="logits", slope="slope")
    with pytest.raises(qlr.errors.ConfigError, match=r"qlr\.nn\.EdgeUpdateFacts\(logits='alpha'\)"):
        qlr.register_conv(Attends, family="attention", edge_update="logits")
    qlr.register_conv(Attends, family="attention", edge_update=facts)
    x, edges = inputs("registered")
    conv = Attends(node_dim=0)
    model = quantized(conv, x, edges)
    with torch.no_grad():
        assert OP in ops_of(lambda: model(x, edges))
        assert torch.equal(qlr.convert(model)(x, edges), model(x, edges))
        assert torch.allclose(model(x, edges), conv(x, edges), atol=0.02)
