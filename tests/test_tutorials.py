"""The tutorials run block by block, and their pages show what they print."""

from __future__ import annotations

import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers.optional import needs_sampler
from torch_geometric_qlr.nn import registry

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "tutorials"
SCRIPTS = sorted((ROOT / "examples" / "tutorials").glob("[0-9][0-9]_*.py"))

#: What the blocks of a tutorial import beside what the tests need anyway.
NEEDS = {
    "04_deep_networks": ("matplotlib",),
    "09_budget": ("scipy", "matplotlib"),
    "10_export": ("onnx", "onnxscript", "onnxruntime"),
}


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program that runs tutorials."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(registry, "_USER", dict(registry._USER))
    monkeypatch.setenv("MPLBACKEND", "agg")
    spec = spec_from_file_location("tutorial_runner", ROOT / "examples" / "tutorials" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def kept(script: Path) -> list[str]:
    """What each cell printed when the page was made."""
    return json.loads((ROOT / "docs/results/tutorials" / f"{script.stem}.json").read_text())


def words(printed: str) -> list[list[str]]:
    """What was printed, line by line, with # for numbers, or as many as there are seeds."""
    number = r"[-+]?(?:\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|\binf\b)"
    return [re.sub(rf"{number}(?:, {number})*", "#", line).split() for line in printed.splitlines()]


#: Takes most of a minute; test_export in test_examples.py is its small twin.
HEAVY = ("10_export",)
#: A cell that names the kind of its file, which is another one when nothing is compiled.
UNCOMPILED = ("10_export", 1)
SAMPLED = ("06_larger_than_memory", "08_node_types")
RUNS = [
    pytest.param(
        script,
        marks=[pytest.mark.heavy] * (script.stem in HEAVY)
        + [needs_sampler] * (script.stem in SAMPLED),
        id=script.stem,
    )
    for script in SCRIPTS
]


@pytest.mark.parametrize("script", RUNS)
# Said by torch of its own classes when it exports.
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")
def test_blocks_run_one_by_one(
    runner: Any, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in NEEDS.get(script.stem, ()):
        pytest.importorskip(package)
    with runner.generated_data(), runner.in_folder(tmp_path):
        printed = runner.run(script, {**runner.QUICK, "ROOT": str(tmp_path)})
    assert "".join(printed) == capsys.readouterr().out
    # A cell that says something says it on the page, in the same words.
    for number, texts in enumerate(zip(printed, kept(script), strict=True)):
        quick, shown = map(words, texts)
        if (script.stem, number) == UNCOMPILED:
            quick, shown = [line[:1] for line in quick], [line[:1] for line in shown]
        assert quick == shown, f"cell {number}"


def test_words_are_compared_and_numbers_are_not() -> None:
    assert words("test  79.5\n") == words("test 8\n") != words("tests 8\n")
    assert words("SQNR inf dB, -1.5e-07 ") == words("SQNR 31.0 dB, 2")
    assert words("8 bits") != words("8\nbits")
    assert words("(80.2, 77.9)") == words("(80)") != words("80")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_tutorial_has_a_page(script: Path) -> None:
    page = PAGES / f"{script.stem[3:]}.rst"
    assert f".. tutorial:: {script.stem}\n" in page.read_text()
    assert f"   {page.stem}\n" in (PAGES / "index.rst").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_cells_are_the_whole_script(runner: Any, script: Path) -> None:
    cells = runner.cells(script)
    assert script.read_text().startswith("# %%\n")
    assert all(cell.prose for cell in cells)
    lines = [line for cell in cells for line in cell.code.splitlines() if line]
    rest = [line for line in script.read_text().splitlines() if line and line[0] != "#"]
    assert [line for line in lines if line[0] != "#"] == rest


def test_a_cell_is_prose_and_code(runner: Any, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "# %%\n# Said,\n#\n# twice.\nN = 5\n\n\n# A comment.\nprint(N)\n\n# %%\n# End.\n"
    )
    first, last = runner.cells(script)
    assert first == runner.Cell("Said,\n\ntwice.", "N = 5\n\n\n# A comment.\nprint(N)")
    assert last == runner.Cell("End.", "")
    assert runner.with_constants(first.code, {"N": "a"}).startswith("N = 'a'\n")
    assert runner.run(script, {"N": 7}) == ["7\n", ""]
