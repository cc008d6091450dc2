"""What a quantized model goes through: checkpoints, copies, casts, compilers, processes."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_geometric.data import Data
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.nn import GAT, GCN, GIN, EdgeConv, GATConv, GCNConv, GraphConv, GraphSAGE

import torch_geometric_qlr as qlr
from torch_geometric_qlr.ops import use_backend
from torch_geometric_qlr.quantizers import LearnedRangeQuant
from torch_geometric_qlr.quantizers.observing import Observing

F, H, C, N = 8, 6, 3, 12
_seeded = torch.Generator().manual_seed(0)
X = torch.randn(N, F, generator=_seeded)
EDGES = torch.randint(0, N, (2, 40), generator=_seeded)
OTHER = 3 * torch.randn(N, F, generator=_seeded)


def make(bits: int = 4, seed: int = 0, **config: Any) -> nn.Module:
    return qlr.quantize(float_model(seed), bits=bits, **config)


def float_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return GCN(F, H, 2, C, norm="batch_norm", dropout=0.2)


def ranges(model: nn.Module) -> list[LearnedRangeQuant]:
    return [m for m in model.modules() if isinstance(m, LearnedRangeQuant)]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor = X) -> None:
    optimizer.zero_grad()
    model(x, EDGES).square().mean().backward()
    optimizer.step()


def trained(model: nn.Module, steps: int = 2) -> nn.Module:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        step(model, optimizer)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert list(left) == list(right)
    for key in left:
        torch.testing.assert_close(left[key], right[key], rtol=0, atol=0, msg=key)


# Checkpoints ######################################################################################


def test_float_checkpoint_loads_strictly_and_says_what_is_fresh() -> None:
    source, model = float_model(seed=1), trained(make())
    with pytest.warns(UserWarning, match=r"no ranges for 6 quantizers \(convs\.0.*, \.\.\.\)"):
        result = model.load_state_dict(source.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(model.convs[0].lin.weight, source.convs[0].lin.weight)
    assert not any(bool(q.calibrated) for q in ranges(model))
    fresh = qlr.quantize(source, bits=4).eval()
    torch.testing.assert_close(model.eval()(X, EDGES), fresh(X, EDGES), rtol=0, atol=0)


def test_float_checkpoint_with_strict_false_says_the_same() -> None:
    model, saved = make(), float_model().state_dict()
    del saved["convs.0.bias"]
    with pytest.warns(UserWarning, match="no ranges for 6 quantizers"):
        result = model.load_state_dict(saved, strict=False)
    assert result.missing_keys == ["convs.0.bias"] and not result.unexpected_keys


def test_quantized_checkpoint_is_bit_exact() -> None:
    for bits, truncation in ((8, None), (2, "bt*"), (1, "bt")):
        model = trained(make(bits, truncation=truncation))
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        buffer.seek(0)
        twin = make(bits, seed=5, truncation=truncation)
        twin.load_state_dict(torch.load(buffer, weights_only=True))
        assert_equal(state(twin), state(model))
        torch.testing.assert_close(twin.eval()(X, EDGES), model.eval()(X, EDGES), rtol=0, atol=0)


def test_loading_keeps_the_parameters_that_an_optimizer_holds() -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = [id(p) for p in model.parameters()]
    model.load_state_dict(trained(make(seed=3)).state_dict())
    assert [id(p) for p in model.parameters()] == held
    before = [p.detach().clone() for p in qlr.quant_parameters(model)]
    step(model, optimizer)
    moved = [
        not torch.equal(a, b) for a, b in zip(before, qlr.quant_parameters(model), strict=True)
    ]
    assert any(moved)


def test_a_checkpoint_of_another_config_is_refused() -> None:
    saved = trained(make(4)).state_dict()
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    for found in (saved, torch.load(buffer, weights_only=True)):
        with pytest.raises(RuntimeError, match=r"convs\.0\.lin\._qlr.*made with 4 bits.*has 2"):
            make(2).load_state_dict(found)
    with pytest.raises(RuntimeError, match=r"this model has 4 bits and truncation 'bt\*'"):
        make(4, truncation="bt*").load_state_dict(saved)
    with pytest.raises(RuntimeError, match="size mismatch.*gamma"):
        make(4, granularity={"weight": "tensor"}).load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*_qlr"):
        make(4, overrides={"convs.1": None}).load_state_dict(saved)
    # The remedy that the message names.
    with pytest.warns(UserWarning, match="no ranges for 6"):
        make(2).load_state_dict({k: v for k, v in saved.items() if "_qlr." not in k})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*_qlr"):
        float_model().load_state_dict(saved)


def test_a_checkpoint_with_half_of_its_ranges_is_refused() -> None:
    saved = trained(make()).state_dict()
    partial = {k: v for k, v in saved.items() if not k.endswith("gamma")}
    with pytest.raises(RuntimeError, match=r"Missing key.*gamma"):
        make().load_state_dict(partial)
    one_layer = {k: v for k, v in saved.items() if "_qlr" not in k or "convs.0" in k}
    with pytest.warns(UserWarning, match=r"no ranges for 3 quantizers \(convs\.1"):
        make().load_state_dict(one_layer)


# Copies ###########################################################################################


@pytest.mark.parametrize("calibrated", [True, False])
def test_copies(calibrated: bool) -> None:
    model = trained(make()) if calibrated else make()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(buffer, weights_only=False),
    }
    before = state(model)
    torch.manual_seed(0)
    expected = model(X, EDGES)
    for name, twin in copies.items():
        assert_equal(state(twin), before)
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}, name
        torch.manual_seed(0)
        torch.testing.assert_close(twin(X, EDGES), expected, rtol=0, atol=0)
        assert_equal(state(twin), state(model))  # ranges move alike


def test_shallow_copies_share_their_parameters() -> None:
    conv = trained(make()).convs[0].eval()
    twin = copy.copy(conv)
    assert type(twin) is type(conv) and twin.bias is conv.bias
    torch.testing.assert_close(twin(X, EDGES), conv(X, EDGES), rtol=0, atol=0)


def test_functional_call_and_stateless_weights() -> None:
    model = trained(make()).eval()
    zeros = {n: torch.zeros_like(p) for n, p in model.named_parameters() if "bias" in n}
    weights = {n: p.detach() for n, p in model.named_parameters()} | zeros
    out = torch.func.functional_call(model, weights, (X, EDGES))
    for name, p in model.named_parameters():
        if "bias" in name:
            p.data.zero_()
    torch.testing.assert_close(model(X, EDGES), out)


@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("after", [0, 1])
def test_moving_averages(use_buffers: bool, after: int) -> None:
    model = trained(make(), steps=after).train()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        step(model, optimizer)
        ema.update_parameters(model)
    ema.eval()
    out = ema(X, EDGES)
    assert bool(out.isfinite().all())
    assert all(bool(q.calibrated) for q in ranges(ema))
    reference = model.eval()(X, EDGES)
    assert (out - reference).norm() < 0.7 * reference.norm()


# Casts ############################################################################################


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_ranges_stay_in_float32(dtype: torch.dtype) -> None:
    model = trained(make()).eval()
    expected = model(X, EDGES)
    before = {k: v for k, v in state(model).items() if "._qlr." in k}
    cast = copy.deepcopy(model).to(dtype)
    out = cast(X.to(dtype), EDGES)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0.4, atol=0.4)
    assert_equal({k: v for k, v in state(cast).items() if "._qlr." in k}, before)
    trained(cast.train(), steps=0)
    cast(X.to(dtype), EDGES).sum().backward()
    gradients = {p.grad.dtype for p in qlr.quant_parameters(cast) if p.grad is not None}
    assert gradients == {torch.float32}


def test_autocast() -> None:
    model = make()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(X, EDGES)
        out.float().square().mean().backward()
        assert out.dtype == float_model()(X, EDGES).dtype
    assert all(q.lo.dtype == torch.float32 for q in ranges(model) if hasattr(q, "lo"))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_meta_device_and_materialization() -> None:
    with torch.device("meta"):
        model = qlr.quantize(GCN(F, H, 2, C), bits=4)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    source = trained(qlr.quantize(GCN(F, H, 2, C), bits=4))
    model = model.to_empty(device="cpu")
    model.load_state_dict(source.state_dict())
    torch.testing.assert_close(model.eval()(X, EDGES), source.eval()(X, EDGES), rtol=0, atol=0)


# Training and evaluation ##########################################################################


def test_evaluation_leaves_everything_alone_and_training_moves() -> None:
    model = trained(make()).eval()
    before = state(model)
    model(OTHER, EDGES)
    with torch.no_grad():
        model(OTHER, EDGES)
    assert_equal(state(model), before)
    model.train()(OTHER, EDGES)
    moved = {k.rpartition(".")[2] for k, v in state(model).items() if not torch.equal(v, before[k])}
    assert {"lo", "hi"} <= moved and "gamma" not in moved


def test_the_first_batch_may_come_in_evaluation() -> None:
    model = make().eval()
    with torch.inference_mode():
        expected = model(X, EDGES)
        torch.testing.assert_close(model(X, EDGES), expected, rtol=0, atol=0)
    assert all(bool(q.calibrated) for q in ranges(model))
    # With gradients it computes in floating point, whose sums round otherwise.
    torch.testing.assert_close(model(X, EDGES), expected)
    trained(model)  # what was observed there does not keep it from training


def test_gradient_accumulation_adds_up() -> None:
    model = trained(make(), steps=1).eval()
    model.zero_grad()
    for x in (X, OTHER):
        model(x, EDGES).sum().backward()
    accumulated = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (model(X, EDGES).sum() + model(OTHER, EDGES).sum()).backward()
    for a, p in zip(accumulated, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def test_reset_parameters_starts_over() -> None:
    model = trained(make())
    model.reset_parameters()
    assert not any(bool(q.calibrated) for q in ranges(model))
    assert all(bool((q.gamma == 1).all()) for q in ranges(model))


def test_optimizer_groups_cover_everything_once() -> None:
    model = make()
    groups = [list(qlr.weight_parameters(model)), list(qlr.quant_parameters(model))]
    ids = [id(p) for group in groups for p in group]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())


def test_frozen_ranges_do_not_train() -> None:
    model = make()
    for p in qlr.quant_parameters(model):
        p.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step(model, optimizer)
    before = [p.clone() for p in qlr.quant_parameters(model)]
    step(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, qlr.quant_parameters(model), strict=True))


class _Synchronised(AssertionError):
    pass


@contextmanager
def no_host_synchronisation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a GPU: its kernels take tensors, and values are not looked at to check them."""

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise _Synchronised

    with monkeypatch.context() as patch, use_backend("reference"):
        patch.setattr(Observing, "_may_read", staticmethod(lambda x: False))
        # One op would do all of it, and look at values here, where these are on a CPU after all.
        patch.setattr(LearnedRangeQuant, "_learns_at_once", lambda self, x: False)
        for name in ("item", "tolist", "__float__", "__int__", "__bool__", "__index__", "numpy"):
            patch.setattr(Tensor, name, forbidden)
        with pytest.raises(_Synchronised):
            X.sum().item()
        yield


