"""Nothing depends on the device being a CPU, and no training step makes the host wait for one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.kernel_cases import ISAS
from torch_geometric_qlr.codes.weight_access import has_no_range
from torch_geometric_qlr.ops import computes_packed, use_backend

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("part", ("traps", "ops", "models"))
def test_on_a_device_that_is_no_cpu(part: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.helpers.phantom", part]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(" passed, 0 failed\n"), result.stdout
    assert not result.stdout.startswith("0 passed")


# Who asks for another device ######################################################################


def test_tensors_are_made_on_the_device(device: torch.device) -> None:
    assert torch.empty(0).device.type == device.type


@pytest.mark.cpu
def test_is_about_the_cpu(device: torch.device) -> None:
    assert device.type == "cpu"


@pytest.mark.cpu
def test_the_option_makes_tensors_elsewhere_and_skips_what_is_about_the_cpu() -> None:
    here = f"{Path(__file__)}::test_"
    asked = [here + name for name in ("tensors_are_made_on_the_device", "is_about_the_cpu")]
    command = [sys.executable, "-m", "pytest", "-q", *asked, "--device"]
    there = subprocess.run([*command, "meta"], cwd=ROOT, capture_output=True, text=True)
    assert "1 passed, 1 skipped" in there.stdout, there.stdout
    nowhere = subprocess.run([*command, "nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert "--device nowhere: torch cannot use it here" in nowhere.stderr


# What the package asks ############################################################################


@pytest.mark.cpu
def test_whether_packed_operations_are_worth_asking_for_depends_on_the_device() -> None:
    assert not computes_packed("meta")
    with use_backend("reference"):
        assert computes_packed("meta") and computes_packed("cuda")
    if ISAS:
        assert computes_packed() and computes_packed("cpu")
        with use_backend("cpu"):
            assert computes_packed("cpu") and not computes_packed("cuda")


def test_a_weight_on_another_device_that_is_no_number_stays_one() -> None:
    assert has_no_range(torch.tensor([1.0, torch.nan]))
    assert not has_no_range(torch.empty(2, device="meta"))
