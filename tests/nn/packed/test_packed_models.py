"""Whole models: the same answers, codes from stage to stage, small files, clear errors."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.nn import APPNP, GAT, GCN, GIN, MLP, GraphSAGE, MessagePassing, to_hetero

import torch_geometric_qlr as qlr
from tests.helpers.crossed import crossed
from tests.helpers.packed_cases import (
    ALL_CONFIGS,
    assert_agrees,
    config_name,
    deviation,
    packed,
    quantized,
    run,
)
from torch_geometric_qlr.nn import SMP, SMPGNN
from torch_geometric_qlr.tensor import PackedTensor

NODES, FEATURES = 40, 24
_seeded = torch.Generator().manual_seed(3)
X = torch.randn(NODES, FEATURES, generator=_seeded)
EDGES = torch.randint(0, NODES, (2, 160), generator=_seeded)


class Predict(nn.Module):
    """An MLP whose predictions are propagated."""

    def __init__(self, propagation: nn.Module | None = None) -> None:
        super().__init__()
        self.mlp = MLP([FEATURES, 16, 5], norm=None)
        self.propagation = APPNP(6, 0.1) if propagation is None else propagation

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.propagation(self.mlp(x), edge_index)
        return out


def _basic(cls: Any, **kwargs: Any) -> nn.Module:
    out: nn.Module = cls(FEATURES, 16, num_layers=3, out_channels=5, dropout=0.5, **kwargs)
    return out


MODELS: dict[str, Any] = {
    "gcn": lambda: _basic(GCN),
    "gcn-norm": lambda: _basic(GCN, norm="batch_norm", act="elu"),
    "gcn-jk": lambda: _basic(GCN, jk="cat"),
    "sage": lambda: _basic(GraphSAGE),
    "gin": lambda: _basic(GIN),
    "gat": lambda: _basic(GAT, heads=2, v2=True),
    "appnp": Predict,
    "smp": lambda: SMPGNN(FEATURES, 16, 5, K=3),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(5)
    model: nn.Module = MODELS[name]()
    return model


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often each packed operation ran, "+pack" if it wrote codes."""
    counts: Counter[str] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if func.namespace == "qlr":
                names = [argument.name for argument in func._schema.arguments]
                given = dict(zip(names, args, strict=False)) | (kwargs or {})
                packs = "+pack" if given.get("out_scale") is not None else ""
                counts[func._schema.name.removeprefix("qlr::") + packs] += 1
            return func(*args, **(kwargs or {}))

    with Count():
        yield counts


@pytest.mark.parametrize(
    ("name", "config"),
    crossed(
        sorted(MODELS),
        ALL_CONFIGS,
        whole=("gcn-norm", "gat", "smp"),
        ids=[config_name(config) for config in ALL_CONFIGS],
    ),
)
def test_models_agree(name: str, config: dict[str, Any]) -> None:
    model = quantized(build(name), (X, EDGES), **config)
    converted = packed(model)
    # The second call has learned which results are needed as floats, too.
    for _ in range(2):
        assert_agrees(model, converted, X, EDGES)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["gin", "sage"])
def test_sums_of_words_do_not_tie_without_training(name: str, bits: int) -> None:
    # Rows of equal words, whose sums and ranges are small integers over one another.
    generator = torch.Generator().manual_seed(0)
    words = (torch.rand(2000, FEATURES, generator=generator) < 0.3).float()
    x = words / words.sum(dim=1, keepdim=True).clamp(min=1)
    edges = torch.randint(0, 2000, (2, 8000), generator=generator)
    model = quantized(build(name), (x, edges), bits=bits)
    assert deviation(run(model, x, edges), run(packed(model), x, edges)) < 1e-5


def test_codes_flow_through_a_gcn() -> None:
    converted = packed(quantized(build("gcn"), (X, EDGES), bits=4))
    run(converted, X, EDGES)
    with counted() as counts, torch.no_grad():
        converted(X, EDGES)
    assert counts == {
        "quantize_rows": 1,
        "packed_linear+pack": 3,
        "packed_spmm+pack": 2,
        "packed_spmm": 1,
    }