@pytest.mark.parametrize("truncation", [None, "bt*"])
@pytest.mark.parametrize("preset", [None, "paper"])
def test_a_training_step_never_asks_for_a_value(
    preset: str | None, truncation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Layers that do not look at values themselves, which PyG's self loops would.
    layers = nn.ModuleList([GraphConv(F, H), GATConv(H, H, add_self_loops=False)])
    model = qlr.quantize(layers, bits=2, preset=preset, truncation=truncation)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run(x: Tensor) -> None:
        optimizer.zero_grad()
        model[1](model[0](x, EDGES), EDGES).square().mean().backward()
        optimizer.step()

    run(X)
    before = [q.lo.clone() for q in ranges(model) if hasattr(q, "lo")]
    with no_host_synchronisation(monkeypatch):
        run(OTHER)
    after = [q.lo for q in ranges(model) if hasattr(q, "lo")]
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


# Compilers and explanations #######################################################################


def _edge_conv() -> nn.Module:
    return EdgeConv(nn.Sequential(nn.Linear(2 * F, H), nn.ReLU(), nn.Linear(H, C)))


COMPILED: dict[str, Any] = {
    "GCN": lambda: GCN(F, H, 2, C),
    "GAT": lambda: GAT(F, H, 2, C),
    "EdgeConv": _edge_conv,
    "GraphSAGE": lambda: GraphSAGE(F, H, 2, C),
    "GIN": lambda: GIN(F, H, 2, C),
}
#: Small, because the search for the first range is unrolled into the graph.
UNCALIBRATED: dict[str, Any] = {
    "GCNConv": lambda: GCNConv(F, H),
    "GATConv": lambda: GATConv(F, H),
    "EdgeConv": lambda: EdgeConv(nn.Linear(2 * F, H)),
}


def assert_compiles(model: nn.Module, backend: str) -> None:
    torch._dynamo.reset()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    for x in (X, OTHER):
        expected, out = model(x, EDGES), compiled(x, EDGES)
        torch.testing.assert_close(out, expected)
        expected.square().sum().backward()
        out.square().sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert_equal(state(twin), state(model))
    model.eval(), compiled.eval()
    torch.testing.assert_close(compiled(X, EDGES), model(X, EDGES))


def first_of(names: Iterable[str], count: int) -> list[Any]:
    """So many always run; the others are heavy."""
    return [
        pytest.param(name, marks=() if number < count else pytest.mark.heavy)
        for number, name in enumerate(names)
    ]


@pytest.mark.parametrize("name", first_of(COMPILED, 3))
def test_compiles_without_a_break(name: str) -> None:
    torch.manual_seed(0)
    model = qlr.quantize(COMPILED[name](), bits=2)
    model(X, EDGES)
    assert_compiles(model, backend="aot_eager" if name == "GCN" else "eager")


@pytest.mark.parametrize("name", first_of(UNCALIBRATED, 1))
def test_compiles_before_the_first_batch(name: str) -> None:
    torch.manual_seed(0)
    assert_compiles(qlr.quantize(UNCALIBRATED[name](), bits=2), backend="eager")


@pytest.mark.parametrize("conv", [GCNConv, GraphConv, GATConv])
def test_explanations_see_the_quantized_messages(conv: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(F, C)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv(x, edge_index)

    edges = EDGES[:, EDGES[0] != EDGES[1]]
    Net()(X, edges)  # the class exists in floating point before
    model = qlr.quantize(Net(), bits=2)
    model(X, edges)
    model.eval()
    full = model(X, edges)
    layer = model.conv
    layer.explain, layer._explain, layer._apply_sigmoid = True, True, False
    layer._edge_mask = torch.zeros(edges.size(1))
    loops = torch.zeros(edges.size(1), dtype=torch.bool)
    layer._loop_mask = ~loops
    masked = model(X, edges)
    assert not torch.allclose(full, masked)
    layer._edge_mask = torch.ones(edges.size(1))
    torch.testing.assert_close(model(X, edges), full)


def test_gnn_explainer_runs() -> None:
    model = trained(make()).eval()
    explainer = Explainer(
        model,
        GNNExplainer(epochs=3),
        explanation_type="model",
        node_mask_type="attributes",
        edge_mask_type="object",
        model_config={
            "mode": "multiclass_classification",
            "task_level": "node",
            "return_type": "raw",
        },
    )
    before = state(model)
    explanation = explainer(X, EDGES, index=2)
    assert explanation.edge_mask.shape == (EDGES.size(1),)
    assert bool(explanation.edge_mask.abs().sum() > 0)
    assert_equal(state(model), before)


# Data objects and other users of a model ##########################################################


def test_data_objects_and_loops_of_pyg() -> None:
    model = make().eval()
    data = Data(x=X, edge_index=EDGES)
    torch.testing.assert_close(model(data.x, data.edge_index), model(X, EDGES))
    floats = sum(p.numel() for p in float_model().parameters())  # PyG may warn as it is built
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(p.numel() for p in model.parameters()) > floats
