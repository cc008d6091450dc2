"""The examples run, at their smallest, and the README's snippets do what they say."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.nn import GCN
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE

from tests.helpers.optional import needs_sampler
from torch_geometric_qlr.errors import QLRWarning
from torch_geometric_qlr.nn import registry

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SMALLEST = ("--generated", "--epochs", "2", "--seeds", "1", "--device", "cpu")


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a script in this process, where warnings are errors, and returns what it printed."""

    # The layer that an example registers is gone when the example is.
    monkeypatch.setattr(registry, "_USER", dict(registry._USER))

    def run(name: str, *args: str) -> str:
        path = EXAMPLES / name
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.syspath_prepend(str(path.parent))
        monkeypatch.setattr(sys, "argv", [str(path), *args])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


def rows(printed: str) -> dict[str, list[str]]:
    """The last table of an example: its cells by the name of the row."""
    table = printed[printed.rindex("accuracy  ") :].splitlines()[1:]
    cells = (re.split(r"\s{2,}", line.strip()) for line in table if line.strip())
    return {name: rest for name, *rest in cells}


def bytes_of(cell: str) -> float:
    number, unit = cell.split()
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]


@pytest.mark.parametrize("name", ["quickstart.py", "gat_cora.py", "gin_graph_classification.py"])
def test_example_prints_every_width_and_shrinks_the_weights(run_example: Any, name: str) -> None:
    table = rows(run_example(name, *SMALLEST))
    assert list(table)[:2] == ["FP32", "INT8"]
    sizes = [bytes_of(table[row][1]) for row in ("FP32", "INT8", "INT4", "INT2")]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[1]
    for cells in table.values():
        mean = float(cells[0].split("±")[0])
        assert 0.0 <= mean <= 100.0


# Said by PyG of any sampler but pyg-lib's.
@pytest.mark.filterwarnings("ignore:Using 'NeighborSampler' without a 'pyg-lib':UserWarning")
def test_sampled_training(run_example: Any) -> None:
    if not (WITH_PYG_LIB or WITH_TORCH_SPARSE):
        with pytest.raises(SystemExit, match=r"pyg-lib or torch-sparse.*pip install .*\[sparse\]"):
            run_example("graphsage_sampled.py", *SMALLEST)
        return
    assert "INT2" in rows(run_example("graphsage_sampled.py", *SMALLEST))


@pytest.mark.filterwarnings("ignore:Using 'NeighborSampler' without a 'pyg-lib':UserWarning")
def test_packed_features(run_example: Any) -> None:
    few = ("--generated", "--epochs", "2", "--device", "cpu")
    if not (WITH_PYG_LIB or WITH_TORCH_SPARSE):
        with pytest.raises(SystemExit, match=r"pyg-lib or torch-sparse.*pip install .*\[sparse\]"):
            run_example("packed_features.py", *few)
        return
    printed = run_example("packed_features.py", *few, "--bits", "2", "--workers", "0")
    assert re.search(r"x: PackedTensor\(shape=\[2708, 1433\], bits=2", printed)
    before, after = re.findall(r"[\d.]+ [kM]B", printed)
    assert bytes_of(before) > 13 * bytes_of(after)  # rows have a range and a padding
    assert re.search(r"accuracy +[\d.]+ quantized, [\d.]+ converted", printed)


