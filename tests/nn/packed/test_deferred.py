"""A deferred tensor is the tensor that it stands for, whatever is done to it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torch_geometric_qlr.nn.packed.deferred import Deferred, Epilogue, Stage, realised
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor

ROWS, COLS = 6, 8
VALUE = torch.linspace(-2, 3, ROWS * COLS).view(ROWS, COLS).sin()
OTHER = torch.linspace(1, -1, ROWS * COLS).view(ROWS, COLS)
BIAS = torch.linspace(-1, 1, COLS)


class Layer:
    keeps_floats = False


class Quantizer:
    """Four bits, static."""

    params = OutputQuantizer(torch.tensor(0.25), torch.tensor(8.0), 4)

    def output(self) -> OutputQuantizer:
        return self.params

    def pack(self, x: Tensor) -> PackedTensor:
        return PackedTensor.from_float(x, self.params.scale, self.params.zero_point, 4)


def pending(adds: bool = True, owner: Any = None) -> Stage:
    """A stand-in for a kernel, with its epilogue."""

    def run(e: Epilogue, out: OutputQuantizer | None) -> Any:
        y = e.apply(VALUE.clone())
        return y if out is None else Quantizer().pack(y)

    return Stage(run, (ROWS, COLS), VALUE.device, adds=adds, owner=owner or Layer())


KINDS: dict[str, Any] = {
    "pending": pending,
    "pending, adds nothing": lambda: pending(adds=False),
    "floats": lambda: Stage.of_value(VALUE.clone()),
    "codes": lambda: Stage.of_packed(Quantizer().pack(VALUE)),
}

CALLS: dict[str, Any] = {
    "relu": lambda x: x.relu(),
    "relu, inplace": lambda x: F.relu(x, inplace=True),
    "bias": lambda x: x + BIAS,
    "bias first": lambda x: BIAS + x,
    "bias, relu, bias": lambda x: (x + BIAS).relu() + BIAS,
    "two biases": lambda x: x + BIAS - 0.5 + BIAS,
    "scaled": lambda x: 0.9 * x,
    "negative after relu": lambda x: x.relu() * -2.0,
    "bias, scaled": lambda x: (x + BIAS) * 0.5,
    "teleport": lambda x: x * 0.9 + 0.1 * OTHER,
    "teleport of itself": lambda x: x * 0.9 + 0.1 * x,
    "addend, bias, relu": lambda x: (torch.add(OTHER, x, alpha=0.3) + BIAS).relu(),
    "two addends": lambda x: x + OTHER + OTHER,
    "alpha": lambda x: torch.add(x, OTHER, alpha=2),
    "integer": lambda x: x * 2 + 1,
    "minus": lambda x: OTHER - x,
    "elu": lambda x: F.elu(x),
    "dropout": lambda x: F.dropout(x, training=False),
    "dropout, inplace": lambda x: F.dropout(x, training=False, inplace=True),
    "slice": lambda x: x[1:, ::2],
    "transpose": lambda x: x.t(),
    "heads": lambda x: x.view(ROWS, 2, COLS // 2).relu().view(-1, COLS) + BIAS,
    "heads, bias": lambda x: x.view(ROWS * 2, COLS // 2) + BIAS[: COLS // 2],
    "mean of heads": lambda x: x.view(-1, 2, COLS // 2).mean(dim=1),
    "cat": lambda x: torch.cat([x, OTHER, x], dim=-1),
    "softmax": lambda x: x.log_softmax(dim=-1),
    "batch norm": lambda x: F.batch_norm(x, BIAS, BIAS.square() + 1),
    "matmul": lambda x: x @ OTHER.t(),
    "index": lambda x: x.index_select(0, torch.tensor([2, 0])),
    "mask": lambda x: x.masked_fill(x > 0, 7.0),
    "half": lambda x: x.half(),
    "clone": lambda x: x.clone().add_(1),
    "in place": lambda x: x.add_(1).mul_(2),
    "through a view": lambda x: (x[0].zero_(), x.relu())[1],
    "detach": lambda x: x.detach() + BIAS,
    "where": lambda x: torch.where(x > 0, x, OTHER),
    "sum": lambda x: x.sum(),
    "stack": lambda x: torch.stack([x, x]).max(dim=0).values,
    "item": lambda x: torch.tensor(x[0, 0].item()),
    "scaled, then changed": lambda x: (lambda y: (x.mul_(3.0), y)[1])(x * 2.0),
}


def expected_of(kind: str) -> Tensor:
    value: Tensor = Quantizer().pack(VALUE).dequantize() if kind == "codes" else VALUE
    return value.clone()


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("call", sorted(CALLS))
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_operation(kind: str, call: str, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        expected = CALLS[call](expected_of(kind))
        out = realised(CALLS[call](Deferred(KINDS[kind]())))
    assert type(out) is Tensor and out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("call", ["relu", "bias", "teleport", "bias, relu, bias", "elu", "heads"])
def test_codes_are_those_of_the_floats(call: str) -> None:
    out = CALLS[call](Deferred(pending()))
    stage = out.stage if isinstance(out, Deferred) else Stage.of_value(out)
    codes = stage.codes(Quantizer())
    assert codes.equal(Quantizer().pack(CALLS[call](VALUE.clone())))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_metadata_needs_no_values(kind: str) -> None:
    x = Deferred(KINDS[kind]())
    assert x.shape == (ROWS, COLS) and x.dtype == torch.float32 and x.device == VALUE.device
    assert x.dim() == 2 and x.size(-1) == COLS and x.numel() == ROWS * COLS
    assert x.is_floating_point() and not x.requires_grad and x.layout == torch.strided


def test_what_is_needed_twice_is_computed_once_from_then_on() -> None:
    layer, quantizer = Layer(), Quantizer()
    runs: list[bool] = []

    def result() -> Stage:
        def run(e: Epilogue, out: OutputQuantizer | None) -> Any:
            runs.append(out is not None)
            y = e.apply(VALUE.clone())
            return y if out is None else quantizer.pack(y)

        return Stage(run, (ROWS, COLS), VALUE.device, owner=layer)

    for _ in range(3):
        stage = result().then(relu=True)
        codes = stage.codes(quantizer)
        assert codes.equal(quantizer.pack(stage.value()))
    assert runs == [True, False, False, False]
    assert layer.keeps_floats


def test_codes_given_are_taken_until_they_change() -> None:
    coarse = PackedTensor.from_float(VALUE, torch.tensor(1.0), torch.tensor(2.0), bits=2)
    x = Deferred(Stage.of_packed(coarse))
    assert x.stage.codes(Quantizer()) is coarse
    x.sum()
    assert x.stage.codes(Quantizer()) is coarse
    x.add_(0.25)
    assert x.stage.codes(Quantizer()).equal(Quantizer().pack(coarse.dequantize() + 0.25))


def test_it_leaves_as_a_plain_tensor() -> None:
    x = Deferred(pending())
    for twin in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), realised([x])[0]):
        assert type(twin) is Tensor and torch.equal(twin, VALUE)
    assert repr(Deferred(pending())) == repr(VALUE)
    nested = realised({"a": (x, [x]), "b": 1})
    assert type(nested["a"][1][0]) is Tensor and nested["b"] == 1
