"""What the code around converted layers does with their results, it does with ordinary tensors."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import APPNP, GCN, GCNConv, GINConv, SAGEConv
from torch_geometric.utils import scatter, segment, softmax

import torch_geometric_qlr as qlr
from tests.helpers.crossed import crossed
from torch_geometric_qlr.codes.chains import Chains
from torch_geometric_qlr.codes.promise import Promise
from torch_geometric_qlr.codes.recorder import Watched

torch.manual_seed(0)
X, EDGES = torch.randn(30, 8), torch.randint(0, 30, (2, 120))
PTR, GROUP = torch.tensor([0, 10, 30]), torch.arange(30) // 10


@pytest.fixture(autouse=True, params=[0, Chains.smallest], ids=["large", "small"])
def results_of_any_size_may_wait(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On these graphs as between the layers of large ones, and as they are."""
    monkeypatch.setattr(Chains, "smallest", request.param)


def both(model: nn.Module, *args: Any, bits: int = 8) -> tuple[nn.Module, nn.Module]:
    q = qlr.quantize(model.eval(), bits=bits).eval()
    with torch.no_grad():
        q(*args)
    return q, qlr.convert(q)


class Around(nn.Module):
    """A function between two layers."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Any], layer: Any = GCNConv) -> None:
        super().__init__()
        self.a, self.b, self.between = layer(8, 8), GCNConv(8, 4), between
        self.kept: Any = None
        self.register_buffer("shift", torch.zeros(8))
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        return self.between(self, self.a(x, edge_index))

    def then(self, h: Tensor) -> Tensor:
        return self.b(h, EDGES)


@dataclasses.dataclass
class Output:
    h: Any
    more: Any = None


def changed(h: Tensor, operand: Tensor, change: Callable[[Tensor], Any]) -> Tensor:
    out = h + operand
    change(operand)
    return out


BETWEEN: dict[str, Callable[[Any, Tensor], Any]] = {
    "nothing": lambda m, h: m.then(h),
    "relu": lambda m, h: m.then(h.relu()),
    "dropout": lambda m, h: m.then(F.dropout(h.relu(), 0.5, m.training)),
    "numpy": lambda m, h: m.then(h + torch.from_numpy(np.tanh(h.numpy()))),
    "array": lambda m, h: m.then(h) + float(np.asarray(h).sum()),
    "dlpack": lambda m, h: m.then(h) + torch.from_dlpack(h).sum(),
    "list": lambda m, h: m.then(h) + sum(map(sum, h.tolist())),
    "pointer": lambda m, h: m.then(h) + (h.data_ptr() != 0),
    "set": lambda m, h: m.then(h.set_(torch.ones(30, 8)) + h),
    "resize": lambda m, h: m.then(h.resize_(60, 4).resize_(30, 8)),
    "data": lambda m, h: (h.data.mul_(2.0), m.then(h))[1],
    "segment": lambda m, h: (segment(h, PTR, reduce="mean"), m.then(h)),
    "softmax": lambda m, h: (softmax(h, ptr=PTR), m.then(h)),
    "scatter": lambda m, h: (scatter(h, GROUP, reduce="max"), m.then(h)),
    "residual": lambda m, h: m.then(h) + h[:, :4],
    "two layers": lambda m, h: m.then(h) + m.b(h.relu(), EDGES),
    "twice the same": lambda m, h: m.then(h) + m.then(h),
    "addend changed": lambda m, h: m.then(changed(h, X.clone(), lambda r: r.mul_(-3.0))),
    "bias changed": lambda m, h: m.then(changed(h, m.shift.fill_(1.0), lambda r: r.zero_())),
    "parameter": lambda m, h: m.then((h + m.scale).relu()),
    "inplace": lambda m, h: m.then(h.add_(1.0).relu_()),
    "view": lambda m, h: (h.view(60, 4)[0].fill_(3.0), m.then(h))[1],
    "kept": lambda m, h: (setattr(m, "kept", h), m.then(h))[1],
    "kept in a list": lambda m, h: (setattr(m, "kept", [h.relu()]), m.then(h))[1],
    "dataclass": lambda m, h: Output(m.then(h), h),
    "data object": lambda m, h: Data(x=m.then(h), h=h),
    "closure": lambda m, h: Output(m.then(h), lambda: h),
    "parameter of it": lambda m, h: m.then(nn.Parameter(h)),
    "concatenated": lambda m, h: m.then(torch.cat([h[:, :4], h[:, 4:].relu()], dim=1)),
    "einsum": lambda m, h: m.then(torch.einsum("nf,nf->nf", h, h)),
    "out": lambda m, h: m.then(torch.add(h, 1.0, out=torch.empty(30, 8))),
    "into itself": lambda m, h: m.then(torch.add(h, 1.0, out=h)),
}
if importlib.util.find_spec("torch_scatter"):
    import torch_scatter

    BETWEEN["torch_scatter"] = lambda m, h: (torch_scatter.segment_csr(h, PTR), m.then(h))
    BETWEEN["torch_scatter max"] = lambda m, h: (
        torch_scatter.scatter_max(h, GROUP, 0)[0],
        m.then(h),
    )
if importlib.util.find_spec("torch_sparse"):
    from torch_sparse import SparseTensor

    ADJ = SparseTensor.from_edge_index(EDGES, sparse_sizes=(30, 30))
    BETWEEN["torch_sparse"] = lambda m, h: m.then(ADJ @ h)


def tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, Output):
        return tensors([out.h, out.more() if callable(out.more) else out.more])
    if isinstance(out, Data):
        return tensors(list(out.to_dict().values()))
    return [t for o in out for t in tensors(o)]


@pytest.mark.parametrize(
    ("name", "layer"),
    crossed(sorted(BETWEEN), [GCNConv, SAGEConv], whole=("relu", "residual"), ids=["gcn", "sage"]),
)
def test_between_two_layers(name: str, layer: Any) -> None:
    q, p = both(Around(BETWEEN[name], layer), X, EDGES)
    with torch.no_grad():
        expected = tensors(q(X, EDGES))
        for call in range(4):
            out = tensors(p(X, EDGES))
            for e, o in zip(expected, out, strict=True):
                assert type(o) in (Tensor, nn.Parameter), type(o)
                assert torch.equal(torch.from_numpy(o.numpy()), e), f"call {call}"
            kept, wanted = (tensors([] if m.kept is None else m.kept) for m in (p, q))
            assert all(type(k) is Tensor for k in kept) and len(kept) == len(wanted)
            assert all(map(torch.equal, kept, wanted))


@pytest.mark.parametrize("results_of_any_size_may_wait", [0], indirect=True)
def test_results_wait_where_nothing_but_a_quantizer_reads_them() -> None:
    plain_conv: Any = lambda *sizes: GCNConv(*sizes, bias=False)  # noqa: E731
    _, p = both(Around(BETWEEN["parameter"], plain_conv), X, EDGES)
    p(X, EDGES)
    plans = {key[0].path: plan for key, plan in p._qlr_chains.plans.items()}
    assert [step.kind for step in plans["a"].steps] == ["bias", "relu"]
    _, p = both(Around(BETWEEN["relu"]), X, EDGES)
    p(X, EDGES)
    plans = {key[0].path: plan for key, plan in p._qlr_chains.plans.items()}
    assert plans["a.lin"].steps == () and plans["b"] is None


def test_another_branch_later() -> None:
    """What was not seen in the first run is right in a later one."""
    model = Around(lambda m, h: m.branch(m, h))
    for name, branch in BETWEEN.items():
        model.branch = BETWEEN["relu"]
        q, p = both(model, X, EDGES)
        with torch.no_grad():
            p(X, EDGES), p(X, EDGES)
            q.branch = p.branch = branch
            expected = tensors(q(X, EDGES))
            try:
                out = tensors(p(X, EDGES))
            except RuntimeError as error:
                # Memory that torch's dispatcher does not see read: an error that says what to do.
                assert "fuse=False" in str(error), name
                out = tensors(p(X, EDGES))
            assert all(map(torch.equal, expected, out)), name


@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
@pytest.mark.parametrize("write", ["in place", "data", "new data"])
def test_operands_between_layers_may_change_later(name: str, write: str) -> None:
    q, p = both(GCN(8, 8, 2, 4, norm="batch_norm"), X, EDGES)
    with torch.no_grad():
        before = [p(X, EDGES) for _ in range(3)][-1]
        for model in (q, p):
            old = getattr(model.norms[0].module, name)
            if write == "new data":
                old.data = old + 1
            else:
                (old.data if write == "data" else old).add_(1)
        torch.testing.assert_close(p(X, EDGES), q(X, EDGES), rtol=0, atol=1e-5)
        assert (p(X, EDGES) - before).abs().max() > 0.1


def test_without_fusion_everything_is_computed_at_once() -> None:
    q, _ = both(Around(BETWEEN["relu"]), X, EDGES)
    p = qlr.convert(q, fuse=False)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(p(X, EDGES), q(X, EDGES))
    assert not p._qlr_chains.plans


@pytest.mark.parametrize("on", ["a", "b", "", "a.lin", "everything"])
def test_hooks_see_ordinary_tensors(on: str) -> None:
    q, p = both(Around(BETWEEN["relu"]), X, EDGES)
    with torch.no_grad():
        expected = q(X, EDGES)
        p(X, EDGES), p(X, EDGES)
        seen: list[Any] = []
        hook: Any = lambda module, args, out=None: seen.extend([*args, out])  # noqa: E731
        if on == "everything":
            handles = [
                nn.modules.module.register_module_forward_hook(hook),
                nn.modules.module.register_module_forward_pre_hook(hook),
            ]
        else:
            at = p.get_submodule(on)
            handles = [at.register_forward_hook(hook), at.register_forward_pre_hook(hook)]
        try:
            for _ in range(2):
                assert torch.equal(p(X, EDGES), expected)
        finally:
            for handle in handles:
                handle.remove()
    assert seen and all(type(s) is Tensor for s in seen if s is not None)


@pytest.mark.parametrize("when", [0, 1, 2])
def test_interrupted(when: int) -> None:
    q, p = both(GCN(8, 16, num_layers=3, out_channels=4), X, EDGES)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with torch.no_grad():
        expected = q(X, EDGES)
        for _ in range(when):
            p(X, EDGES)
        p.convs[1].lin.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            p(X, EDGES)
        p.convs[1].lin._forward_pre_hooks.clear()
        assert type(p.convs[0](X, EDGES)) is Tensor
        kept = sys.exc_info()  # a notebook keeps the traceback, and with it the frames
        for _ in range(3):
            assert torch.equal(p(X, EDGES), expected)
        assert type(p.convs[0](X, EDGES)) is Tensor and kept is not None


def test_an_error_in_the_model_is_the_model_s() -> None:
    def fails(m: Any, h: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    _, p = both(Around(BETWEEN["relu"]), X, EDGES)
    p(X, EDGES)
    p.between = fails
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="^mine$"):
            p(X, EDGES)
    assert type(p.a(X, EDGES)) is Tensor


def test_a_tensor_is_watched_during_the_first_run_only() -> None:
    types: list[type] = []

    def look(m: Any, h: Tensor) -> Tensor:
        types.append(type(h))
        return m.then(h.relu())

    _, p = both(Around(look), X, EDGES)
    types.clear()
    for _ in range(3):
        p(X, EDGES)
    assert types[0] is Watched and types[1] is types[2] is Promise or Tensor in types


def test_models_inside_of_models() -> None:
    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.head = inner, nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x, EDGES).relu())

    q, p = both(GCN(8, 16, num_layers=2, out_channels=4), X, EDGES)
    outer = Outer(p)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(outer(X), outer.head(q(X, EDGES).relu()))


def test_gin_adds_what_it_was_given() -> None:
    """The addend of a chain is taken when it is added."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = GCNConv(8, 8)
            self.b = GINConv(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = self.a(x, edge_index).tanh()
            out = self.b(h, edge_index)
            h.zero_()
            return out

    q, p = both(Net(), X, EDGES)
    with torch.no_grad():
        expected = q(X, EDGES)
        for _ in range(3):
            assert torch.equal(p(X, EDGES), expected)


def test_what_all_hops_add_may_change_afterwards() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.hops = nn.Linear(8, 4), APPNP(3, 0.5)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = self.lin(x).tanh()
            out = self.hops(h, edge_index)
            h.fill_(7.0)
            return out

    q, p = both(Net(), X, EDGES)
    with torch.no_grad():
        expected = q(X, EDGES)
        for _ in range(3):
            assert torch.equal(p(X, EDGES), expected)


@pytest.mark.parametrize("converted", [False, True], ids=["quantized", "converted"])
def test_threads_with_graphs_of_their_own(converted: bool) -> None:
    q, p = both(GCN(8, 16, num_layers=3, out_channels=4), X, EDGES)
    for quantizer in q.modules():
        if hasattr(quantizer, "fix"):
            quantizer.fix()
    model = p if converted else q
    graphs = [(X + 0.01 * i, torch.randint(0, 30, (2, 60 + i))) for i in range(48)]
    with torch.no_grad():
        expected = [model(*graph) for graph in graphs]
    wrong: list[int] = []

    def work(start: int) -> None:
        with torch.no_grad():
            for i in range(start, len(graphs), 2):
                if not torch.equal(model(*graphs[i]), expected[i]):
                    wrong.append(i)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


class Shifted(Around):
    """Batch norm between two layers, with a shift that may be learned."""

    def __init__(self) -> None:
        super().__init__(lambda m, h: m.then(F.batch_norm(h, m.shift, m.ones, None, m.scale)))
        self.register_buffer("ones", torch.ones(8))


def test_a_gradient_between_two_layers_is_refused_and_not_dropped() -> None:
    model, converted = both(Shifted(), X, EDGES)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(converted(X, EDGES), model(X, EDGES))
    converted.scale.requires_grad_()
    with pytest.raises(qlr.errors.InputError, match="an input requires grad|asks for one"):
        converted(X, EDGES)


@pytest.mark.parametrize("kind", ["quantized", "converted"])
def test_wrong_arguments_are_told_as_by_the_layer_itself(kind: str) -> None:
    model, converted = both(GCNConv(8, 4), X, EDGES)
    layer = model if kind == "quantized" else converted
    wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((), {"edge_index": EDGES, "weights": None}),  # one is missing, one is unknown
        ((X,), {"x": X, "edge_index": EDGES}),
        ((X, EDGES, None, None), {}),
        ((X,), {}),
    ]
    for args, kwargs in wrong:
        with torch.no_grad(), pytest.raises(TypeError):
            layer(*args, **kwargs)
