"""The benchmarks run at their smallest, resume, and say what they should."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.optional import needs_sampler

BENCHMARKS = Path(__file__).resolve().parent.parent / "examples" / "benchmarks"
SMALLEST = ("--generated", "--epochs", "1", "--seeds", "1", "--device", "cpu", "--hidden", "4")


@pytest.fixture
def run_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a script in this process, where warnings are errors, and returns what it printed."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), str(BENCHMARKS.parent), *sys.path])

    def run(name: str, *args: str) -> str:
        path = BENCHMARKS / name
        monkeypatch.setattr(sys, "argv", [str(path), *args])
        threads = torch.get_num_threads()
        try:  # a script may turn gradients off, for good
            with torch.enable_grad():
                runpy.run_path(str(path), run_name="__main__")
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    return run


def cells(printed: str) -> list[list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_accuracy_makes_a_table_and_resumes(run_benchmark: Any, tmp_path: Path) -> None:
    out, markdown = tmp_path / "runs.jsonl", tmp_path / "table.md"
    args = (*SMALLEST, "--models", "SMP", "GAT", "--out", str(out), "--markdown", str(markdown))
    recipe = ("--distill", "1", "--ema", "0.9", "--placement", "strict", "--wide-logits", "8")
    printed = run_benchmark("accuracy.py", *args, *recipe, "--widths", "FP32", "INT2-BT*")
    head, smp, gat = cells(printed)
    assert head == ["data set", "model", "FP32", "INT2-BT*"]
    assert [smp[1], gat[1]] == ["SMP", "GAT"]
    assert all(re.fullmatch(r"\d+\.\d", cell) for cell in (*smp[2:], *gat[2:]))
    assert markdown.read_text() in printed
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(written) == 4
    assert {"val", "test", "last_test", "epochs"} == set(written[0]["result"])
    # The runs that are there are not made again: a changed result shows in the table.
    for line in written:
        line["result"]["test"] = 0.5
    out.write_text("".join(json.dumps(line) + "\n" for line in written))
    again = cells(run_benchmark("accuracy.py", *args, *recipe, "--widths", "FP32", "INT2-BT*"))
    assert again[1][2:] == again[2][2:] == ["50.0"] * 2
    assert len(out.read_text().splitlines()) == 4


def test_accuracy_is_shown_again_without_training(run_benchmark: Any, tmp_path: Path) -> None:
    out, scores, plot = tmp_path / "runs.jsonl", tmp_path / "scores.jsonl", tmp_path / "plot.png"
    args = (*SMALLEST, "--models", "SMP", "APPNP", "--widths", "FP32", "INT2", "--out", str(out))
    run_benchmark("accuracy.py", *args, "--seeds", "2", "--json", str(scores))
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    assert [line["seed"] for line in lines] == [[0, 1]] * 4
    # SMP gains 10 and 20 points; a column that lost a seed says so.
    for line in lines:
        line["test"] = [0.6, 0.7] if line["model"] == "SMP" else [0.5, 0.5]
        if (line["model"], line["width"]) == ("APPNP", "INT2"):
            line.update(seed=[0], val=[0.5], test=[0.5])
    scores.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = cells(run_benchmark("accuracy.py", "--show", str(scores), "--plot", str(plot)))
    assert rows[1:] == [
        ["Cora", "SMP", "65.0 ± 7.1", "65.0 ± 7.1"],
        ["Cora", "APPNP", "50.0 ± 0.0", "50.0 (1)"],
        ["Cora", "SMP - APPNP", "+15.00 ± 5.00", ""],
    ]
    assert plot.exists()
    # Runs that were not made are left out.
    more = cells(run_benchmark("accuracy.py", *args, "--seeds", "3", "--recorded"))
    assert [row[1] for row in more[1:]] == ["SMP", "APPNP", "SMP - APPNP"]
    assert len(out.read_text().splitlines()) == 8


def test_the_search_looks_at_validation_only(run_benchmark: Any, tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    args = ("--models", "SMP", "APPNP", "--widths", "INT8", "--search", "--search-seeds", "1")
    grid = ("--grid", json.dumps({"lr": [0.01, 0.1], "distill": [0.0, 1.0]}))
    printed = run_benchmark("accuracy.py", *SMALLEST, *args, *grid, "--out", str(out))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    tried = [line for line in lines if line["job"]["seed"] >= 1000]
    assert len(tried) == 2 * 4

    def setting(line: Any) -> str:
        return json.dumps(line["job"]["recipe"], sort_keys=True)

    # Twins share the setting with the best mean over both of them.
    means: dict[str, float] = {}
    for line in tried:
        means[setting(line)] = means.get(setting(line), 0.0) + line["result"]["val"] / 2
    final = [line for line in lines if line["job"]["seed"] < 1000]
    assert {line["job"]["model"] for line in final} == {"SMP", "APPNP"}
    assert {means[setting(line)] for line in final} == {max(means.values())}
    assert "chosen for Cora SMP+APPNP INT8: {'lr': " in printed
    only = run_benchmark("accuracy.py", *SMALLEST, *args, *grid, "--out", str(out), "--search-only")
    assert "chosen for" in only and "data set" not in only


def test_edge_weight_study(run_benchmark: Any, tmp_path: Path) -> None:
    out, found = tmp_path / "runs.jsonl", tmp_path / "found.json"
    args = ("--datasets", "Cora", "regression", "--models", "GCN", "--widths", "INT4")
    small = ("--nodes", "300", "--hub", "100", "--out", str(out), "--json", str(found))
    printed = cells(run_benchmark("edge_weight_study.py", *SMALLEST, *args, *small))
    assert [row[:3] for row in printed[1:3]] == [
        ["Cora", "GCN", "INT4"],
        ["regression", "GCN", "INT4"],
    ]
    jobs = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["job"]["edge_weight_bits"] for line in jobs] == [8, 32, 8, 32]
    assert all(set(line["result"]) == {"val"} for line in jobs)  # never the test nodes
    made = json.loads(found.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert {b["bits"] for b in made["noise"]} == {8, 4} and len(made["scores"]) == 2
    hub = max(made["noise"], key=lambda bucket: bucket["high"])
    assert hub["low"] <= 101 <= 2 * hub["high"]


def test_depth_and_density(run_benchmark: Any) -> None:
    depth = cells(run_benchmark("depth.py", *SMALLEST, "--models", "SMP", "--depths", "1", "3"))
    assert [row[:2] for row in depth] == [["model", "depth"], ["SMP", "1"], ["SMP", "3"]]
    # More steps, less energy.
    assert float(depth[2][3]) < float(depth[1][3])
    args = ("--depths", "2", "--densities", "0.5", "1", "2")
    rows = cells(run_benchmark("density.py", *SMALLEST, *args))[1:]
    edges = [int(row[1]) for row in rows]
    assert edges[0] == pytest.approx(edges[1] / 2, rel=0.1)
    assert edges[2] == pytest.approx(edges[1] * 2, rel=0.1)


def test_added_edges_keep_the_homophily(run_benchmark: Any) -> None:
    import density

    y = torch.randint(4, (500,), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    source, target = density._pairs(y, 20_000, within=0.7)
    assert float((y[source] == y[target]).float().mean()) == pytest.approx(0.7, abs=0.02)
    assert target.min() >= 0 and target.max() < 500


def test_no_shift_beats_none_for_the_error(run_benchmark: Any) -> None:
    printed = run_benchmark("skewness.py", "--count", "2000", "--seeds", "1", "--weights", "0", "1")
    head, normal, lognormal, *positive = cells(printed)
    assert [row[0] for row in positive] == ["positive"] * 2
    row = dict(zip(head, lognormal, strict=True))
    assert float(row["skewness"]) > 2 > float(dict(zip(head, normal, strict=True))["skewness"])
    assert float(row["least-error shift"]) == 0.0
    assert float(row["error BT* codes"]) >= float(row["error BT"]) - 1e-3


#: Features of a graph.
SIZES = {"cora": 2708 * 1433, "pubmed": 19717 * 500}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("graph", ["cora", pytest.param("pubmed", marks=pytest.mark.heavy)])
def test_memory_is_measured_in_processes_of_their_own(
    run_benchmark: Any, tmp_path: Path, graph: str
) -> None:
    out = tmp_path / "memory.json"
    how = ("--bits", "2", "--threads", "1", "--json", str(out))
    printed = run_benchmark("cpu_memory.py", "--graph", graph, *how)
    head, *rows = cells(printed)
    assert head[:2] == ["candidate", "graph, MB"]
    assert [row[0] for row in rows] == ["---", "float, adj_t", "float, sparse.mm sum", "INT2"]
    measured = json.loads(out.read_text())["megabytes"]
    floats = measured["float, adj_t"]
    assert SIZES[graph] * 4 / 2**20 <= floats["features"] + 1
    assert measured["INT2"]["features"] < floats["features"] / 10
    if graph == "pubmed":  # the other one is small beside the code itself
        assert measured["INT2"]["peak"] < 0.75 * floats["peak"]


@needs_sampler
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.filterwarnings("ignore:Using 'NeighborSampler' without a 'pyg-lib':UserWarning")
def test_a_large_graph_in_small(run_benchmark: Any, tmp_path: Path) -> None:
    out, store = tmp_path / "large.json", tmp_path / "rows"
    store.mkdir()
    sizes = ("--nodes", "3000", "--edges", "30000", "--features", "128", "--seeds", "600")
    how = ("--batch-size", "20", "--store", str(store), "--json", str(out))
    rows = cells(run_benchmark("large_graph.py", *sizes, *how))
    stages = ["graph", "features", "training", "conversion", "inference"]
    assert [row[0] for row in rows[2:]] == stages
    found = json.loads(out.read_text())
    assert list(found["stages"]) == stages
    assert found["peak_mb"] == max(stage["peak_mb"] for stage in found["stages"].values())
    assert found["bytes"]["file"] < found["bytes"]["floats"] / 5 and found["rows_in_files"]
    assert found["accuracy"] > 3 / 40 and found["loss"][1] < found["loss"][0]


def test_exactness_counts_codes(run_benchmark: Any) -> None:
    few = ("--models", "GCN", "SMP", "--widths", "INT4", "--epochs", "1")
    printed = run_benchmark("exactness.py", "--generated", *few)
    rows = cells(printed)
    codes = [dict(zip(rows[0], row, strict=True)) for row in rows[2:4]]
    assert [row["model"] for row in codes] == ["GCN", "SMP"]
    for row in codes:
        assert int(row["codes"].replace(",", "")) > 2708 * 1433
        assert int(row["converted - eval"]) == 0 and row["outputs equal"] == "yes"
        assert int(row["predictions changed"]) == 0 and int(row["training - eval"]) < 100
    sums = [dict(zip(rows[4], row, strict=True)) for row in rows[6:]]
    assert len(sums) == 6 and all(float(row["packed"]) < 1e-6 for row in sums)


def test_carry_over_keeps_ranges_in_one_column(run_benchmark: Any, tmp_path: Path) -> None:
    out, plot = tmp_path / "runs.jsonl", tmp_path / "plot.png"
    args = ("--models", "GAT", "--widths", "FP32", "INT2", "--out", str(out), "--plot", str(plot))
    head, gat = cells(run_benchmark("carry_over.py", *SMALLEST, *args))
    assert head == ["model", "FP32", "INT2, ranges kept", "INT2", "INT2-BT", "INT2-BT*"]
    assert gat[0] == "GAT" and all(gat[1:4]) and not any(gat[4:])
    recipes = [json.loads(line)["job"]["recipe"] for line in out.read_text().splitlines()]
    assert [recipe.get("quant_lr") for recipe in recipes] == [None, None, 0.0]
    assert plot.exists()


def test_speed_tables_name_the_configuration(run_benchmark: Any, tmp_path: Path) -> None:
    def timed(rows: dict[str, float]) -> Any:
        peers = {name: ms for name, ms in rows.items() if not name.startswith("INT")}
        ratios = {n: {p: peer / ms for p, peer in peers.items()} for n, ms in rows.items()}
        seconds = {name: [ms / 1e3] for name, ms in rows.items()}
        title = "GCN 8-4-2"
        return {"title": title, "fastest_peer": "adj_t", "seconds": seconds, "ratios": ratios}

    def shown(rows: dict[str, float]) -> tuple[str, list[list[str]]]:
        file, into = tmp_path / "times.json", tmp_path / "page.md"
        file.write_text(json.dumps({"graph": {"name": "cora"}, "gcn": timed(rows)}))
        into.write_text("before\n<!-- speed:begin -->\nold\n<!-- speed:end -->\nafter\n")
        short, long = tmp_path / "short.md", tmp_path / "long.md"
        outputs = ("--summary", str(short), "--markdown", str(long), "--into", str(into))
        run_benchmark("plot_speed.py", str(file), *outputs)
        page = into.read_text()
        assert page.startswith("before\n<!-- ") and page.endswith(" -->\nafter\n")
        assert short.read_text() in page and "old" not in page
        return long.read_text(), cells(short.read_text())

    widths = dict(zip(("INT8", "INT4", "INT2"), (9.0, 5.9, 3.0), strict=True))
    new = {f"{width}, float x": ms for width, ms in widths.items()}
    new |= {f"{width}, per tensor, float x": ms / 2 for width, ms in widths.items()}
    long, (head, _, row) = shown({"adj_t": 6.0, **new})
    assert all(f"| {name} | " in long for name in new)
    assert [title.split(":")[0] for title in head[1:]] == [
        "float x, over PyG",
        "per tensor, float x, over PyG",
    ]
    # Where the converted model is the slower one, it stands out.
    assert row == ["GCN 8-4-2, cora shape", "**0.67** / 1.02 / 2.0", "1.3 / 2.0 / 4.0"]
    # Release 0.1 measured one configuration, and did not name it.
    old = {f"{width}, packed x": ms for width, ms in widths.items()}
    long, (head, *_) = shown({"adj_t": 6.0, **old})
    assert "| INT8, per tensor, packed x | " in long
    assert head[1:] == ["per tensor, packed x, over PyG: INT8 / INT4 / INT2"]
    # A sum that is called by hand may be stronger than any path of PyG.
    long, (head, _, row) = shown({"adj_t": 6.0, "embedding_bag by hand": 3.0, **old})
    assert head[1:] == [
        "packed x, over the strongest FP32 peer: INT8 / INT4 / INT2",
        "packed x, over PyG: INT8 / INT4 / INT2",
    ]
    assert row[1:] == ["**0.33** / **0.51** / 1.00", "**0.67** / 1.02 / 2.0"]


def test_whole_models_stand_beside_the_strongest_peer(run_benchmark: Any, tmp_path: Path) -> None:
    out, short = tmp_path / "cora.json", tmp_path / "short.md"
    sizes = ("--graph", "cora", "--bits", "8", "4", "2", "--rounds", "1", "--threads", "1")
    models = ("--models", "gcn", "sage")
    printed = run_benchmark("cpu_models.py", *sizes, *models, "--json", str(out))
    names = {row[0] for row in cells(printed)}
    assert {"embedding_bag by hand", "INT8, packed x", "INT2, float edges, float x"} <= names
    run_benchmark("plot_speed.py", str(out), "--summary", str(short))
    head, _, *rows = cells(short.read_text())
    assert [title.split(":")[0] for title in head[1:]] == [
        "float x, over the strongest FP32 peer",
        "packed x, over the strongest FP32 peer",
        "float x, over PyG",
        "packed x, over PyG",
    ]
    assert [row[0] for row in rows] == [
        f"{model} 1433-128-40, cora shape" for model in ("GCN", "GraphSAGE")
    ]


def test_batches_of_small_graphs(run_benchmark: Any, tmp_path: Path) -> None:
    out, short = tmp_path / "batches.json", tmp_path / "short.md"
    sizes = ("--graphs", "3", "--bits", "8", "4", "2", "--rounds", "1", "--threads", "1")
    printed = run_benchmark("cpu_batches.py", *sizes, "--json", str(out))
    names = {row[0] for row in cells(printed)}
    assert {"edge_index", "INT8, float x", "INT2, float edges, float x"} <= names
    run_benchmark("plot_speed.py", str(out), "--summary", str(short))
    models = [row[0] for row in cells(short.read_text())[2:]]
    graphs = "new batches of 3 small graphs"
    assert models == [f"GCN 32-64-64-16, {graphs}", f"GIN 32-64-64-16, {graphs}"]


def test_small_graphs_beside_the_float_model(run_benchmark: Any, tmp_path: Path) -> None:
    out = tmp_path / "small.json"
    sizes = ("--graphs", "2", "--rounds", "1", "--threads", "1", "--sampled", "cora")
    models = ["gin", "gin_norm", "gat", "gcn", "sage", "new_gcn", "new_gin"]
    if find_spec("torch_sparse") is None:  # the sampler needs it, or pyg-lib
        models.remove("sage")
    printed = run_benchmark("cpu_small.py", *sizes, "--models", *models, "--json", str(out))
    head, *rows = cells(printed)
    assert head[1:] == ["candidate", "median us", "over float"]
    ratios = {row[1]: row[3] for row in rows[1:]}
    assert ratios["float"] == "1.00" and float(ratios["INT8"]) > 0
    written = json.loads(out.read_text())
    assert [key for key in written if key in models] == models
    assert all(set(written[name]["seconds"]) == {"float", "INT8"} for name in models)


# On a GPU, whose scripts show on a CPU that they work #############################################

DRY = ("--device", "cpu", "--tiny", "--rounds", "2")


def test_kernels_of_a_gpu(run_benchmark: Any, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    args = ("--graphs", "cora", "--bits", "8", "2", "--json", str(found))
    names = {row[0] for row in cells(run_benchmark("gpu_kernels.py", *DRY, *args))}
    assert {"torch.sparse.mm", "embedding_bag fp16", "gather-scatter"} < names
    assert {"INT2", "INT2 -> packed", "INT8, float edges", "INT2 quantize and pack"} < names
    tables = json.loads(found.read_text())["tables"]
    assert ["weighted" in table["title"] for table in tables] == [False, True]
    assert all(rate > 0 for table in tables for rate in table["bytes_per_second"].values())
    printed = run_benchmark("gpu_kernels.py", *DRY, "--stage", "bandwidth", "--json", str(found))
    assert "GB/s" in printed and "copy_bytes_per_second" in json.loads(found.read_text())


def test_a_wrong_sum_is_not_timed(run_benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.ops.qlr.packed_spmm
    monkeypatch.setattr(torch.ops.qlr, "packed_spmm", lambda *a, **k: right(*a, **k) * 1.01)
    with pytest.raises(AssertionError, match="off by"):
        run_benchmark("gpu_kernels.py", *DRY, "--graphs", "cora", "--bits", "2", "--no-peers")


def test_models_of_a_gpu(run_benchmark: Any, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    models = ("--graph", "cora", "--models", "gcn", "appnp", "--bits", "2", "--json", str(found))
    names = {row[0] for row in cells(run_benchmark("gpu_models.py", *DRY, *models))}
    assert {"edge_index", "adj_t", "INT2, float x", "INT2, packed x"} < names
    assert len(json.loads(found.read_text())["tables"]) == 2
    training = ("--stage", "training", "--graph", "cora", "--bits", "4")
    rows = cells(run_benchmark("gpu_models.py", *DRY, *training))
    assert [row[0] for row in rows[2:]] == ["FP32", "INT4"]


@pytest.mark.heavy
def test_all_of_a_gpu_stage_by_stage(tmp_path: Path) -> None:
    command = ["bash", str(BENCHMARKS / "run_gpu.sh"), str(tmp_path), *DRY]
    environment = {**os.environ, "PYTHON": sys.executable}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    stages = re.findall(r"^=== (\w+)", result.stdout, re.MULTILINE)
    assert len(stages) == 8
    for stage in stages:
        assert "setting" in json.loads((tmp_path / f"{stage}.json").read_text())
    seconds = re.findall(r"^stage (\d+)", (BENCHMARKS / "run_gpu.sh").read_text(), re.MULTILINE)
    assert sum(map(int, seconds)) < 600


def test_readme_loop_tells_when_a_model_escapes(run_benchmark: Any, tmp_path: Path) -> None:
    out = tmp_path / "loop.json"
    args = ("--datasets", "Cora", "--models", "GCN", "--scales", "0.1", "1", "--json", str(out))
    head, *found = cells(run_benchmark("readme_loop.py", *SMALLEST, *args))
    assert head[3:] == ["FP32", "INT4", "INT2-mixed", "INT2"] and len(found) == 2
    rows = json.loads(out.read_text())["rows"]
    assert [row["scale"] for row in rows] == [0.1] * 4 + [1.0] * 4
    assert all(len(row["escape"]) == row["seeds"] for row in rows)


def test_calibrated_models_see_no_label(run_benchmark: Any, tmp_path: Path) -> None:
    out = tmp_path / "calibrated.json"
    args = ("--datasets", "Cora", "--models", "GCN", "GAT", "--json", str(out))
    head, *found = cells(run_benchmark("calibrated.py", *SMALLEST, *args))
    assert head[2:] == ["FP32", "INT8", "INT4", "5 bits on average"]
    assert [row[1] for row in found] == ["GCN", "GAT"] and all(map(all, found))
