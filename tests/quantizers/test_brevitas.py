"""The injectors do their work inside Brevitas' own layers, without the rest of the package."""

from __future__ import annotations

import brevitas.nn as qnn
import pytest
import torch
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant_tensor import IntQuantTensor
from torch import nn

import torch_geometric_qlr as qlr
from torch_geometric_qlr import quantizers

# Brevitas says so whenever input and weight both have a zero point.
pytestmark = pytest.mark.filterwarnings("ignore:Computing zero point of output accumulator")

ACTIVATIONS = ["QLRActPerTensor", "QLRActPerNode", "QLRActPerTensorBT", "QLRActPerTensorSkewBT"]
WEIGHTS = [
    "QLRWeightPerTensor",
    "QLRWeightPerChannel",
    "QLRWeightPerChannelBT",
    "QLRWeightPerChannelSkewBT",
]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_quant_identity(name: str, bits: int) -> None:
    torch.manual_seed(0)
    act = qnn.QuantIdentity(
        act_quant=getattr(quantizers, name), bit_width=bits, return_quant_tensor=True
    )
    x = torch.randn(64, 16) * 2 + 0.5
    out = act(x)
    assert isinstance(out, IntQuantTensor) and out.bit_width == bits
    codes = out.int(float_datatype=True)
    assert codes.min() >= 0 and codes.max() <= 2**bits - 1
    torch.testing.assert_close((codes - out.zero_point) * out.scale, out.value)
    out.value.square().sum().backward()
    (gamma,) = act.parameters()
    assert gamma.grad is not None and gamma.grad.abs().sum() > 0


def test_per_feature_activations() -> None:
    injector = quantizers.QLRActPerFeature.let(num_groups=16)
    act = qnn.QuantIdentity(act_quant=injector, bit_width=4, return_quant_tensor=True)
    out = act(torch.randn(64, 16) * torch.arange(1, 17))
    assert out.scale.shape == (1, 16) and out.scale.flatten().argmax() > 8


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", WEIGHTS)
def test_quant_linear_trains(name: str, bits: int) -> None:
    torch.manual_seed(0)
    layer = qnn.QuantLinear(
        16,
        8,
        weight_quant=getattr(quantizers, name),
        weight_bit_width=bits,
        input_quant=quantizers.QLRActPerTensor,
        input_bit_width=8,
    )
    x, target = torch.randn(64, 16), torch.randn(64, 8)
    before = {n: p.detach().clone() for n, p in layer.named_parameters() if "gamma" in n}
    assert len(before) == 2
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = dict(layer.named_parameters())
    assert all(not torch.equal(before[n], after[n]) for n in before)
    assert layer.quant_weight().bit_width == bits


def test_checkpoint_of_a_brevitas_layer_is_exact() -> None:
    torch.manual_seed(0)

    def build() -> nn.Module:
        return qnn.QuantLinear(
            16,
            8,
            weight_quant=quantizers.QLRWeightPerChannel,
            weight_bit_width=4,
            input_quant=quantizers.QLRActPerTensorBT,
        )

    layer, x = build(), torch.randn(32, 16)
    layer(x)
    layer.eval()
    twin = build()
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.eval()(x), layer(x))


def test_calibration_mode_collects_the_range() -> None:
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=quantizers.QLRActPerTensor, bit_width=8), nn.ReLU()
    ).eval()
    with torch.no_grad(), calibration_mode(model):
        for _ in range(3):
            model(torch.linspace(-1, 3, 50))
    quantizer = next(m for m in model.modules() if isinstance(m, qlr.quantizers.LearnedRangeQuant))
    assert quantizer.hi == 3 and quantizer.lo == -1


@pytest.mark.parametrize("bits", [2, 8])
def test_own_linear_equals_the_brevitas_layer(bits: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 8)
    x = torch.randn(32, 16)
    own = qlr.quantize(linear, bits=bits)
    theirs = qnn.QuantLinear(
        16,
        8,
        weight_quant=quantizers.QLRWeightPerChannel,
        weight_bit_width=bits,
        input_quant=quantizers.QLRActPerTensor,
        input_bit_width=bits,
    )
    theirs.load_state_dict(linear.state_dict(), strict=False)
    assert torch.equal(own(x), theirs(x))
