"""What must hold for every model of PyG: nothing is claimed as quantized that is not."""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCN, PMLP, GPSConv, JumpingKnowledge, LightGCN, Node2Vec, ViSNet

import torch_geometric_qlr as qlr
from tests.helpers.conv_zoo import flat
from tests.helpers.crossed import crossed
from tests.helpers.model_zoo import (
    ATOMS,
    EDGES,
    MOLECULE,
    POS,
    UNREACHED,
    ZOO,
    X,
    complete_graphs,
    params,
)
from tests.helpers.optional import needs_torch_sparse
from torch_geometric_qlr.errors import NothingToQuantizeError
from torch_geometric_qlr.quantizers import LearnedRangeQuant

__all__ = ["complete_graphs"]
MODELS = params(sorted(ZOO))
BITS = (8, 2)


@cache
def _built(name: str) -> nn.Module:
    torch.manual_seed(1)
    return ZOO[name][0]()


def build(name: str) -> nn.Module:
    return copy.deepcopy(_built(name))


def called(name: str, model: nn.Module) -> list[Tensor]:
    torch.manual_seed(7)  # dropout, negative samples
    return flat(ZOO[name][1](model))


def ranges(model: nn.Module) -> list[LearnedRangeQuant]:
    return [m for m in model.modules() if isinstance(m, LearnedRangeQuant)]


