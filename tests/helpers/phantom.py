"""A device that is no CPU and needs no hardware: its tensors are torch's fake ones.

They have shapes, types and a place, and no values. So what meets a tensor on another device raises,
and so does the host where it asks for a value, which on a GPU would make it wait. Torch knows one
more device per process, which is why tests of it run in a process of their own:
``python -m tests.helpers.phantom traps ops models``.
"""

from __future__ import annotations

import copy
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torch_geometric.nn import (
    APPNP,
    GAT,
    GCN,
    GIN,
    PNA,
    EdgeCNN,
    GraphConv,
    GraphSAGE,
    TransformerConv,
)

import torch_geometric_qlr as qlr
from tests.helpers.op_samples import samples
from tests.helpers.predict import Predict
from torch_geometric_qlr.codes import mode
from torch_geometric_qlr.ops import use_backend
from torch_geometric_qlr.ops.kernels import Kernels
from torch_geometric_qlr.quantizers import learned_range, observing
from torch_geometric_qlr.quantizers.torch_state import REAL

NAME = "phantom"
#: What looks at the edges of a new graph, and so waits once for each.
WAITS_BY_MEANING = frozenset({"csr"})

#: What a tensor on another device raises; before torch 2.13 one of no name of its own.
_ELSEWHERE = getattr(fake_tensor, "FakeTensorDeviceMismatchError", RuntimeError)


def placed(value: Any, device: str = NAME) -> Any:
    """A tensor without values on another device."""
    if not isinstance(value, Tensor):
        return value
    like = {"dtype": value.dtype, "device": device, "requires_grad": value.requires_grad}
    return torch.empty_strided(value.shape, value.stride(), **like)


def forms(results: Any) -> list[tuple[Any, ...]]:
    every = results if isinstance(results, tuple) else (results,)
    return [(r.device.type, r.shape, r.dtype, r.stride()) for r in every]


# Traps ############################################################################################


def traps() -> Iterator[tuple[str, Callable[[], None]]]:
    """What must not pass: else nothing that passes below would mean anything."""
    model = qlr.quantize(GraphConv(16, 4), bits=4).train()
    model(X, EDGES)
    for name, change in (("host waits", _wait), ("left behind", _leave_behind)):
        yield name, lambda change=change: _caught(change, copy.deepcopy(model))


def _caught(change: Callable[[nn.Module], None], model: nn.Module) -> None:
    change(model)
    try:
        _on_phantom(_train, model, (X, EDGES))
    except (DataDependentOutputException, _ELSEWHERE):
        return
    raise AssertionError("it passed")


def _wait(model: nn.Module) -> None:
    model.register_forward_hook(lambda module, given, out: out * float(out.max()))


def _leave_behind(model: nn.Module) -> None:
    model.register_forward_hook(lambda module, given, out: out + torch.ones(4, device="cpu"))


# Ops ##############################################################################################


def ops() -> Iterator[tuple[str, Callable[[], None]]]:
    """Every op, as a program sees it and as its definition computes it."""
    for device in ("meta", NAME):
        for op, cases in samples().items():
            for arguments in cases:
                yield f"{op} on {device}", lambda a=(op, arguments, device): _op(*a)


def _op(op: str, arguments: tuple[Any, ...], device: str) -> None:
    expected = [(device, *form[1:]) for form in forms(getattr(torch.ops.qlr, op)(*arguments))]
    with FakeTensorMode(), torch.no_grad():
        there = [placed(argument, device) for argument in arguments]
        assert forms(getattr(torch.ops.qlr, op)(*there)) == expected
        if op not in WAITS_BY_MEANING:
            assert forms(Kernels({})._call(op, *there)) == expected


# Models ###########################################################################################


X, EDGES, WEIGHT = torch.randn(30, 16), torch.randint(30, (2, 90)), torch.rand(90)