@needs_sampler
def test_several_processes() -> None:
    options = ("--generated", "--epochs", "1", "--batch", "70")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    script = ("--nproc-per-node", "2", str(EXAMPLES / "distributed_sage.py"))
    done = subprocess.run([*torchrun, *script, *options], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "2 processes on" in done.stdout
    assert re.search(r"test accuracy +[\d.]+ quantized, [\d.]+ converted", done.stdout)


def test_export(run_example: Any, tmp_path: Path) -> None:
    printed = run_example("export.py", *SMALLEST, "--traced", "--out", str(tmp_path))
    assert "answers are those of the model in every bit, compared on 3 inputs" in printed
    assert {file.name for file in tmp_path.iterdir()} == {"model.pt2", "inputs.pt"}


@pytest.mark.heavy
def test_export_compiled_and_as_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    options = (*SMALLEST, "--onnx", "--out", str(tmp_path))
    script = (sys.executable, str(EXAMPLES / "export.py"))
    done = subprocess.run([*script, *options], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    printed = done.stdout  # that of the process without this package, too
    for call in ("eager", "eager with a graph that is new in every call", "compiled"):
        assert re.search(rf"[\d.]+ ms {call}\n", printed), call
    assert (tmp_path / "model.onnx").stat().st_size < (tmp_path / "inputs.pt").stat().st_size / 30
    assert "equal to the model's: True" in printed


def test_types_of_nodes(run_example: Any) -> None:
    with pytest.warns(QLRWarning, match="k_rel"):  # has no packed form
        printed = run_example("hetero_dblp.py", *SMALLEST)
    table, answers = printed.split("\nafter the last epoch")
    assert list(rows(table)) == ["FP32", "INT8", "INT4"]
    quantized, converted = re.findall(r"([\d.]+) (?:quantized|converted)", answers)
    assert quantized == converted


def test_the_paper_in_three_experiments(run_example: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    printed = run_example(
        *("paper_in_three.py", *SMALLEST),
        *("--plot", str(tmp_path / "p.png"), "--json", str(tmp_path / "p.json")),
    )
    assert re.search(r"learned multipliers: [\d.]+ to [\d.]+", printed)
    assert re.search(r"skewed +BT\* +[\d.]+ +[+-][\d.]+", printed)
    found = json.loads((tmp_path / "p.json").read_text())
    assert [len(row["energy"][0]) for row in found["depth"].values()] == [10, 10]
    assert {p.name for p in tmp_path.glob("*.png")} == {f"p_{name}.png" for name in found}


def test_custom_conv(run_example: Any) -> None:
    printed = run_example("custom_conv.py", *SMALLEST)
    assert list(rows(printed)) == ["FP32", "INT4", "INT4, registered"]
    before, after = printed.split("Registered as")
    assert re.search(r"GatedConv +edge +message", before)
    assert re.search(r"GatedConv +copy +source", after)


def test_gcn_cora_writes_json(run_example: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run_example(
        "gcn_cora.py", *SMALLEST, "--widths", "FP32", "INT2", "--distill", "--json", str(out)
    )
    written = json.loads(out.read_text())
    assert [row["name"] for row in written["rows"]] == ["FP32", "INT2"]
    assert written["distilled"] is True
    assert all(len(row["runs"]) == 1 for row in written["rows"])
    assert written["rows"][1]["model_bytes"] < written["rows"][0]["model_bytes"] / 8


def test_gcn_cora_search_chooses_by_validation(run_example: Any) -> None:
    args = ("--widths", "INT8", "--search", "--search-seeds", "1", "--epochs", "1")
    printed = run_example("gcn_cora.py", *SMALLEST, *args)
    # The grid, and then its best with and without distillation.
    assert len(re.findall(r"search INT8: validation", printed)) == 8 + 2
    assert "search INT8: test" not in printed


def test_offline_fallback_is_loud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import _data

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(_data, "Planetoid", no_network)
    graph = _data.load_citation(tmp_path, "Cora")
    assert "GENERATED" in capsys.readouterr().err
    assert "generated" in graph.description
    assert graph.data.num_nodes == 2708


def test_a_missing_part_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import _data

    monkeypatch.setattr(_data, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'scipy.*pip install -e "\.\[examples\]", or pass --gen'):
        _data.load_citation(tmp_path, "Cora")


def test_generated_data_is_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import _data

    torch.manual_seed(1)
    first = _data.citation_like_graph(num_nodes=300, num_words=60)
    torch.manual_seed(2)
    second = _data.citation_like_graph(num_nodes=300, num_words=60)
    assert torch.equal(first.edge_index, second.edge_index)
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.train_mask, second.train_mask)


@pytest.mark.parametrize("hidden", [8])
def test_model_bytes_counts_every_weight_once(monkeypatch: pytest.MonkeyPatch, hidden: int) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from _common import model_bytes

    model = GCN(20, hidden, num_layers=2, out_channels=4)
    weights, biases = 20 * hidden + hidden * 4, hidden + 4
    # One scale and zero point per output channel, for the inputs of both layers, and per source.
    ranges = hidden + 4 + 2 + 2
    assert model_bytes(model, None) == 4 * (weights + biases)
    assert model_bytes(model, {"bits": 8}) == weights + 4 * biases + 8 * ranges
    assert model_bytes(model, {"bits": 2}) == weights // 4 + 4 * biases + 8 * ranges


def test_lightning(run_example: Any) -> None:
    pytest.importorskip("lightning", reason="needs Lightning: pip install lightning")
    # What the trainer says of one process and few batches is its own affair.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        printed = run_example("lightning_gcn.py", "--generated", "--epochs", "3", "--device", "cpu")
    assert re.search(
        r"^seed 0: test accuracy [\d.]+ %.* converted, 0 answers differ$", printed, re.M
    )


def test_graphgym() -> None:
    pytest.importorskip("yacs", reason="GraphGym needs it: pip install yacs pytorch-lightning")
    pytest.importorskip("pytorch_lightning", reason="GraphGym needs it")
    # Its settings and what is registered belong to the process.
    options = ("--generated", "--epochs", "2", "--device", "cpu")
    script = (sys.executable, str(EXAMPLES / "graphgym_network.py"))
    done = subprocess.run([*script, *options], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    quantized, converted = re.findall(r"([\d.]+) (?:quantized|converted)", done.stdout)
    assert quantized == converted


def test_readme_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # one of them saves a file
    text = (ROOT / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) >= 4
    names: dict[str, Any] = {
        "__name__": "__main__",
        "torch": torch,
        "x": torch.rand(5, 1433),
        "edge_index": torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]),
    }
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert names["qmodel"](names["x"], names["edge_index"]).shape == (5, 7)


def test_qat_cost(run_example: Any) -> None:
    size = ("--nodes", "400", "--edges", "2000", "--features", "8", "--hidden", "8")
    few = ("--repeats", "2", "--steps", "1", "--threads", "1", "--form", "edge_index")
    printed = run_example("benchmarks/qat_cost.py", *size, *few)
    assert re.search(r"^edge_index .* s .* s .* GB .* GB", printed, flags=re.MULTILINE)


def test_qat_batches(run_example: Any) -> None:
    few = ("--graphs", "2", "--hidden", "8", "--layers", "2", "--rounds", "2", "--threads", "1")
    printed = run_example("benchmarks/qat_batches.py", *few, "--models", "GIN", "GAT")
    rows = re.findall(r"^\| (\w+) \| ([\w ]+) \| [\d.]+ \| [\d.]+ \| [\d.]+ \|$", printed, re.M)
    assert rows == [(m, kind) for m in ("GIN", "GAT") for kind in ("new", "the same")]
