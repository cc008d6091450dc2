"""Models over several types of nodes, of which no two have as many, nor features as wide."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg_nn
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.loader import HGTLoader, NeighborLoader

import torch_geometric_qlr as qlr
from tests.helpers.optional import needs_sampler
from torch_geometric_qlr.errors import QLRWarning
from torch_geometric_qlr.quantizers import LearnedRangeQuant

pytestmark = pytest.mark.cpu

COUNTS = {"author": 9, "paper": 14, "term": 5}
WIDTHS = {"author": 6, "paper": 10, "term": 3}
WRITES, BY, HAS, IN = KINDS = [
    ("author", "writes", "paper"),
    ("paper", "by", "author"),
    ("paper", "has", "term"),
    ("term", "in", "paper"),
]
META = (list(COUNTS), KINDS)
H, CLASSES = 8, 3
NONE = torch.empty(2, 0, dtype=torch.long)
Batch = tuple[dict[str, Tensor], dict[Any, Tensor]]


def graph(seed: int = 0, factor: int = 1) -> HeteroData:
    rng = torch.Generator().manual_seed(seed)
    data = HeteroData()
    for name, count in COUNTS.items():
        data[name].x = torch.randn(factor * count, WIDTHS[name], generator=rng)
    for source, kind, target in KINDS:
        ends = [torch.randint(len(data[end].x), (40,), generator=rng) for end in (source, target)]
        data[source, kind, target].edge_index = torch.stack(ends)
    data["author"].y = torch.randint(CLASSES, (factor * COUNTS["author"],), generator=rng)
    return data


X, EDGES = WHOLE = graph().x_dict, graph().edge_index_dict


def without(name: str) -> dict[Any, Tensor]:
    return {kind: edges for kind, edges in EDGES.items() if name not in kind}


BATCHES: dict[str, Batch] = {
    "whole": WHOLE,
    "another graph": (graph(1, 2).x_dict, graph(1, 2).edge_index_dict),
    "a type of edges is missing": (X, without("in")),
    "a type of edges is empty": (X, {**EDGES, IN: NONE}),
    "a type has no nodes": (
        {**X, "term": X["term"][:0]},
        {kind: NONE if "term" in kind else edges for kind, edges in EDGES.items()},
    ),
    "a type of nodes is missing": ({n: x for n, x in X.items() if n != "term"}, without("term")),
}


class Hetero(nn.Module):
    """Two layers that take and give dictionaries, and a Linear for the authors."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.lin = first, second, pyg_nn.Linear(H, CLASSES)

    def forward(self, x: dict[str, Tensor], edges: dict[Any, Tensor]) -> Tensor:
        x = {name: h.relu() for name, h in self.first(x, edges).items() if h is not None}
        out: Tensor = self.lin(self.second(x, edges)["author"])
        return out


class Typed(nn.Module):
    """A layer that takes all nodes at once, with their types and those of the edges."""

    def __init__(self, conv: nn.Module, arguments: str) -> None:
        super().__init__()
        self.embed, self.conv = pyg_nn.HeteroDictLinear(WIDTHS, H), conv
        self.lin, self.arguments = pyg_nn.Linear(H, CLASSES), arguments.split()

    def forward(self, x: dict[str, Tensor], edges: dict[Any, Tensor]) -> Tensor:
        data = HeteroData({name: {"x": h.relu()} for name, h in self.embed(x).items()})
        for kind, edge_index in edges.items():
            data[kind].edge_index = edge_index
        homo = data.to_homogeneous()
        names = torch.tensor([KINDS.index(kind) for kind in data.edge_types])
        homo.edge_type = names[homo.edge_type]
        homo.edge_attr = F.one_hot(homo.edge_type, len(KINDS)).float()
        h: Tensor = self.conv(homo.x, *(homo[name] for name in self.arguments))
        out: Tensor = self.lin(h[: len(x["author"])])
        return out


class ToHetero(nn.Module):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = pyg_nn.SAGEConv((-1, -1), H)
            self.second = pyg_nn.GATv2Conv((-1, -1), CLASSES, add_self_loops=False)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.second(self.first(x, edge_index).relu(), edge_index)

    def __init__(self) -> None:
        super().__init__()
        self.net = pyg_nn.to_hetero(self.Net(), META)
        self(*WHOLE)

    def forward(self, x: dict[str, Tensor], edges: dict[Any, Tensor]) -> Tensor:
        out: Tensor = self.net(x, edges)["author"]
        return out


def hetero_conv(make: Callable[[tuple[int, int]], nn.Module]) -> nn.Module:
    return Hetero(
        pyg_nn.HeteroConv({k: make((WIDTHS[k[0]], WIDTHS[k[2]])) for k in KINDS}),
        pyg_nn.HeteroConv({k: make((H, H)) for k in KINDS}, aggr="mean"),
    )