@pytest.mark.usefixtures("complete_graphs")
@pytest.mark.parametrize(("name", "bits"), crossed(MODELS, BITS, whole=("GCN", "GAT", "EdgeCNN")))
def test_model(name: str, bits: int) -> None:
    model = build(name)
    plan = qlr.plan(model, bits=bits)
    assert plan.parameters == sum(p.numel() for p in model.parameters())
    assert all(e.quantized_parameters == e.parameters or e.note for e in plan.entries)

    quantized = qlr.quantize(model, bits=bits)
    out = called(name, quantized)
    assert out and all(bool(o.isfinite().all()) for o in out)
    sum(o.square().sum() for o in out).backward()
    gradients = [p.grad for p in quantized.parameters() if p.grad is not None]
    assert gradients and all(bool(g.isfinite().all()) for g in gradients)
    assert_all_ran(name, quantized)

    quantized.eval()
    with torch.no_grad():
        expected = called(name, quantized)
        for twin in (copy.deepcopy(quantized), qlr.quantize(build(name), bits=bits)):
            twin.eval()
            twin.load_state_dict(quantized.state_dict())
            for a, b in zip(called(name, twin), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.usefixtures("complete_graphs")
@pytest.mark.parametrize("name", MODELS)
def test_evaluation_is_quantized_as_well(name: str) -> None:
    # torch and PyG take other, fused paths without gradients.
    model = build(name)
    model.eval()
    in_float = called(name, model)
    quantized = qlr.quantize(model, bits=2)
    with torch.no_grad():
        out = called(name, quantized)
    assert any(not torch.equal(a, b) for a, b in zip(out, in_float, strict=True))
    assert_all_ran(name, quantized, in_evaluation=True)


def assert_all_ran(name: str, model: nn.Module, in_evaluation: bool = False) -> None:
    unreached = UNREACHED.get(name, "nothing")
    idle = [q.path for q in ranges(model) if not bool(q.calibrated)]
    if name == "PMLP" and in_evaluation:
        assert not idle
    assert not [path for path in idle if not re.match(unreached, path)]
    assert (name in UNREACHED) == bool(idle) or (name == "PMLP" and in_evaluation)


@pytest.mark.parametrize(
    "name",
    [
        *params(["Transformer", "GPS multihead", "PMLP", "RENet", "DimeNet++"]),
        pytest.param("DimeNet", marks=(needs_torch_sparse, pytest.mark.heavy)),
    ],
)
@pytest.mark.usefixtures("complete_graphs")
def test_every_quantized_weight_counts(name: str) -> None:
    # A weight that is read around its quantizer would give the same output whatever its range is.
    quantized = qlr.quantize(build(name), bits=4).eval()
    with torch.no_grad():
        expected = called(name, quantized)
        weights = [q for q in ranges(quantized) if q.config.statistics == "current"]
        weights = [q for q in weights if q.config.granularity != "node"]
        assert weights
        for quantizer in weights:
            start = quantizer.gamma.clone()
            quantizer.gamma.mul_(0.1)
            changed = called(name, quantized)
            quantizer.gamma.copy_(start)
            moved = any(not torch.equal(a, b) for a, b in zip(changed, expected, strict=True))
            assert moved, quantizer.path


def test_a_padded_transformer_does_not_take_the_nested_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    x = torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    expected = encoder(x, src_key_padding_mask=padding)[0]
    with torch.no_grad():
        out = qlr.quantize(encoder, bits=8)(x, src_key_padding_mask=padding)[0]
    assert not torch.equal(out, expected)
    torch.testing.assert_close(out, expected, rtol=0.3, atol=0.3)


def test_weights_read_by_their_parent_are_named() -> None:
    plan = str(qlr.plan(GPSConv(8, None, heads=2), bits=2))
    assert "weight only: MultiheadAttention multiplies by it itself" in plan
    plan = qlr.plan(PMLP(8, 6, 4, num_layers=2), bits=2)
    by_name = {e.name: e for e in plan.entries}
    assert dict(by_name["lins.0"].points) == {"weight:weight": 2}
    assert "PMLP" in by_name["lins.0"].note


def test_attention_stays_quantized_when_only_its_projection_is_wide() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    model = nn.ModuleDict({"attn": attention})
    rules = {"attn": {"weight_bits": 32}, "attn.out_proj": {"weight_bits": 2}}
    quantized = qlr.quantize(model, bits=2, overrides=rules)["attn"]
    x = torch.randn(1, 4, 8)
    assert not torch.equal(quantized(x, x, x)[0], attention(x, x, x)[0])
    assert all(bool(q.calibrated) for q in ranges(quantized))


@pytest.mark.parametrize("make", [lambda: LightGCN(9, 4, 1), lambda: _node2vec()])
def test_embeddings_read_as_tensors_stay_float(make: Any) -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make()
            self.head = nn.Linear(4, 2)

    entries = {e.name: e for e in qlr.plan(Mine(), bits=2).entries}
    assert not entries["inner.embedding"].points
    assert "reads it as a tensor" in entries["inner.embedding"].note


def _node2vec() -> nn.Module:
    class Node2VecWithoutWalks(Node2Vec):
        def __init__(self) -> None:  # its own needs a package for random walks
            nn.Module.__init__(self)
            self.embedding = nn.Embedding(9, 4)

    return Node2VecWithoutWalks()


@pytest.mark.usefixtures("complete_graphs")
def test_forces_train_through_a_second_derivative() -> None:
    torch.manual_seed(0)
    model = ViSNet(
        num_heads=2, num_layers=1, hidden_channels=8, num_rbf=6, vertex=False, derivative=True
    )
    quantized = qlr.quantize(model, bits=8)
    _, forces = quantized(ATOMS, POS.clone(), MOLECULE)
    forces.square().sum().backward()
    gradients = [p.grad for p in qlr.quant_parameters(quantized) if p.grad is not None]
    assert any(bool(g.abs().sum() > 0) for g in gradients)
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_a_vector_is_quantized_as_one() -> None:
    # With a range per value there would be nothing to round.
    model = build("AttentiveFP")
    quantized = qlr.quantize(model, bits=2)
    conv = quantized.gate_conv
    assert conv.quantizers["att_l"].gamma.shape == () and conv.quantizers["att_l"].bits == 8


def test_reasons_say_what_was_found() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4)

    with pytest.raises(NothingToQuantizeError, match=r"\(lstm: kept float: recurrent"):
        qlr.quantize(Recurrent(), bits=2)
    with pytest.raises(NothingToQuantizeError, match="JumpingKnowledge has no Linear"):
        qlr.quantize(JumpingKnowledge("cat"), bits=2)


def test_the_model_keeps_working_as_a_pyg_model() -> None:
    model = qlr.quantize(GCN(8, 6, 2, 4, norm="batch_norm"), bits=2)
    assert isinstance(model, GCN) and "QuantGCNConv" in repr(model.convs)
    model(X, EDGES)
    model.reset_parameters()
    assert not any(bool(q.calibrated) for q in ranges(model))
