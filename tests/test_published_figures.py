"""What the README and the pages say was measured is what the committed files of the runs hold."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
ROUNDED = 0.05 + 1e-9  # to one decimal
#: How the README names a width, where it says more than the name.
WIDTHS = {'INT2, weights in 4 bits (`"int2-mixed"`)': "INT2-mixed"}


@pytest.fixture
def plot_speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    return importlib.import_module("plot_speed")


def cells(text: str) -> dict[str, list[str]]:
    """The rows of Markdown tables, by their first cell."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in rows}


def scores(name: str, **which: Any) -> dict[str, dict[str, Any]]:
    """Rows of a file by their width."""
    rows = json.loads((RESULTS / name).read_text())["rows"]
    return {row["width"]: row for row in rows if which.items() <= row.items()}


def test_accuracy_of_the_readme() -> None:
    of_gcn = {"dataset": "Cora", "model": "GCN"}
    found, weak = (
        scores("readme_table.json", **of_gcn),
        scores("feature_scale.json", scale=0.1, **of_gcn),
    )
    text = (ROOT / "README.md").read_text()
    section = text[text.index("**Accuracy.**") : text.index("**Speed.**")]
    rows = {WIDTHS.get(name, name): row for name, row in cells(section).items() if name}
    rows = {name: row for name, row in rows.items() if name in found}
    assert set(rows) == {"FP32", "INT4", "INT2-mixed", "INT2"}
    for width, (accuracy, *_, tenth) in rows.items():
        said = [float(number) for number in accuracy.split(" ± ")]
        assert said == pytest.approx(found[width]["test"], abs=ROUNDED)
        assert found[width]["seeds"] == 10
        if width in weak:
            assert float(tenth) == pytest.approx(weak[width]["test"][0], abs=ROUNDED)
        else:
            assert tenth == "–"


def test_accuracy_of_the_recipes() -> None:
    text = (ROOT / "docs" / "recipes.rst").read_text()
    widths = {"(none)": "FP32", '``"int4"``': "INT4", '``"int2"``': "INT2"}
    widths['``"int2-mixed"``'] = "INT2-mixed"
    for name, width in widths.items():
        row = text.split(f"   * - {name}\n")[1].split("   * - ")[0]
        said = [
            [float(n) for n in pair] for pair in re.findall(r"- ([\d.]+) ± ([\d.]+)$", row, re.M)
        ]
        for model, cell in zip(("GCN", "APPNP"), said, strict=True):
            found = scores("readme_table.json", dataset="Cora", model=model)[width]["test"]
            assert cell == pytest.approx(found, abs=ROUNDED)


def test_speed_of_the_readme(plot_speed: Any) -> None:
    paths = [
        RESULTS / "zen3" / f"cpu_{name}.json" for name in ("models_arxiv", "models_cora", "batches")
    ]
    made = plot_speed.summary([table for path in paths for table in plot_speed.tables(path)])
    before, _, rest = (ROOT / "README.md").read_text().partition("<!-- speed:begin -->\n")
    assert before and rest.partition("\n<!-- speed:end -->")[0] == made


def test_speed_with_avx512_of_the_readme() -> None:
    summary = cells((RESULTS / "icelake" / "cpu_summary.md").read_text())
    float_x, packed_x, *_ = summary["GCN 128-128-40, arxiv shape"]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"(Ice Lake) the first row is {float_x} and {packed_x} over the strongest" in text


@pytest.mark.parametrize("machine", ["zen3", "icelake", "zen4", "xeon"])
@pytest.mark.parametrize("page", ["cpu_models", "cpu_kernels"])
def test_tables_of_speed_are_those_of_the_runs(machine: str, page: str, plot_speed: Any) -> None:
    text = (RESULTS / machine / f"{page}.md").read_text()
    paths = [RESULTS / machine / f"{page}_{shape}.json" for shape in ("arxiv", "cora", "reddit")]
    made = [str(table) for path in paths if path.exists() for table in plot_speed.tables(path)]
    assert len(made) >= 4
    assert [table for table in made if table.strip() not in text] == []
