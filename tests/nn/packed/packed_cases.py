"""What a converted model is compared with, and how."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from conv_zoo import flat
from torch import Tensor, nn

import torch_geometric_qlr as qlr
from torch_geometric_qlr.nn.packed import PackedMessagePassing
from torch_geometric_qlr.quantizers import LearnedRangeQuant
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
#: How far, in codes, rounding errors of a float sum can move what is rounded. At low widths sums
#: are small multiples of one step, and what is rounded can lie exactly between two codes.
TIE = 1e-4


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


@torch.no_grad()
def assert_agrees(model: nn.Module, converted: nn.Module, *args: Any) -> None:
    """Outputs agree, unless some value lies so close to the middle between two codes that the order
    of a float sum decides to which it is rounded."""
    with closest_tie(model) as ties:
        expected = run(model, *args)
    difference = deviation(expected, run(converted, *args))
    assert difference <= TOLERANCE or min(ties) < TIE, difference


@contextmanager
def closest_tie(model: nn.Module) -> Iterator[list[float]]:
    """Distances, in codes, of what a quantized model rounds from the middle between two codes."""
    ties = [0.5]

    @torch.no_grad()
    def look(quantizer: LearnedRangeQuant, args: tuple[Tensor], out: Any) -> None:
        x = quantizer.groups.matrix(args[0])
        if x.numel() and not isinstance(x, nn.Parameter):
            scale, zero_point, skew = quantizer.code_params(x)
            q = x / scale + zero_point
            ties.append(float((q - q.floor() - 0.5).abs().min()))
            if quantizer.config.truncates:
                top = 2**quantizer.bits - 1
                c = (q.round().clamp(0, 255) + (0 if skew is None else skew)) * top / 255
                ties.append(float((c - c.floor() - 0.5).abs().min()))

    ranges = [m for m in model.modules() if isinstance(m, LearnedRangeQuant)]
    hooks = [m.register_forward_hook(look) for m in ranges]
    try:
        yield ties
    finally:
        for hook in hooks:
            hook.remove()


def forbid_float_messages(monkeypatch: Any) -> None:
    """Makes a conv that claims to be packed fail where it would not be."""
    fall_back = PackedMessagePassing.__mro__[2].propagate

    def propagate(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert self.reason, f"{type(self).__name__} runs in floating point"
        return fall_back(self, *args, **kwargs)

    monkeypatch.setattr(PackedMessagePassing.__mro__[2], "propagate", propagate)
