"""What a converted model is compared with, and how."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

import torch_geometric_qlr as qlr
from tests.helpers.conv_zoo import flat
from torch_geometric_qlr.nn.message_passing import QuantMessagePassing
from torch_geometric_qlr.nn.packed import PackedMessagePassing
from torch_geometric_qlr.nn.packed.report import how_it_runs
from torch_geometric_qlr.transforms.convert import convert

CONFIGS: list[dict[str, Any]] = [
    {"bits": 8},
    {"bits": 4, "truncation": "bt"},
    {"bits": 2, "truncation": "bt*"},
    {"bits": 1},
]
ALL_CONFIGS: list[dict[str, Any]] = [
    *({"bits": b, "truncation": t} for b in (4, 2, 1) for t in (None, "bt", "bt*")),
    {"bits": 8},
]

#: The contract: outputs agree to this share of their own scale.
TOLERANCE = 1e-5


def config_name(config: dict[str, Any]) -> str:
    return f"{config['bits']}{config.get('truncation') or ''}"


def quantized(layer: nn.Module, args: tuple[Any, ...], **config: Any) -> nn.Module:
    """A quantized model that has seen one batch in training."""
    model = qlr.quantize(layer, **config).train()
    run(model, *args)
    return model.eval()


def packed(model: nn.Module, **kwargs: Any) -> nn.Module:
    """The converted model; what falls back is not the question here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return convert(model, **kwargs)


@torch.no_grad()
def run(model: nn.Module, *args: Any) -> list[Tensor]:
    torch.manual_seed(7)  # sampled edges
    return flat(model(*args))


def deviation(expected: list[Tensor], out: list[Tensor]) -> float:
    """The largest difference, relative to the scale of each tensor."""
    assert len(expected) == len(out)
    worst = 0.0
    for e, o in zip(expected, out, strict=True):
        assert type(o) is Tensor and e.shape == o.shape and e.dtype == o.dtype
        assert torch.equal(e.isfinite(), o.isfinite())
        e, o = e[e.isfinite()], o[o.isfinite()]
        if e.numel():
            worst = max(worst, float((e - o).abs().max() / e.abs().max().clamp_min(1e-12)))
    return worst


def assert_agrees(model: nn.Module, converted: nn.Module, *args: Any) -> None:
    """The contract, without exceptions."""
    difference = deviation(run(model, *args), run(converted, *args))
    assert difference <= TOLERANCE, difference


def forbid_float_messages(monkeypatch: Any) -> None:
    """Makes a conv that claims to be packed fail where it would not be."""
    fall_back = QuantMessagePassing._qlr_propagate

    def propagate(self: Any, *args: Any, **kwargs: Any) -> Any:
        packed = isinstance(self, PackedMessagePassing)
        assert not packed or how_it_runs(self)[1], f"{type(self).__name__} runs in floating point"
        return fall_back(self, *args, **kwargs)

    monkeypatch.setattr(QuantMessagePassing, "_qlr_propagate", propagate)
