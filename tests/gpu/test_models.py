"""Models that were moved, before or after they were converted; training; files."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torch_geometric_qlr as qlr
from tests.helpers.phantom import MODELS

every_model = pytest.mark.parametrize("name", MODELS)


def trained(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A quantized model on a CPU that has seen data, and this."""
    make, arguments = MODELS[name]
    torch.manual_seed(0)
    model = qlr.quantize(make().cpu(), bits=4).train()
    arguments = tuple(argument.cpu() for argument in arguments)
    model(*arguments)
    return model.eval(), arguments


def packed_form(model: nn.Module) -> nn.Module:
    """What stays in floating point is not the question here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return qlr.convert(model)


def assert_near(found: Tensor, truth: Tensor, share: float) -> None:
    torch.testing.assert_close(
        found.cpu(), truth.cpu(), rtol=0, atol=share * float(truth.abs().max())
    )


@every_model
@pytest.mark.filterwarnings("ignore::torch_geometric_qlr.errors.QLRWarning")
@torch.no_grad()
def test_moved_before_and_after_it_was_converted(name: str, gpu: torch.device) -> None:
    model, arguments = trained(name)
    there = [argument.to(gpu) for argument in arguments]
    on_cpu = packed_form(model)(*arguments)
    moved = copy.deepcopy(model).to(gpu)
    after, before = packed_form(model).to(gpu), packed_form(moved)
    for packed in (after, before):
        out = packed(*there)
        assert out.device.type == gpu.type
        assert_near(out, on_cpu, 1e-4)
        assert torch.equal(packed(*there), out)
    assert_near(after(*there), moved(*there), 1e-5)
    assert_near(after.cpu()(*arguments), on_cpu, 0.0)


@every_model
def test_a_training_step_is_that_of_a_cpu(name: str, gpu: torch.device) -> None:
    model, arguments = trained(name)
    moved = copy.deepcopy(model).to(gpu)
    for twin, given in ((model, arguments), (moved, [a.to(gpu) for a in arguments])):
        twin.train()
        twin(*given).square().mean().backward()
    for (path, ours), theirs in zip(moved.named_parameters(), model.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, path
        assert_near(ours.grad, theirs.grad, 1e-3)


def test_files_do_not_say_where_a_model_was(tmp_path: Path, gpu: torch.device) -> None:
    model, arguments = trained("GCN")
    there = [argument.to(gpu) for argument in arguments]
    packed = qlr.convert(model).to(gpu)
    qlr.save(packed, tmp_path / "packed.pt")
    make, _ = MODELS["GCN"]
    loaded = qlr.load(tmp_path / "packed.pt", make().cpu())
    with torch.no_grad():
        assert_near(loaded.to(gpu)(*there), packed(*there), 0.0)