# Without the self loops that PyG adds: to look for those that are there it waits for the device.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "GCN": (lambda: GCN(16, 8, 2, 4, normalize=False), (X, EDGES, WEIGHT)),
    "SAGE": (lambda: GraphSAGE(16, 8, 2, 4), (X, EDGES)),
    "SAGE, maximum": (lambda: GraphSAGE(16, 8, 2, 4, aggr="max"), (X, EDGES)),
    "GIN": (lambda: GIN(16, 8, 2, 4, norm="batch"), (X, EDGES)),
    "GAT": (lambda: GAT(16, 8, 2, 4, heads=2, add_self_loops=False), (X, EDGES)),
    "GraphConv": (lambda: GraphConv(16, 4), (X, EDGES, WEIGHT)),
    "APPNP": (lambda: Predict(APPNP(3, 0.1, normalize=False), 16, 4), (X, EDGES, WEIGHT)),
    "SMP": (lambda: Predict(qlr.nn.SMP(K=2, normalize=False), 16, 4), (X, EDGES, WEIGHT)),
    "PNA": (
        lambda: PNA(16, 8, 2, 4, aggregators=["max"], scalers=["identity"], deg=torch.ones(3)),
        (X, EDGES),
    ),
    "EdgeCNN": (lambda: EdgeCNN(16, 8, 2, 4), (X, EDGES)),
    "Transformer": (lambda: TransformerConv(16, 4, heads=2), (X, EDGES)),
}
CONFIG: dict[str, Any] = {"bits": 4}
OTHER_CONFIGS: tuple[dict[str, Any], ...] = (
    {"bits": 2, "truncation": "bt*"},
    {"bits": 2, "granularity": {"activation": "node"}},
    {"preset": "lsq"},
)


@contextmanager
def taken_for_real() -> Iterator[None]:
    """Quantizers learn nothing from tensors without values, unless they take them for others."""
    real = (*REAL, FakeTensor)
    with (
        patch.object(observing, "is_abstract", lambda tensor: False),
        patch.object(learned_range, "REAL", real),
        patch.object(mode, "REAL", real),
    ):
        yield


def models() -> Iterator[tuple[str, Callable[[], None]]]:
    """A training step, evaluation and the converted model of each."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    for name, (make, arguments) in MODELS.items():
        for config in (CONFIG, *(OTHER_CONFIGS if name == "GCN" else ())):
            quantized = qlr.quantize(make(), **config).train()
            quantized(*arguments)  # the first step starts the ranges, and looks
            for step in (_train, _evaluate, _run_converted):
                run = lambda a=(step, quantized, arguments): _on_phantom(*a)  # noqa: E731
                yield f"{name}, {config}, {step.__name__}", run


def _on_phantom(step: Callable[..., None], model: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    is_converted = step is _run_converted
    moved = qlr.convert(model) if is_converted else copy.deepcopy(model)
    with FakeTensorMode(), taken_for_real():
        moved._apply(placed)
        step(moved, *map(placed, arguments))


def _train(model: nn.Module, *arguments: Tensor) -> None:
    for _ in range(2):
        out = model(*arguments)
        out.square().sum().backward()
        assert out.device.type == NAME
    grads = [parameter.grad for parameter in model.parameters()]
    assert all(grad is not None and grad.device.type == NAME for grad in grads)


@torch.no_grad()
def _evaluate(model: nn.Module, *arguments: Tensor) -> None:
    assert model.eval()(*arguments).device.type == NAME


@torch.no_grad()
def _run_converted(model: nn.Module, *arguments: Tensor) -> None:
    with use_backend("reference"):
        for _ in range(2):  # the second finds what the first remembers of the graph
            assert model(*arguments).device.type == NAME


PARTS = {"traps": traps, "ops": ops, "models": models}


def main() -> None:
    """Says what fails, and how many pass."""
    _setup_privateuseone_for_python_backend(NAME)
    passed, failed = 0, 0
    for part in sys.argv[1:]:
        for name, run in PARTS[part]():
            try:
                run()
                passed += 1
            except Exception as error:
                failed += 1
                frames = traceback.extract_tb(error.__traceback__)
                ours = [f"{f.filename}:{f.lineno}" for f in frames if "_qlr/" in f.filename]
                print(f"{name}: {error!r} at {ours[-1:]}")
    print(f"{passed} passed, {failed} failed")


if __name__ == "__main__":
    main()
