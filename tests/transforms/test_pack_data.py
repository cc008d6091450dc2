"""Graphs with packed features."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GCN
from torch_geometric.transforms import Compose

import torch_geometric_qlr as qlr
from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import ConfigError, InputError, NothingToQuantizeError
from torch_geometric_qlr.quantizers import LearnedRangeQuant, MinMax
from torch_geometric_qlr.tensor import PackedTensor
from torch_geometric_qlr.transforms import PackFeatures, UnpackFeatures

GRANULARITIES = ("node", "feature", "tensor")


def graph() -> HeteroData:
    data = HeteroData()
    data["paper"].x, data["paper"].y = torch.randn(5, 20), torch.arange(5)
    data["tag"].x, data["tag"].pos = torch.randn(3, 7), torch.randn(3, 2)
    data["venue"].num_nodes = 4
    data["paper", "to", "tag"].edge_index = torch.tensor([[0, 1], [2, 0]])
    data["paper", "to", "tag"].x = torch.rand(2, 3)
    return data


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_the_range_is_all_that_values_span(granularity: str, bits: int) -> None:
    x = torch.randn(30, 20)
    statistics = "current" if granularity == "node" else "running"
    config = QuantizerConfig(
        bits=bits, granularity=granularity, statistics=statistics, search=False
    )
    quantizer = LearnedRangeQuant(config, 20 if granularity == "feature" else 1)
    quantizer(x)  # which sets the running range
    with torch.no_grad():
        quantizer.gamma.fill_(1.0)
    truth = quantizer.eval().pack(x)
    found = MinMax(bits, granularity).pack(x)
    # The multiplier is a floor below which it does not fall, plus the rest of it: one to 3 ulp.
    assert (found.unpack() != truth.unpack()).float().mean() < 0.01
    torch.testing.assert_close(found.scale, truth.scale, rtol=1e-3, atol=0)
    assert found.bits == truth.bits and found.granularity == truth.granularity
    span = x.amax().clamp_min(0) - x.amin().clamp_max(0)
    error = (found.dequantize() - x).abs().max()
    assert error <= span / (2**bits - 1) * 0.5001 + 1e-6


def test_data_is_copied_and_counts_its_nodes() -> None:
    data = Data(x=torch.randn(9, 20), edge_index=torch.tensor([[0], [1]]), y=torch.arange(9))
    packed = PackFeatures(bits=4)(data)
    assert isinstance(data.x, torch.Tensor)
    assert packed.x.equal(MinMax(4).pack(data.x))
    assert packed.num_nodes == 9 and torch.equal(packed.y, data.y)
    assert torch.equal(packed.to("cpu").x.dequantize(), packed.x.dequantize().cpu())
    assert torch.equal(UnpackFeatures()(packed).x, packed.x.dequantize())
    assert isinstance(packed.x, PackedTensor)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_type_of_nodes(granularity: str) -> None:
    data = graph()
    packed = PackFeatures(bits=2, granularity=granularity, attrs=("x", "pos"))(data)
    for group, attr in (("paper", "x"), ("tag", "x"), ("tag", "pos")):
        assert packed[group][attr].equal(MinMax(2, granularity).pack(data[group][attr]))
    assert packed["paper"].num_nodes == 5 and torch.equal(packed["paper"].y, torch.arange(5))
    assert torch.equal(packed["paper", "to", "tag"].x, data["paper", "to", "tag"].x)
    again = UnpackFeatures()(packed)
    assert torch.equal(again["tag"].pos, packed["tag"].pos.dequantize())
    one = PackFeatures(bits=2, attrs="pos")(data)
    assert isinstance(one["tag"].pos, PackedTensor) and isinstance(one["tag"].x, torch.Tensor)


def test_it_composes_with_the_transforms_of_pyg() -> None:
    data = Data(x=torch.randn(4, 5))
    transform = Compose([PackFeatures(4), UnpackFeatures()])
    assert torch.equal(transform(data).x, MinMax(4).pack(data.x).dequantize())
    assert repr(PackFeatures(4)) == "PackFeatures(bits=4, 'node')"


def test_features_that_are_packed_stay() -> None:
    data = graph()
    data["tag"].x = MinMax(8).pack(data["tag"].x)
    packed = PackFeatures(bits=2)(data)
    assert packed["tag"].x.bits == 8 and packed["paper"].x.bits == 2
    with pytest.raises(NothingToQuantizeError, match="no nodes have floats as x"):
        PackFeatures(bits=2)(packed)


def test_what_is_refused_changes_nothing() -> None:
    for bits in (0, 9, 4.0, True):
        with pytest.raises(ConfigError, match="bits"):
            PackFeatures(bits)
    with pytest.raises(ConfigError, match="granularity='channel' is unknown"):
        PackFeatures(4, "channel")
    for wrong, words in (
        (torch.ones(3, 7).long(), "int64, not floating"),
        (torch.rand(3), r"shape \[3\]"),
        ([1, 2, 3], "not of list"),
        (torch.rand(3, 7).to_sparse(), "a dense matrix"),
        (torch.full((3, 7), torch.nan), r"x\[0, 0\] is nan"),
    ):
        data = graph()
        data["tag"].x = wrong
        with pytest.raises(InputError, match=f"PackFeatures: tag.x: .*{words}"):
            PackFeatures(4)(data)
        assert isinstance(data["paper"].x, torch.Tensor)


def test_a_quantized_model_reads_the_values() -> None:
    x, edges = torch.rand(6, 8), torch.tensor([[0, 1], [2, 3]])
    model = qlr.quantize(GCN(8, 4, 2, 3), bits=4)
    packed = MinMax(2).pack(x)
    model(packed, edges).sum().backward()
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(packed, edges), model(packed.dequantize(), edges))
        assert torch.equal(model(x=packed, edge_index=edges), model(packed, edges))


def test_what_holds_no_packed_features_is_passed_as_it_is() -> None:
    class Noting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, seen: list, *, named: dict) -> torch.Tensor:
            seen.append(x)
            named["x"] = x
            return self.lin(x)

    model, seen, named = qlr.quantize(Noting(), bits=4), [], {}
    for x in (torch.rand(2, 4), MinMax(4).pack(torch.rand(2, 4))):
        model(x, seen, named=named)
    assert len(seen) == 2 and named["x"] is seen[1]
    assert torch.equal(seen[1], x.dequantize())