class OfNodes(pyg_nn.HeteroDictLinear):
    """Looks at no edges, and has a forward of its own."""

    def forward(self, x: dict[str, Tensor], edges: Any) -> dict[str, Tensor]:
        return {name: h.tanh() for name, h in super().forward(x).items()}


GAT: dict[str, Any] = {"heads": 2, "add_self_loops": False}
TYPES = len(KINDS)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "HeteroConv of SAGE": lambda: hetero_conv(lambda c: pyg_nn.SAGEConv(c, H)),
    "HeteroConv of GAT": lambda: hetero_conv(lambda c: pyg_nn.GATConv(c, H // 2, **GAT)),
    "to_hetero": ToHetero,
    "HGT": lambda: Hetero(
        pyg_nn.HGTConv(WIDTHS, H, META, heads=2), pyg_nn.HGTConv(H, H, META, heads=2)
    ),
    "HAN": lambda: Hetero(
        pyg_nn.HANConv(WIDTHS, H, META, heads=2), pyg_nn.HANConv(H, H, META, heads=2)
    ),
    "HEAT": lambda: Typed(
        pyg_nn.HEATConv(H, H, len(COUNTS), TYPES, 3, TYPES, 4),
        "edge_index node_type edge_type edge_attr",
    ),
    "RGCN": lambda: Typed(pyg_nn.RGCNConv(H, H, TYPES), "edge_index edge_type"),
    "RGCN, bases": lambda: Typed(pyg_nn.RGCNConv(H, H, TYPES, num_bases=2), "edge_index edge_type"),
    "RGCN, blocks": lambda: Typed(
        pyg_nn.RGCNConv(H, H, TYPES, num_blocks=2), "edge_index edge_type"
    ),
    "fast RGCN": lambda: Typed(pyg_nn.FastRGCNConv(H, H, TYPES), "edge_index edge_type"),
    "HeteroLinear": lambda: Typed(pyg_nn.HeteroLinear(H, H, len(COUNTS)), "node_type"),
    "HeteroDictLinear": lambda: Hetero(OfNodes(WIDTHS, H), OfNodes(dict.fromkeys(COUNTS, H), H)),
}
every_model = pytest.mark.parametrize("name", sorted(MODELS))


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


def converted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QLRWarning)  # of layers without a packed form
        return qlr.convert(model.eval())


def step(model: nn.Module, batch: Batch, labels: Tensor) -> None:
    groups = qlr.parameter_groups(model, lr=0.01, weight_decay=0.0)
    optimizer = torch.optim.Adam(groups)
    F.cross_entropy(model.train()(*batch)[: len(labels)], labels).backward()
    optimizer.step()


def trained(model: nn.Module, batch: Batch = WHOLE, **options: Any) -> nn.Module:
    quantized = qlr.quantize(model, **options)
    step(quantized, batch, graph()["author"].y)
    return quantized


def runs(model: nn.Module, batch: Batch) -> bool:
    """Whether the float model takes it: what ``to_hetero`` makes needs every type of edges."""
    try:
        model.eval()(*batch)
    except (ValueError, KeyError):
        return False
    return True


def ranges(model: nn.Module) -> dict[str, LearnedRangeQuant]:
    return {q.path: q for q in model.modules() if isinstance(q, LearnedRangeQuant)}


@every_model
def test_trains_and_converts(name: str, tmp_path: Path) -> None:
    model = built(name)
    quantized = trained(model, bits=4)
    learned = {p: q.gamma.grad for p, q in ranges(quantized).items() if q.gamma.grad is not None}
    moved = [path for path, grad in learned.items() if bool(grad.any())]
    for part in ("weight", "input"):
        assert any(path.endswith(part) for path in moved)
    assert all(bool(grad.isfinite().all()) for grad in learned.values())
    packed = converted(quantized)
    taken = [batch for batch in BATCHES.values() if runs(model, batch)]
    assert len(taken) >= 4
    with torch.no_grad():
        for batch in taken:
            expected = quantized(*batch)
            assert expected.isfinite().all() and packed(*batch).equal(expected)
        for state, file in ((quantized, "quantized"), (packed, "packed")):
            qlr.save(state, tmp_path / file)
            assert qlr.load(tmp_path / file, built(name)).eval()(*WHOLE).equal(state(*WHOLE))


@every_model
@pytest.mark.parametrize("batch", ["a type has no nodes", "a type of nodes is missing"])
def test_trains_first_on_a_batch_that_lacks_a_type(name: str, batch: str) -> None:
    """The next batch, which has it, finds its ranges."""
    model = built(name)
    if not runs(model, BATCHES[batch]):
        pytest.skip("the float model needs every type")
    quantized = trained(model, BATCHES[batch], bits=8)
    step(quantized, WHOLE, graph()["author"].y)
    with torch.no_grad():
        expected = quantized.eval()(*WHOLE)
        assert expected.isfinite().all() and converted(quantized)(*WHOLE).equal(expected)


