"""What surrounds training in torch works on quantized models, or is refused in so many words."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import APPNP, VGAE, GCNConv, LGConv, SAGEConv, SuperGATConv, to_hetero

import torch_geometric_qlr as qlr
from torch_geometric_qlr.errors import UnsupportedLayerError

torch.manual_seed(0)
X, EDGES = torch.randn(12, 8), torch.randint(0, 12, (2, 40))

pytestmark = pytest.mark.filterwarnings("ignore::torch_geometric_qlr.errors.QLRWarning")


class Net(nn.Module):
    """Two convs, recomputed if `reentrant` is given."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.first, self.norm, self.second = GCNConv(8, 16), nn.BatchNorm1d(16), SAGEConv(16, 4)
        self.reentrant = reentrant

    def _hidden(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.norm(self.first(x, edge_index)).relu()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.second(self._hidden(x, edge_index), edge_index)
        kind = {"use_reentrant": self.reentrant}
        x = checkpoint(self._hidden, x, edge_index, **kind)
        return checkpoint(self.second, x, edge_index, **kind)


def _trained(bits: int = 4) -> Any:
    quantized = qlr.quantize(Net(), bits=bits)
    quantized(X, EDGES)
    return quantized


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_changes_nothing(reentrant: bool) -> None:
    plain = qlr.quantize(Net(), bits=2)
    recomputed = copy.deepcopy(plain)
    recomputed.reentrant = reentrant
    for model in (plain, recomputed):
        for _ in range(3):
            model.zero_grad()
            model(X.clone().requires_grad_(), EDGES).pow(2).sum().backward()
    for (name, a), b in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), recomputed.buffers(), strict=True):
        if not name.startswith("norm"):  # torch's own moves twice
            torch.testing.assert_close(a, b, msg=name)


def test_function_transforms_of_a_whole_model() -> None:
    model = _trained().eval()
    parameters = dict(model.named_parameters())
    grads = grad(lambda p: functional_call(model, p, (X, EDGES)).pow(2).sum())(parameters)
    model(X, EDGES).pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)
    expected = model(X, EDGES)
    jacobian = jacrev(lambda x: model(x, EDGES))(X)
    _, tangent = jvp(lambda x: model(x, EDGES), (X,), (torch.ones_like(X),))
    torch.testing.assert_close(jacobian.sum((2, 3)), tangent)
    stacked = vmap(lambda x: model(x, EDGES))(X.expand(3, -1, -1))
    torch.testing.assert_close(stacked[1], expected)


def test_other_weights_for_one_call() -> None:
    model = _trained().eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.first.lin.weight.zero_()
        given = functional_call(model, {"first.lin.weight": torch.zeros(16, 8)}, (X, EDGES))
        assert given.equal(other(X, EDGES))
    converted = qlr.convert(model)
    out = functional_call(converted, dict(converted.named_parameters()), (X, EDGES))
    assert out.equal(converted(X, EDGES))


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mu, self.logstd = GCNConv(8, 4), GCNConv(8, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        return self.mu(x, edge_index), self.logstd(x, edge_index)


def test_models_that_keep_activations() -> None:
    model = VGAE(_Encoder())
    model.encode(X, EDGES)
    quantized = qlr.quantize(model, bits=4)
    z = quantized.encode(X, EDGES)
    (quantized.recon_loss(z, EDGES) + quantized.kl_loss()).backward()
    qlr.convert(quantized)
    attention = qlr.quantize(SuperGATConv(8, 4, heads=2), bits=4)
    attention(X, EDGES)
    assert attention.get_attention_loss().isfinite()
    qlr.convert(attention)


@pytest.mark.parametrize("kind", ["weight_norm", "orthogonal", "spectral_norm"])
def test_parametrizations_after_quantization_are_refused(kind: str) -> None:
    model = _trained()
    getattr(nn.utils.parametrizations, kind)(model.first.lin)
    with pytest.raises(UnsupportedLayerError, match=r"first\.lin: its weight was parametrized"):
        model(X, EDGES)
    with pytest.raises(UnsupportedLayerError, match=r"first\.lin: its weight was parametrized"):
        qlr.convert(model)


def test_parametrizations_before_quantization_stay_float() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 4))
    assert "parametrized" in str(qlr.plan(model, bits=4))
    quantized = qlr.quantize(model, bits=4)
    quantized(X)
    with torch.no_grad():
        assert qlr.convert(quantized)(X).equal(quantized.eval()(X))


