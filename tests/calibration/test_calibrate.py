"""Ranges from data, without training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader, NeighborLoader
from torch_geometric.nn import APPNP, GAT, GCN, GIN, GraphSAGE

import torch_geometric_qlr as qlr
from tests.helpers.optional import needs_sampler
from tests.helpers.predict import Predict
from torch_geometric_qlr.calibration import calibrate, calibrating
from torch_geometric_qlr.errors import (
    AlreadyQuantizedError,
    ConfigError,
    InputError,
    NothingToQuantizeError,
    QLRWarning,
)
from torch_geometric_qlr.quantizers import LearnedRangeQuant, Quantizer

FEATURES = 16


MODELS = {
    "gcn": lambda: GCN(FEATURES, 32, 2, 5),
    "sage": lambda: GraphSAGE(FEATURES, 32, 2, 5),
    "gin": lambda: GIN(FEATURES, 32, 2, 5, norm="batch_norm"),
    "gat": lambda: GAT(FEATURES, 32, 2, 5, heads=2),
    "appnp": lambda: Predict(APPNP(K=3, alpha=0.1), FEATURES, 5),
}
TENSOR = {"granularity": {"input": "tensor", "activation": "tensor"}}


def graphs(count: int, seed: int = 0) -> list[Data]:
    """Some small graphs."""
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.randint(5, 30, (count,), generator=rng).tolist()
    return [
        Data(
            torch.randn(size, FEATURES, generator=rng),
            torch.randint(size, (2, 3 * size), generator=rng),
        )
        for size in sizes
    ]


def ranges(model: nn.Module) -> dict[str, Tensor]:
    """All that calibration moves."""
    return {
        f"{module.path}.{name}": getattr(module, name).detach().clone()
        for module in model.modules()
        if isinstance(module, LearnedRangeQuant) and module.is_static
        for name in ("lo", "hi", "gamma")
    }


def build(name: str, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    return qlr.quantize(MODELS[name](), **config)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("method", ["mse", "percentile", "minmax"])
def test_eight_bits_answer_as_floats_do(name: str, method: str) -> None:
    torch.manual_seed(0)
    data = Batch.from_data_list(graphs(20))
    model = MODELS[name]().eval()
    quantized = qlr.quantize(model, bits=8)
    calibration = calibrate(quantized, data, method=method, progress=False)
    assert calibration.batches == 1 and not calibration.unobserved
    with torch.no_grad():
        truth = model(data.x, data.edge_index)
        packed = qlr.convert(quantized)(data.x, data.edge_index)
    assert qlr.metrics.sqnr(truth, packed) > 25


@pytest.mark.parametrize("granularity", ["tensor", "feature"])
@pytest.mark.parametrize("method", ["mse", "percentile"])
def test_batches_and_their_order_make_no_difference(granularity: str, method: str) -> None:
    config = {"bits": 4, "granularity": {"input": granularity, "activation": granularity}}
    some = graphs(12)
    one, several = build("gcn", **config), build("gcn", **config)
    calibrate(one, Batch.from_data_list(some), method=method, progress=False)
    calibrate(several, list(reversed(some)), method=method, progress=False)
    found = ranges(several)
    for name, expected in ranges(one).items():
        torch.testing.assert_close(found[name], expected, rtol=0.01, atol=1e-3, msg=name)


def test_the_least_error_is_least() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4000, FEATURES, generator=rng).pow(3)  # long tails
    edges = torch.zeros(2, 0, dtype=torch.long)
    errors = {}
    for method in ("mse", "percentile", "minmax"):
        model = build("gcn", bits=4, **TENSOR)
        calibrate(model, (x, edges), method=method, progress=False)
        quantizer = model.convs[0].lin.quantizers["input"].eval()
        errors[method] = (quantizer(x)[0] - x).square().mean().item()
    assert errors["mse"] < min(errors["percentile"], errors["minmax"]) * 0.7


@pytest.mark.parametrize("truncation", ["bt", "bt*"])
def test_truncated_codes(truncation: str) -> None:
    data = Batch.from_data_list(graphs(20))
    model = build("sage", bits=4, truncation=truncation, **TENSOR)
    calibrate(model, data, progress=False)
    one = copy.deepcopy(model)
    out = one.eval()(data.x, data.edge_index)
    assert out.isfinite().all()
    if truncation == "bt*":
        skew = [m.skew for m in model.modules() if isinstance(m, LearnedRangeQuant) and m.is_static]
        assert all(float(s) != 0 for s in skew)


def test_what_a_batch_may_be() -> None:
    data = Batch.from_data_list(graphs(6))
    x, edge_index = data.x, data.edge_index
    expected = None
    loader = DataLoader(graphs(6), batch_size=6)
    for batches, forward in [
        (data, None),
        ((x, edge_index), None),
        ([(x, edge_index)], None),
        ({"x": x, "edge_index": edge_index}, None),
        (loader, None),
        ([x], lambda model, batch: model(batch, edge_index)),
        (lambda model: model(x, edge_index), None),
    ]:
        model = build("gcn", bits=4)
        calibrate(model, batches, forward, progress=False)
        found = ranges(model)
        expected = expected or found
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@needs_sampler
def test_batches_of_sampled_neighbours() -> None:
    data = Batch.from_data_list(graphs(6))
    sampled = NeighborLoader(data, [3, 3], batch_size=8)
    assert calibrate(build("gcn", bits=4), sampled, progress=False).batches == len(sampled)


def test_more_data_later() -> None:
    some = graphs(12)
    whole, parts = build("gcn", bits=4, **TENSOR), build("gcn", bits=4, **TENSOR)
    calibrate(whole, some, progress=False)
    calibration = calibrate(parts, some[:5], progress=False)
    again = calibrate(parts, some[5:], progress=False, resume=calibration)
    assert again is calibration and again.batches == 12
    expected = ranges(whole)
    assert all(torch.equal(value, expected[name]) for name, value in ranges(parts).items())
    with pytest.raises(ConfigError, match="another model"):
        calibrate(whole, some, progress=False, resume=calibration)


def test_an_error_leaves_the_model_as_it_was() -> None:
    some = graphs(4)
    model = build("gcn", bits=4).train()
    before = copy.deepcopy(model.state_dict())
    some[2].x[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"convs\.0\.\S+: the tensor to quantize holds NaN"):
        calibrate(model, some, progress=False)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(module.training for module in model.modules())
    some[2].x[0, 0] = 0.0
    calibrate(model, some, progress=False)  # nothing of it is left


def test_an_error_takes_back_what_was_learned() -> None:
    some = graphs(4)
    model = build("gcn", bits=1).eval()  # the input has a range for each node, and so a multiplier
    with torch.no_grad():
        model(some[0].x.pow(3), some[0].edge_index)  # of long tails it is small, and grows
    before = copy.deepcopy(model)
    bad = copy.deepcopy(some)
    bad[3].x[0, 0] = torch.inf
    with pytest.raises(InputError):
        calibrate(model, bad, progress=False)
    assert ranges_and_states(model) == ranges_and_states(before)
    calibrate(model, some, progress=False)
    multiplier = model.convs[0].lin.quantizers["input"].gamma
    assert multiplier > before.convs[0].lin.quantizers["input"].gamma


def ranges_and_states(model: nn.Module) -> list[Any]:
    """All that any quantizer knows."""
    found = [module for module in model.modules() if isinstance(module, Quantizer)]
    numbers = [[t.tolist() for t in (*q.parameters(), *q.buffers())] for q in found]
    return [(n, q.range_state) for n, q in zip(numbers, found, strict=True)]


def test_the_model_is_as_before_afterwards() -> None:
    data = graphs(1)[0]
    model = build("gcn", bits=4).train()
    model.convs[1].eval()
    with calibrating(model) as calibration:
        assert not model.training and not torch.is_grad_enabled()
        inside = model(data.x, data.edge_index)
    assert calibration.observed and model.training and not model.convs[1].training
    assert torch.is_grad_enabled()
    outside = model.eval()(data.x, data.edge_index)
    assert not torch.equal(inside, outside)  # inside, only weights are rounded
    with torch.no_grad():
        other = graphs(1, seed=3)[0]
        fixed = ranges(model)
        model(10 * other.x, other.edge_index)
    assert all(torch.equal(fixed[name], value) for name, value in ranges(model).items())


class Branches(nn.Module):
    """One of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(FEATURES, 4), nn.Linear(FEATURES, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x)