@pytest.mark.parametrize("granularity", ["tensor", "node"])
def test_codes_flow_through_batch_norm(granularity: str) -> None:
    model = _basic(GCN, norm="batch_norm", jk=None)
    mlp = MLP([FEATURES, 16, 5], norm="batch_norm")
    for module in [*model.modules(), *mlp.modules()]:
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)
    config: dict[str, Any] = {"bits": 4, "granularity": {"activation": granularity}}
    of_gcn = {"packed_linear+pack": 3, "packed_spmm+pack": 2, "packed_spmm": 1, "quantize_rows": 1}
    of_mlp = {"packed_linear+pack": 1, "packed_linear": 1, "quantize_rows": 1}
    if granularity == "node":  # the range of a row is known when its floats are
        of_gcn = {"packed_linear+pack": 3, "packed_spmm": 3, "quantize_rows": 3}
        of_mlp = {"packed_linear": 2, "quantize_rows": 2}
    for float_model, args, expected in [(model, (X, EDGES), of_gcn), (mlp, (X,), of_mlp)]:
        quantized_model = quantized(float_model, args, **config)
        converted = packed(quantized_model)
        assert_agrees(quantized_model, converted, *args)
        with counted() as counts, torch.no_grad():
            converted(*args)
        assert counts == expected


@pytest.mark.parametrize("hops", [1, 6])
def test_all_hops_are_one_call(hops: int) -> None:
    torch.manual_seed(5)
    converted = packed(quantized(Predict(APPNP(hops, 0.1)), (X, EDGES), bits=4))
    run(converted, X, EDGES)
    with counted() as counts, torch.no_grad():
        converted(X, EDGES)
    # The predictions are packed for the first hop and kept as floats for the teleport.
    assert counts["packed_propagate"] == 1 and counts["packed_spmm"] == 0
    assert counts["quantize_pack"] + counts["quantize_rows"] == 2


@pytest.mark.parametrize(
    "options", [{}, {"eta": 0.05}, {"primal": "lagrangian", "multiplier_state": "persistent"}]
)
def test_all_steps_of_smp_are_one_call(options: dict[str, Any]) -> None:
    model = quantized(SMP(3, **options), (X, EDGES), bits=8)
    expected, converted = run(model, X, EDGES), packed(model)
    with counted() as counts:
        assert deviation(expected, run(converted, X, EDGES)) < 1e-5
    assert counts == {"packed_smp": 1}
    with counted() as counts, torch.no_grad():
        converted(X, EDGES, return_history=True)
    assert counts["quantize_pack"] == 6 and "packed_smp" not in counts


def test_hops_with_something_in_between_go_one_by_one() -> None:
    model = quantized(build("appnp"), (X, EDGES), bits=4)
    expected, converted = run(model, X, EDGES), packed(model)
    seen: list[int] = []
    conv = next(m for m in converted.modules() if isinstance(m, MessagePassing))
    conv.register_propagate_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(UserWarning, match="in floating point: a hook sits on its messages"):
        assert deviation(expected, run(converted, X, EDGES)) < 1e-5
    assert len(seen) == conv.K


@pytest.mark.parametrize("name", sorted(MODELS))
def test_fusion_changes_no_bit(name: str) -> None:
    model = quantized(build(name), (X, EDGES), bits=4)
    fused, plain = packed(model), packed(model, fuse=False)
    run(fused, X, EDGES)
    difference = deviation(run(plain, X, EDGES), run(fused, X, EDGES))
    assert difference == 0.0


@pytest.mark.parametrize("name", ["gcn", "sage", "gat"])
def test_packed_features(name: str) -> None:
    model = quantized(build(name), (X, EDGES), bits=4, granularity={"input": "tensor"})
    converted = packed(model)
    if name == "gcn":
        features = qlr.pack_features(converted, X)
        with torch.no_grad():
            assert torch.equal(converted(features, EDGES), converted(X, EDGES))
            with counted() as counts:
                converted(features, EDGES)
        assert counts["quantize_pack"] + counts["quantize_rows"] == 0
    eight = PackedTensor.from_float(X, torch.tensor(0.03), torch.tensor(128.0), bits=8)
    out = run(converted, eight, EDGES)
    # Finer codes than the model's own: not the same, but no worse an approximation.
    expected = run(model, eight.dequantize(), EDGES)[0]
    assert float((out[0] - expected).norm() / expected.norm()) < 0.5


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
@pytest.mark.parametrize("truncation", [None, "bt*"])
@pytest.mark.parametrize("granularity", ["node", "tensor"])
def test_sparse_features(layout: str, truncation: str | None, granularity: str) -> None:
    words = (X > 1).float()
    sparse = {
        "coo": words.to_sparse(),
        "csr": words.to_sparse_csr(),
        "csc": words.to_sparse_csc(),
    }[layout]
    model = build("gcn")
    settings = {"truncation": truncation, "granularity": {"input": granularity}}
    model = quantized(model, (sparse, EDGES), bits=4, **settings)
    assert_agrees(model, packed(model), sparse, EDGES)


