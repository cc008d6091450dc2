"""A promise is the tensor that it stands for, whatever is done to it and in whatever order."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCN

import torch_geometric_qlr as qlr
from torch_geometric_qlr.codes.promise import (
    Chain,
    ChainPlan,
    Promise,
    promised_codes,
    realised,
)
from torch_geometric_qlr.codes.stage import Epilogue, Stage
from torch_geometric_qlr.codes.steps import Step
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.layers.running import CHAINS
from torch_geometric_qlr.layers.state import LayerState
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor

ROWS, COLS = 6, 8
VALUE = torch.linspace(-2, 3, ROWS * COLS).view(ROWS, COLS).sin()
OTHER = torch.linspace(1, -1, ROWS * COLS).view(ROWS, COLS)
BIAS = nn.Parameter(torch.linspace(-1, 1, COLS), requires_grad=False)


class Quantizer:
    """Four bits, static."""

    params = OutputQuantizer(torch.tensor(0.25), torch.tensor(8.0), 4)

    def output(self) -> OutputQuantizer:
        return self.params

    def pack(self, x: Tensor) -> PackedTensor:
        return PackedTensor.from_float(x, self.params.scale, self.params.zero_point, 4)


QUANTIZER = Quantizer()


def kernel(e: Epilogue, out: OutputQuantizer | None) -> Any:
    """A stand-in for a kernel, with its epilogue."""
    y = VALUE.clone()
    y = y if e.column is None else y * e.column
    y = y if e.addend is None else y + e.addend
    y = y if e.bias is None else y + e.bias
    y = y.relu() if e.relu else y
    return y if out is None else QUANTIZER.pack(y)


PLANS: dict[str, tuple[Step, ...]] = {
    "straight": (),
    "bias, relu": (Step("bias", (BIAS,)), Step("relu")),
    "addend": (Step("addend"),),
    "view, addend": (
        Step("view", (), (False, 2, COLS // 2)),
        Step("view", (), (True, COLS)),
        Step("addend"),
        Step("relu"),
    ),
}


def promise(plan: str = "straight") -> Promise:
    stage = Stage(kernel, (ROWS, COLS), VALUE.device, LayerState(), adds=True, stretches=True)
    planned = ChainPlan(PLANS[plan], QUANTIZER)
    epilogue = planned.epilogue(stage)
    assert epilogue is not None
    return Promise(Chain(planned, stage, epilogue, lambda: None), stage.shape, VALUE.device)


def of_codes() -> Promise:
    packed = QUANTIZER.pack(VALUE)
    return Promise(packed, tuple(packed.shape), packed.device)


CALLS: dict[str, Any] = {
    "relu": lambda x: x.relu(),
    "relu, inplace": lambda x: F.relu(x, inplace=True),
    "bias": lambda x: x + BIAS,
    "bias first": lambda x: BIAS + x,
    "bias, relu": lambda x: (x + BIAS).relu(),
    "bias, relu, bias": lambda x: (x + BIAS).relu() + BIAS,
    "two biases": lambda x: x + BIAS - 0.5 + BIAS,
    "scaled": lambda x: 0.9 * x,
    "negative after relu": lambda x: x.relu() * -2.0,
    "teleport": lambda x: x * 0.9 + 0.1 * OTHER,
    "teleport of itself": lambda x: x * 0.9 + 0.1 * x,
    "addend": lambda x: x + OTHER,
    "addend first": lambda x: OTHER + x,
    "addend, bias, relu": lambda x: (torch.add(OTHER, x, alpha=0.3) + BIAS).relu(),
    "two addends": lambda x: x + OTHER + OTHER,
    "two sums of one": lambda x: torch.stack([x + OTHER, x + 2 * OTHER, x + OTHER]),
    "alpha": lambda x: torch.add(x, OTHER, alpha=2),
    "itself": lambda x: x + x,
    "integer": lambda x: x * 2 + 1,
    "minus": lambda x: OTHER - x,
    "elu": lambda x: F.elu(x),
    "dropout": lambda x: F.dropout(x, training=False),
    "slice": lambda x: x[1:, ::2],
    "transpose": lambda x: x.t(),
    "heads": lambda x: x.view(ROWS, 2, COLS // 2).relu().view(-1, COLS) + BIAS,
    "heads, addend": lambda x: (x.view(ROWS * 2, COLS // 2).view(-1, COLS) + OTHER).relu(),
    "heads, bias": lambda x: x.view(ROWS * 2, COLS // 2) + BIAS[: COLS // 2],
    "cat": lambda x: torch.cat([x, OTHER, x], dim=-1),
    "softmax": lambda x: x.log_softmax(dim=-1),
    "batch norm": lambda x: F.batch_norm(x, BIAS, BIAS.square() + 1),
    "matmul": lambda x: x @ OTHER.t(),
    "index": lambda x: x.index_select(0, torch.tensor([2, 0])),
    "mask": lambda x: x.masked_fill(x > 0, 7.0),
    "half": lambda x: x.half(),
    "clone": lambda x: x.clone().add_(1),
    "in place": lambda x: x.add_(1).mul_(2),
    "bias in place": lambda x: (x.add_(BIAS), x.relu_())[1],
    "addend in place": lambda x: (x.add_(OTHER), x + 1)[1],
    "through a view": lambda x: (x[0].zero_(), x.relu())[1],
    "view, then changed": lambda x: (lambda v: (x.relu_(), v + 0)[1])(x.view(2 * ROWS, -1)),
    "changed after a step": lambda x: (lambda y: (x.fill_(9.0), y + 0)[1])(x + BIAS),
    "changed between steps": lambda x: (lambda y: (x.add_(1.0), y.relu(), x.relu())[2])(x + BIAS),
    "detach": lambda x: x.detach() + BIAS,
    "where": lambda x: torch.where(x > 0, x, OTHER),
    "sum": lambda x: x.sum(),
    "item": lambda x: torch.tensor(x[0, 0].item()),
    "scaled, then changed": lambda x: (lambda y: (x.mul_(3.0), y)[1])(x * 2.0),
}

KINDS: dict[str, Any] = {**{name: (lambda n=name: promise(n)) for name in PLANS}, "codes": of_codes}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("call", sorted(CALLS))
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_operation(kind: str, call: str, grad: bool) -> None:
    start = QUANTIZER.pack(VALUE).dequantize() if kind == "codes" else VALUE
    with torch.set_grad_enabled(grad):
        expected = CALLS[call](start.clone())
        out = realised(CALLS[call](KINDS[kind]()))
    assert type(out) is Tensor and out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", sorted(PLANS))
@pytest.mark.parametrize("call", sorted(CALLS))
def test_codes_are_those_of_the_floats(kind: str, call: str) -> None:
    """Whatever way the model takes, a quantizer gets the codes of the floats it would have had."""
    expected, out = CALLS[call](VALUE.clone()), CALLS[call](promise(kind))
    if expected.dim() != 2 or expected.dtype != torch.float32:
        return
    codes = promised_codes(out, QUANTIZER) if isinstance(out, Promise) else None
    codes = QUANTIZER.pack(realised(out)) if codes is None else codes
    assert codes.equal(QUANTIZER.pack(expected))


def test_the_planned_way_makes_no_floats() -> None:
    out = (promise("bias, relu") + BIAS).relu()
    assert isinstance(out, Promise) and promised_codes(out, QUANTIZER) is not None
    out = promise("addend") + OTHER
    assert isinstance(out, Promise) and promised_codes(out, QUANTIZER) is not None


def test_codes_are_for_the_planned_reader() -> None:
    assert promised_codes(promise(), Quantizer()) is None
    assert promised_codes(promise("bias, relu"), QUANTIZER) is None, "not at the end of its way"


def test_a_sum_that_cannot_be_taken_again_says_so() -> None:
    addend = OTHER.clone()
    out = promise("addend") + addend
    addend.zero_()
    assert promised_codes(out, QUANTIZER).equal(QUANTIZER.pack(VALUE + OTHER))
    with pytest.raises(InputError, match="fuse=False"):
        out.sum()


def test_a_bias_changed_before_it_is_added() -> None:
    bias = nn.Parameter(BIAS.clone(), requires_grad=False)
    stage = Stage(kernel, (ROWS, COLS), VALUE.device, LayerState())
    plan = ChainPlan((Step("bias", (bias,)),), QUANTIZER)
    x = Promise(Chain(plan, stage, plan.epilogue(stage), lambda: None), stage.shape, VALUE.device)
    with torch.no_grad():
        bias.add_(1.0)
    assert torch.equal(realised(x + bias), VALUE + bias)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_metadata_needs_no_values(kind: str) -> None:
    x = KINDS[kind]()
    assert x.shape == (ROWS, COLS) and x.dtype == torch.float32 and x.device == VALUE.device
    assert x.dim() == 2 and x.size(-1) == COLS and x.numel() == ROWS * COLS
    assert x.is_floating_point() and not x.requires_grad and x.layout == torch.strided


def test_codes_given_are_taken_until_they_change() -> None:
    coarse = PackedTensor.from_float(VALUE, torch.tensor(1.0), torch.tensor(2.0), bits=2)
    x = Promise(coarse, tuple(coarse.shape), coarse.device)
    assert promised_codes(x, QUANTIZER) is coarse
    x.add_(0.25)
    assert promised_codes(x, QUANTIZER) is None
    assert torch.equal(realised(x), coarse.dequantize() + 0.25)


def test_it_leaves_as_a_plain_tensor() -> None:
    for kind in ("straight", "bias, relu"):
        x = promise(kind)
        for twin in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), realised([x])[0]):
            assert type(twin) is Tensor and torch.equal(twin, VALUE)
        assert repr(promise(kind)) == repr(VALUE)
    nested = realised({"a": (x, [x]), "b": 1})
    assert type(nested["a"][1][0]) is Tensor and nested["b"] == 1


def test_a_plan_belongs_to_the_device_of_what_it_computes_with() -> None:
    plan = ChainPlan(PLANS["bias, relu"], QUANTIZER)
    assert plan.is_on(BIAS.device) and not plan.is_on(torch.device("meta"))
    assert ChainPlan(PLANS["straight"], QUANTIZER).is_on(torch.device("meta"))


def test_a_model_that_was_moved_with_new_parameters_is_looked_at_again() -> None:
    x, edge_index = torch.rand(9, 8), torch.randint(9, (2, 30))
    model = qlr.quantize(GCN(8, 8, 2, 4), bits=4).eval()
    with torch.no_grad():
        expected = model(x, edge_index)
        packed = qlr.convert(model)
        for _ in range(2):
            packed(x, edge_index)
        # As if these had been seen on another device.
        plans = getattr(packed, CHAINS).plans
        key = next(key for key, plan in plans.items() if plan is not None and plan.steps)
        elsewhere = nn.Parameter(torch.empty(8, device="meta"), requires_grad=False)
        plans[key] = ChainPlan((Step("bias", (elsewhere,)), Step("relu")), plans[key].quantizer)
        for _ in range(2):
            assert torch.equal(packed(x, edge_index), expected)
        assert getattr(packed, CHAINS).plans[key].is_on(x.device)
