"""A state says what its numbers mean, whatever way it takes; another meaning is refused."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torch_geometric_qlr as qlr
from tests.helpers.io_cases import EDGES, FLOAT, X, converted, make, run
from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.quantizers import LearnedRangeQuant
from torch_geometric_qlr.quantizers.signature import KEY, Signature

State = dict[str, torch.Tensor]


def _file(state: State) -> State:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    out: State = torch.load(buffer, weights_only=True)
    return out


def _tensors_alone(state: State) -> State:
    """Names, types, shapes and bytes: what a file of tensors such as safetensors keeps."""
    raw = {n: (t.dtype, t.shape, t.contiguous().numpy().tobytes()) for n, t in state.items()}
    return {
        n: torch.frombuffer(bytearray(b), dtype=d).view(s) if b else torch.zeros(s, dtype=d)
        for n, (d, s, b) in sorted(raw.items())
    }


WAYS: dict[str, Callable[[State], State]] = {
    "as it is": lambda state: state,
    "plain": dict,
    "file": _file,
    "plain file": lambda state: _file(dict(state)),
    "tensors": _tensors_alone,
    "copies": lambda state: OrderedDict((n, t.clone()) for n, t in state.items()),
    "mean": lambda state: {
        n: (0.3 * t + 0.7 * t if n.endswith(KEY) else t) for n, t in state.items()
    },
}

PLAIN = {"bits": 4}
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "3 and 4": ({"bits": 3}, PLAIN, "3 bits", "4 bits"),
    "5 and 8": ({"bits": 5}, {"bits": 8}, "5 bits", "8 bits"),
    "6 and 7": ({"bits": 6}, {"bits": 7}, "6 bits", "7 bits"),
    "bt": ({"bits": 4, "truncation": "bt"}, PLAIN, "4 bits and truncation 'bt'", "4 bits"),
    "bt*": (
        {"bits": 2, "truncation": "bt*"},
        {"bits": 2, "truncation": "bt"},
        r"truncation 'bt\*'",
        "truncation 'bt'",
    ),
    "aligned": (
        {"bits": 2, "truncation": "bt", "zero_aligned": True},
        {"bits": 2, "truncation": "bt"},
        "zero_aligned=True",
        "zero_aligned=False",
    ),
    "unit": (
        {"bits": 2, "truncation": "bt*", "skewness_unit": "step"},
        {"bits": 2, "truncation": "bt*"},
        "skewness_unit='step'",
        "skewness_unit='code'",
    ),
    "rounding": (
        {"bits": 2, "truncation": "bt*", "skewness_rounding": True},
        {"bits": 2, "truncation": "bt*"},
        "skewness_rounding=True",
        "skewness_rounding=False",
    ),
    "node": (
        {"bits": 4, "granularity": {"message": "node"}},
        {"bits": 4, "granularity": {"message": "tensor"}},
        "granularity='node'",
        "granularity='tensor'",
    ),
    "weight": (
        {"bits": 4, "granularity": {"weight": "channel"}},
        {"bits": 4, "granularity": {"weight": "tensor"}},
        "granularity='channel'",
        "granularity='tensor'",
    ),
}


_MADE: dict[str, nn.Module] = {}


def _model(convert: bool, config: dict[str, Any]) -> nn.Module:
    key = f"{convert} {config}"
    if key not in _MADE:
        model = make("gcn", **config)
        _MADE[key] = converted(model) if convert else model
    return copy.deepcopy(_MADE[key])


@pytest.mark.parametrize("way", sorted(WAYS))
@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
@pytest.mark.parametrize("name", sorted(OTHERS))
def test_a_state_of_other_settings_is_refused(name: str, convert: bool, way: str) -> None:
    theirs, mine, saved, own = OTHERS[name]
    for config, into, here, there in ((theirs, mine, saved, own), (mine, theirs, own, saved)):
        state = WAYS[way](_model(convert, config).state_dict())
        where = r"convs\.0(\.lin)?\.[a-z._0-9]*: the checkpoint was made with "
        said = f"{where}.*{here}.*this model has .*{there}"
        with pytest.raises((RuntimeError, qlr.errors.CheckpointError), match=said):
            _model(convert, into).load_state_dict(state)


@pytest.mark.parametrize("way", sorted(WAYS))
@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
@pytest.mark.parametrize("config", [PLAIN, {"bits": 2, "truncation": "bt*"}], ids=str)
def test_a_state_of_equal_settings_loads(config: Any, convert: bool, way: str) -> None:
    model, twin = _model(convert, config), _model(convert, config)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.5)
    result = twin.load_state_dict(WAYS[way](model.state_dict()))
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(run(twin.eval())[0], run(model)[0])


def test_settings_that_change_nothing_are_no_difference() -> None:
    for left, right in (
        ({"bits": 8, "truncation": "bt"}, {"bits": 8}),
        ({"bits": 4, "zero_aligned": True}, PLAIN),
        ({"bits": 2, "truncation": "bt", "skewness_unit": "step"}, {"bits": 2, "truncation": "bt"}),
        ({"bits": 4, "momentum": 0.5, "search": False, "gradient_scaling": True}, PLAIN),
    ):
        _model(False, right).load_state_dict(_model(False, left).state_dict())


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
def test_settings_that_cannot_be_read_are_refused(convert: bool) -> None:
    model = _model(convert, PLAIN)
    state = model.state_dict()
    key = next(k for k in state if k.endswith(f"weight.{KEY}"))
    good = state[key]
    for bad, message in (
        (good[:-1], "no record of its settings"),
        ("text", "no record of its settings"),
        (good * float("nan"), "no record of its settings"),
        (good + 7, "settings of version 8"),
        (torch.cat([good[:1], good[1:] + 60]), "settings that do not exist"),
        (-good, "settings of version -1"),
    ):
        with pytest.raises((RuntimeError, qlr.errors.CheckpointError), match=message):
            model.load_state_dict({**state, key: bad})
    without = {k: v for k, v in state.items() if k != key}
    with pytest.raises(RuntimeError, match=rf"Missing key.*{KEY}"):
        model.load_state_dict(without)
    model.load_state_dict(without, strict=False)


def test_other_users_of_a_state_go_on_working() -> None:
    model = _model(False, PLAIN)
    x, edges = X, EDGES
    expected = run(model)[0]
    with torch.no_grad():
        assert torch.equal(functional_call(model, model.state_dict(), (x, edges)), expected)
    for average in (None, get_ema_multi_avg_fn(0.999)):
        averaged = AveragedModel(model, multi_avg_fn=average)
        for _ in range(5):
            averaged.update_parameters(model)
        settings = [v for k, v in averaged.module.state_dict().items() if k.endswith(KEY)]
        own = [v for k, v in model.state_dict().items() if k.endswith(KEY)]
        assert settings and all(map(torch.equal, settings, own))
        model.load_state_dict(averaged.module.state_dict())
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    for key, value in ema.items():
        if value.is_floating_point():
            for _ in range(100):
                value.mul_(0.999).add_(model.state_dict()[key], alpha=0.001)
    model.load_state_dict(ema)
    with pytest.warns(UserWarning, match="no ranges"):
        model.load_state_dict(FLOAT["gcn"]().state_dict())  # a float checkpoint, strictly
    narrow = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(narrow)


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
def test_states_have_settings_whatever_the_default_device(convert: bool) -> None:
    model = _model(convert, PLAIN)
    with torch.device("meta"):
        state = model.state_dict()
    assert all(v.device.type == "cpu" for k, v in state.items() if k.endswith(KEY))


def test_signatures_tell_channels_of_rows_from_those_of_columns() -> None:
    config = QuantizerConfig(granularity="channel", statistics="current")
    rows, columns = (LearnedRangeQuant(config, num_groups=4, channel_dim=d) for d in (0, -1))
    assert Signature.of(rows) != Signature.of(columns)
    for quantizer in (rows, columns):
        signature = Signature.of(quantizer)
        assert Signature.from_tensor(signature.to_tensor()) == signature