def test_hetero_models() -> None:
    metadata = (["a", "b"], [("a", "to", "b"), ("b", "to", "a")])
    model = to_hetero(GraphSAGE(FEATURES, 8, num_layers=2), metadata)
    x = {"a": X, "b": X[:20]}
    edges = {("a", "to", "b"): EDGES % 20, ("b", "to", "a"): (EDGES % 20).flip(0)}
    model = quantized(model, (x, edges), bits=4)
    assert_agrees(model, packed(model), x, edges)


@pytest.mark.parametrize("name", ["gcn", "appnp"])
def test_copies_and_checkpoints_are_exact(name: str) -> None:
    model = quantized(build(name), (X, EDGES), bits=4)
    converted = packed(model)
    expected = run(converted, X, EDGES)
    for twin in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert deviation(expected, run(twin, X, EDGES)) == 0.0
    other = packed(quantized(MODELS[name](), (2 * X, EDGES), bits=4))
    assert deviation(expected, run(other, X, EDGES)) > 0.0
    other.load_state_dict(converted.state_dict())
    assert deviation(expected, run(other, X, EDGES)) == 0.0


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_files_are_small(bits: int, tmp_path: Any) -> None:
    model = GCN(512, 256, num_layers=2, out_channels=64)
    x = torch.randn(20, 512)
    edge_index = EDGES % 20
    converted = packed(quantized(model, (x, edge_index), bits=bits))
    sizes = []
    for name, module in (("float", model), ("packed", converted)):
        torch.save(module.state_dict(), tmp_path / name)
        sizes.append((tmp_path / name).stat().st_size)
    values = sum(v.nbytes for v in converted.state_dict().values())
    floats = sum(p.nbytes for p in model.parameters())
    assert values / floats < bits / 32 + 0.01
    assert sizes[1] / sizes[0] < bits / 32 + 0.03
    torch.load(tmp_path / "packed", weights_only=True)


def test_unknown_backends_and_states_are_refused() -> None:
    model = quantized(build("gcn"), (X, EDGES), bits=4)
    converted = packed(model)
    state = converted.state_dict()
    key = next(k for k in state if k.endswith("codes"))
    with pytest.raises(qlr.errors.CheckpointError, match="damaged"):
        converted.load_state_dict({**state, key: state[key][:-1]})
    narrow = packed(quantized(build("gcn"), (X, EDGES), bits=2))
    with pytest.raises(qlr.errors.CheckpointError, match="at 2 bits, the model"):
        converted.load_state_dict(narrow.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        converted.load_state_dict({k: v for k, v in state.items() if k != key})


def test_inference_only() -> None:
    converted = packed(quantized(build("gcn"), (X, EDGES), bits=4))
    assert not any(p.requires_grad for p in converted.parameters())
    with pytest.raises(qlr.errors.InputError, match=r"convs\.0.*requires grad"):
        converted(X.clone().requires_grad_(), EDGES)
    with pytest.raises(qlr.errors.InputError, match=r"convs\.0: x is float64.*x\.float\(\)"):
        converted(X.double(), EDGES)
    with pytest.raises(qlr.errors.InputError, match="training mode"):
        converted.train()(X, EDGES)
    with pytest.raises(qlr.errors.InputError, match="packed codes"):
        converted.reset_parameters()
    # An error in a forward leaves nothing behind.
    converted.eval()
    assert type(converted.convs[0](X, EDGES)) is Tensor


def test_the_reference_back_end_agrees() -> None:
    model = quantized(build("gcn"), (X, EDGES), bits=4)
    assert_agrees(model, packed(model, backend="reference"), X, EDGES)
    with torch.inference_mode():
        assert_agrees(model, packed(model), X, EDGES)


def test_packed_features_belong_to_whoever_packed_them() -> None:
    converted = packed(quantized(build("gcn"), (X, EDGES), bits=4, granularity={"input": "tensor"}))
    expected = run(converted, X, EDGES)
    features = qlr.pack_features(converted, X)
    features.scale.zero_(), features.zero_point.zero_()
    assert deviation(expected, run(converted, X, EDGES)) == 0.0