def test_what_was_never_seen_is_named() -> None:
    model = qlr.quantize(Branches(), bits=4, **TENSOR)
    with pytest.warns(QLRWarning, match=r"no data has reached right\.input.*they have no range"):
        calibration = calibrate(model, torch.randn(8, FEATURES), progress=False)
    assert "right.input" in calibration.unobserved
    assert calibration.observed == ["left.input"]


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_features_are_as_dense_ones(layout: str) -> None:
    x = torch.rand(40, FEATURES) * (torch.rand(40, FEATURES) < 0.2)
    edges = torch.randint(40, (2, 100))
    dense, sparse = (build("gcn", bits=4, **TENSOR) for _ in range(2))
    calibrate(dense, (x, edges), progress=False)
    stored = x.to_sparse() if layout == "coo" else x.to_sparse_csr()
    calibrate(sparse, (stored, edges), progress=False)
    expected = ranges(dense)
    for name, value in ranges(sparse).items():
        torch.testing.assert_close(value, expected[name], rtol=0.01, atol=1e-6, msg=name)


def test_refusals() -> None:
    data = graphs(1)[0]
    with pytest.raises(NothingToQuantizeError, match=r"call qlr\.quantize first|Call qlr"):
        calibrate(GCN(4, 8, 2), data)
    model = build("gcn", bits=4)
    with pytest.raises(ConfigError, match="choose from minmax, percentile, mse"):
        calibrate(model, data, method="best")
    with pytest.raises(ConfigError, match="share is 0.2"):
        calibrate(model, data, share=0.2)
    with pytest.raises(ConfigError, match="there is no batch"):
        calibrate(model, [], progress=False)
    calibrate(model, data, progress=False)
    with pytest.raises(AlreadyQuantizedError, match="its ranges are final"):
        calibrate(qlr.convert(model), data)