@pytest.mark.parametrize("name", ["HGT", "HAN", "HeteroConv of SAGE", "to_hetero", "RGCN"])
def test_every_type_is_treated_alike(name: str) -> None:
    """What meets the features of one type meets those of each, at the bits and with the gain of the
    input; what comes later does not."""
    model = built(name)
    plan = qlr.plan(model, bits=2, input_bits=8)
    reads = {"HGT": "first.kqv_lin", "HAN": "first.proj", "RGCN": "embed"}.get(name, "first.")
    for entry in plan.entries:
        if entry.family == "linear":
            is_first = reads in entry.name
            assert entry.points.get("input", 8) == (8 if is_first else 2), entry.name
    quantized = trained(model, bits=2, input_bits=8)
    gains = {n for n, _ in quantized.named_buffers() if n.endswith("input_gain")}
    firsts = [e.name for e in plan.entries if e.family == "linear" and reads in e.name]
    assert gains == {f"{first}._qlr.input_gain" for first in firsts}
    shown = str(plan) + str(qlr.report(converted(quantized)))
    assert all(shown.count(f"{first} ") == 2 for first in firsts)


def test_a_forward_that_is_not_that_of_the_class() -> None:
    """Of a subclass, or put on the object: it runs, around Linears that are quantized."""
    layer = OfNodes(WIDTHS, H)
    quantized = qlr.quantize(layer, bits=8)
    truth, found = layer(*WHOLE), quantized(*WHOLE)
    for name, h in found.items():
        assert torch.allclose(h, truth[name], atol=0.05) and not h.equal(truth[name])
    layer = pyg_nn.HeteroDictLinear(WIDTHS, H)
    plain = layer.forward
    layer.forward = lambda x: {name: 2 * h for name, h in plain(x).items()}
    truth = layer(X)
    for name, h in qlr.quantize_(layer, bits=8)(X).items():
        assert torch.allclose(h, truth[name], atol=0.1) and not h.equal(truth[name])


def error_of(model: nn.Module, quantized: nn.Module, batch: Batch) -> dict[str, float]:
    with torch.no_grad():
        truth, found = model.eval()(*batch), quantized.eval()(*batch)
    return {n: float((truth[n] - h).norm() / truth[n].norm()) for n, h in found.items()}


def test_strong_features_of_one_type_leave_the_others_their_levels() -> None:
    strong = {**X, "author": 100 * X["author"]}, EDGES
    han = built("HAN").get_submodule("first")
    usual = error_of(han, qlr.quantize(han, bits=4), WHOLE)
    error = error_of(han, qlr.quantize(han, bits=4), strong)
    assert all(error[name] < 2 * usual[name] for name in error)
    # The messages of HGTConv are in one tensor for all types: a range for each node does the same.
    hgt, nodes = built("HGT").get_submodule("first"), {"activation": "node", "message": "node"}
    error = error_of(hgt, qlr.quantize(hgt, bits=8, granularity=nodes), strong)
    assert all(value < 0.02 for value in error.values())


def test_the_order_of_types_means_nothing() -> None:
    """A type of edges that is missing, or comes later, does not pass its range on to another."""
    strong = {**X, "author": 100 * X["author"]}, EDGES
    han = built("HAN").get_submodule("first")
    for hops in ("per_hop", "shared"):
        quantized = qlr.quantize(han, bits=4, hop_quantizers=hops)
        quantized.train()(*strong)
        for model in (quantized.eval(), converted(quantized)):
            with torch.no_grad():
                out = model(*strong)["paper"]
                back = model(strong[0], dict(reversed(EDGES.items())))["paper"]
                assert torch.allclose(back, out, atol=1e-5 * float(out.abs().max()))
                alone = model(strong[0], {IN: EDGES[IN]})["paper"]
                truth = han.eval()(strong[0], {IN: EDGES[IN]})["paper"]
                assert (alone - truth).norm() < 0.3 * truth.norm()


@needs_sampler
@pytest.mark.filterwarnings("ignore:Using '.*' without a 'pyg-lib':UserWarning")
@pytest.mark.parametrize("name", ["HGT", "HAN", "HeteroConv of GAT", "RGCN"])
def test_sampled_batches(name: str) -> None:
    data, options = graph(2, 8), {"input_nodes": "author", "batch_size": 24}
    quantized = qlr.quantize(built(name), bits=4)
    batches = [
        *NeighborLoader(data, num_neighbors=[2, 2], **options),
        *HGTLoader(data, num_samples=[8, 8], **options),
    ]
    assert len(batches) == 6
    for batch in batches:
        labels = batch["author"].y[: batch["author"].batch_size]
        step(quantized, (batch.x_dict, batch.edge_index_dict), labels)
    packed = converted(quantized)
    with torch.no_grad():
        for batch in batches:
            inputs = batch.x_dict, batch.edge_index_dict
            assert packed(*inputs).equal(quantized(*inputs))