class Handle(GCNConv):
    """A layer with something that cannot be copied."""

    def __init__(self) -> None:
        super().__init__(8, 4)
        self.handle, self.restored = (i for i in range(3)), 0

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["handle"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.handle, self.restored = (i for i in range(3)), self.restored + 1


def test_own_getstate_and_setstate() -> None:
    quantized = qlr.quantize(Handle(), bits=4)
    quantized(X, EDGES)
    converted = qlr.convert(quantized.eval())
    for model in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert model.restored == converted.restored + 1
        assert model(X, EDGES).equal(converted(X, EDGES))


@pytest.mark.parametrize("use_buffers", [True, False])
def test_averaged_models(use_buffers: bool) -> None:
    model = _trained()
    averaged = AveragedModel(model, use_buffers=use_buffers)
    for _ in range(3):
        model(X, EDGES)
        averaged.update_parameters(model)
    averaged.eval()
    with torch.no_grad():
        assert qlr.convert(averaged)(X, EDGES).equal(averaged(X, EDGES))


def test_models_of_the_meta_device_are_filled_by_a_state() -> None:
    model = _trained().eval()
    with torch.device("meta"):
        empty = Net()
    filled = qlr.quantize(empty, bits=4)
    filled.load_state_dict(model.state_dict(), assign=True)
    with torch.no_grad():
        expected = model(X, EDGES)
        assert filled.eval()(X, EDGES).equal(expected)
        assert qlr.convert(filled)(X, EDGES).equal(expected)


class Table(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.emb, self.conv = nn.Embedding(12, 8, **options), GCNConv(8, 4)

    def forward(self, index: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(self.emb(index), edge_index)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sparse": True},
        {"max_norm": 1.0},
        {"padding_idx": 0},
        {"scale_grad_by_freq": True},
        {"sparse": True, "padding_idx": 3},
        {"max_norm": 0.5, "padding_idx": -1},
    ],
)
def test_options_of_embeddings(options: dict[str, Any]) -> None:
    index, model = torch.tensor([0, 1, 2, 2, 3, 3, 3, 5, 6, 7, 8, 11]), Table(**options)
    quantized = qlr.quantize(model, bits=8)
    for each in (model, quantized):
        each(index, EDGES).pow(2).sum().backward()
    expected, got = model.emb.weight.grad, quantized.emb.weight.grad
    assert got.is_sparse == expected.is_sparse
    got, expected = got.to_dense(), expected.to_dense()
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()
    assert got.any(dim=1).equal(expected.any(dim=1))
    converted = qlr.convert(quantized.eval())
    with torch.no_grad():
        assert converted(index, EDGES).equal(quantized(index, EDGES))


def test_frozen_parts_stay_frozen_until_they_are_not() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = {"conv": GCNConv(8, 8), "appnp": APPNP(2, 0.1), "lg": LGConv()}
            self.encoder, self.head = nn.ModuleDict(parts), nn.Linear(8, 4)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            for part in self.encoder.values():
                x = part(x, edge_index)
            return self.head(x)

    model = Frozen()
    model.encoder.requires_grad_(False)
    quantized = qlr.quantize(model, bits=4)
    learns = {n for n, p in quantized.named_parameters() if p.requires_grad}
    assert learns and all(name.startswith("head") for name in learns)
    quantized.encoder.requires_grad_(True)
    quantized(X, EDGES).sum().backward()
    assert all(p.grad is not None for p in quantized.parameters())


def test_initializers_over_all_parameters() -> None:
    model = _trained()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    model.eval()
    with torch.no_grad():
        assert qlr.convert(model)(X, EDGES).equal(model(X, EDGES))


def test_saliency_in_evaluation() -> None:
    model = _trained(bits=8).eval()
    x = X.clone().requires_grad_()
    out = model(x, EDGES)
    out.pow(2).sum().backward()
    assert x.grad is not None and x.grad.any()
    with torch.no_grad():
        torch.testing.assert_close(model(X, EDGES), out.detach(), atol=1e-5, rtol=1e-5)


def test_replicas_and_wrappers() -> None:
    model = _trained().eval()
    with torch.no_grad():
        assert nn.DataParallel(model)(X, EDGES).equal(model(X, EDGES))
        assert model._replicate_for_data_parallel()(X, EDGES).equal(model(X, EDGES))


@pytest.mark.filterwarnings("ignore:There exist node types")
@pytest.mark.parametrize("before", [True, False])
def test_to_hetero_before_and_after(before: bool) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = SAGEConv((8, 8), 8), SAGEConv((8, 8), 4)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.second(self.first(x, edge_index).relu(), edge_index)

    kinds = [("a", "r", "b"), ("b", "s", "a")]
    xs = {"a": torch.randn(5, 8), "b": torch.randn(6, 8)}
    edges = {kinds[0]: torch.randint(0, 5, (2, 9)), kinds[1]: torch.randint(0, 5, (2, 9))}
    metadata = (["a", "b"], kinds)
    if before:
        quantized = qlr.quantize(to_hetero(Plain(), metadata), bits=4)
    else:
        quantized = to_hetero(qlr.quantize(Plain(), bits=4), metadata)
    quantized(xs, edges)
    converted = qlr.convert(quantized.eval())
    with torch.no_grad():
        expected, got = quantized(xs, edges), converted(xs, edges)
    assert all(got[key].equal(expected[key]) for key in xs)


def test_calibration_in_evaluation_counts_every_batch() -> None:
    model = qlr.quantize(Net(), bits=4).eval()
    statistics = {n: b.clone() for n, b in model.norm.named_buffers()}
    with torch.no_grad():
        for factor in (1, 2, 0.5, 5):
            model(factor * X, EDGES)
        largest = model(5 * X, EDGES)
        converted = qlr.convert(model)
        assert converted(5 * X, EDGES).equal(largest)
        for factor in (10, 1):  # beyond what was seen: neither model's ranges move any more
            assert converted(factor * X, EDGES).equal(model(factor * X, EDGES))
        assert model(5 * X, EDGES).equal(largest)
    assert all(b.equal(statistics[n]) for n, b in model.norm.named_buffers())
