"""A method of quantization is one file and one row: nothing else of the package knows its name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from torch_geometric.nn import GAT

import torch_geometric_qlr as qlr
from tests.helpers.package_copy import PackageCopy
from torch_geometric_qlr.errors import CheckpointError
from torch_geometric_qlr.quantizers.methods import METHODS

PACKAGE = Path(qlr.__file__).resolve().parent

# Averages of minimum and maximum, without anything that learns.
MIN_MAX = """
import torch
from torch_geometric_qlr.quantizers.ranges import RangeQuantizer


class Toy(RangeQuantizer):
    def register_numbers(self):
        super().register_numbers()
        self.register_buffer("gamma", torch.ones(self.shape))

    def observe(self, batch):
        seen = self._measured(batch)
        self.check_finite(seen.lo, seen.hi)
        if not self.is_static:
            return
        kept, momentum = self._kept_range(), self.config.momentum
        if not self.has_range:
            kept.lo.copy_(seen.lo)
            kept.hi.copy_(seen.hi)
        elif self.training:
            kept.lo.lerp_(seen.lo, momentum)
            kept.hi.lerp_(seen.hi, momentum)
        else:
            kept.lo.copy_(torch.minimum(kept.lo, seen.lo))
            kept.hi.copy_(torch.maximum(kept.hi, seen.hi))
"""

# A learned step, by another name.
STEP = (PACKAGE / "quantizers" / "lsq.py").read_text().replace("LearnedStepQuant", "Toy")

SCRIPT = """
import itertools
import sys
import warnings
import torch
import torch_geometric_qlr as qlr
from torch_geometric.nn import GAT, GCN

settings, folder = eval(sys.argv[1]), sys.argv[2]
assert qlr.__file__.startswith(folder)
from torch_geometric_qlr.quantizers import Quantizer

torch.manual_seed(0)
x, edge_index = torch.randn(40, 16), torch.randint(0, 40, (2, 160))
target = torch.randn(40, 4)


def evaluated(model):
    with torch.no_grad():
        return model.eval()(x, edge_index)


for cls, options in itertools.product((GCN, GAT), settings):
    model = cls(16, 8, num_layers=2, out_channels=4)
    plan = str(qlr.plan(model, method="toy", **options))
    assert plan.count("method 'toy'") == 4, plan
    qmodel = qlr.quantize(model, method="toy", **options)
    made = [m for m in qmodel.modules() if isinstance(m, Quantizer)]
    assert made and all(type(m).__name__ == "Toy" for m in made)

    # Calibrated, and converted without any training.
    calibrated = qlr.quantize(model, method="toy", **options)
    for scale in (1.0, 3.0):
        with torch.no_grad():
            calibrated.eval()(scale * x, edge_index)
    packed = qlr.convert(calibrated)
    assert torch.equal(evaluated(packed), evaluated(calibrated))

    # Trained.
    optimizer = torch.optim.Adam([
        {"params": qlr.weight_parameters(qmodel), "lr": 0.02},
        {"params": qlr.quant_parameters(qmodel), "lr": 0.005},
    ])
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (qmodel(x, edge_index) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses

    # Converted: the same bits, and the same but for rounding where there are gradients.
    expected = evaluated(qmodel)
    packed = qlr.convert(qmodel)
    for _ in range(3):  # layers learn from the first run what follows them
        assert torch.equal(evaluated(packed), expected)
    torch.testing.assert_close(qmodel(x, edge_index).detach(), expected, atol=1e-5, rtol=1e-5)
    report = qlr.report(packed)
    assert not report.fallbacks, report
    assert not any(isinstance(m, Quantizer) and not m.is_frozen for m in packed.modules())

    # Saved and loaded, as files and as states.
    for name, saved in (("quantized", qmodel), ("converted", packed)):
        path = f"{folder}/{cls.__name__}-{name}.pt"
        qlr.save(saved, path)
        assert torch.equal(evaluated(qlr.load(path, model)), expected)
    again = qlr.quantize(cls(16, 8, num_layers=2, out_channels=4), method="toy", **options)
    again.load_state_dict(qmodel.state_dict())
    assert torch.equal(evaluated(again), expected)
    other = qlr.quantize(model, **options)
    try:
        other.load_state_dict(qmodel.state_dict(), strict=False)
    except RuntimeError as error:
        assert "method='toy'" in str(error), error
    else:
        raise AssertionError("states of another method load")
"""


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        pytest.param(MIN_MAX, [{"bits": 4}, {"bits": 2, "truncation": "bt"}], id="min-max"),
        pytest.param(STEP, [{"bits": 4, "granularity": {"input": "tensor"}}], id="step"),
    ],
)
def test_a_method_is_one_file_and_one_row(
    source: str, settings: list[dict[str, object]], tmp_path: Path
) -> None:
    copy = PackageCopy(tmp_path / "package", library=True)
    copy.add("quantizers/toy.py", source)
    row = '        "toy": "toy.Toy",'
    copy.add_line("quantizers/methods.py", row, after='"learned_range": ')
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    copy.run("-W", "ignore", str(script), repr(settings), str(tmp_path))
    copy.assert_nothing_else_differs()

    # What has no such method says so.
    with pytest.raises(CheckpointError, match="'toy' is unknown; choose one of 'learned_range'"):
        qlr.load(str(tmp_path / "GAT-quantized.pt"), GAT(16, 8, num_layers=2, out_channels=4))


def _names(path: Path) -> set[str]:
    """What the code of a file names, its texts left out."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.alias):
            names.add(node.name)
    return names


def test_nobody_knows_a_method_by_its_class() -> None:
    rows = dict(row.split(".") for row in METHODS.values())
    frozen = set(re.findall(r"class (Frozen\w+)\(", _text("ranges.py") + _text("frozen.py")))
    known = {*rows.values(), *frozen, "RangeQuantizer"}
    assert len(known) >= 5
    own = {
        f"quantizers/{file}.py"
        for file in (*rows, "ranges", "searched_range", "frozen", "__init__")
    }
    for path in PACKAGE.rglob("*.py"):
        if str(path.relative_to(PACKAGE)) not in own:
            assert not _names(path) & known, path


def _text(name: str) -> str:
    return (PACKAGE / "quantizers" / name).read_text()
