"""Models that a file knows how to build, and what it may not do on the way."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GAT, GCN, GIN, MLP, EdgeCNN, GCNConv, GraphSAGE

import torch_geometric_qlr as qlr
from tests.helpers.files import edited
from tests.helpers.io_cases import (
    EDGES,
    FEATURES,
    FLOAT,
    Double,
    X,
    assert_same,
    basic,
    converted,
    make,
    run,
    trained,
    written,
)
from torch_geometric_qlr.errors import CheckpointError, ConfigError, InputError
from torch_geometric_qlr.io.building import constructor_of
from torch_geometric_qlr.layers.state import unwrapped_class
from torch_geometric_qlr.nn import SMPGNN

ROOT = Path(__file__).resolve().parents[2]


def load(raw: bytes, **options: Any) -> nn.Module:
    return qlr.load(io.BytesIO(raw), **options)


class Kept(nn.Module):
    """A model that keeps its arguments."""

    def __init__(self, sizes: list[int], *, dropout: float = 0.5, table: Any = None) -> None:
        super().__init__()
        self.sizes, self.dropout, self.table = sizes, dropout, table
        self.convs = nn.ModuleList(map(GCNConv, sizes, sizes[1:]))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(nn.functional.dropout(x, self.dropout, self.training), edge_index)
        return x


class NotKept(nn.Module):
    """One whose result depends on an argument that it does not keep."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.conv = GCNConv(FEATURES, 3)
        self._scale = lambda x: factor * x

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self._scale(self.conv(x, edge_index))
        return out


# What is built ####################################################################################

KNOWN: dict[str, Callable[[], nn.Module]] = {
    **{name: FLOAT[name] for name in ("gcn", "sage", "gin", "appnp", "gcn conv", "double")},
    "dropout": lambda: basic(GCN, dropout=0.7),
    "elu": lambda: basic(GCN, act="elu", act_first=True, norm="layer_norm"),
    "norm": lambda: basic(GIN, norm="batch_norm", norm_kwargs={"eps": 1e-3}),
    "jk": lambda: basic(GraphSAGE, jk="lstm"),
    "gat": lambda: basic(GAT),
    "no out": lambda: GCN(FEATURES, 6, num_layers=2),
    "edge cnn": lambda: basic(EdgeCNN),
    "smpgnn": lambda: SMPGNN(FEATURES, 6, 3, K=3, dropout=0.2),
    "kept": lambda: Kept([FEATURES, 6, 3], dropout=0.1, table={"a": [1, None, "x"]}),
}
UNKNOWN: dict[str, Callable[[], nn.Module]] = {
    "heads": lambda: basic(GAT, heads=2),
    "normalize": lambda: basic(GCN, normalize=False),
    "slope": lambda: basic(GCN, act="leaky_relu", act_kwargs={"negative_slope": 0.3}),
    "appnp": lambda: SMPGNN(FEATURES, 6, 3, K=3, propagation="appnp"),
    "not kept": lambda: NotKept(2.0),
    "tuple": lambda: Kept((FEATURES, 3)),  # type: ignore[arg-type]
    "tensor": lambda: Kept([FEATURES, 3], table=torch.zeros(3)),
    "not finite": lambda: Kept([FEATURES, 3], table=float("nan")),
    "sequential": lambda: nn.Sequential(GCNConv(FEATURES, 3)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_models_are_built(name: str) -> None:
    torch.manual_seed(1)
    model = trained(qlr.quantize(KNOWN[name](), bits=4))
    before = torch.get_rng_state()
    for saved in (model, converted(model)):
        twin = load(written(saved))
        assert unwrapped_class(twin) is unwrapped_class(saved)
        assert_same(saved, twin)
        drops = [[m.p for m in one.modules() if isinstance(m, nn.Dropout)] for one in (saved, twin)]
        assert drops[0] == drops[1]
        again = load(written(twin))
        assert_same(saved, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training is False and load(written(model)).training is True


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_asked_for(name: str) -> None:
    float_model = UNKNOWN[name]()
    assert constructor_of(float_model) is None
    model = qlr.quantize(float_model, bits=4)
    with pytest.raises(CheckpointError, match=r"how its \w+ is built.*qlr\.load\(path, model\)"):
        load(written(model))


def test_local_classes_are_not_known() -> None:
    class Local(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)

    assert constructor_of(Local()) is None


def test_arguments_are_those_that_build_the_same() -> None:
    """Attributes that the constructor did not set so, or that were changed, are seen."""
    model = basic(GCN)
    assert constructor_of(model) is not None
    model.num_layers = 3  # type: ignore[assignment]
    assert constructor_of(model) is None
    other = basic(GCN)
    other.convs[1] = GraphSAGE(6, 6, 1)  # type: ignore[operator, index]
    assert constructor_of(other) is None
    mlp = MLP(in_channels=4, hidden_channels=5, out_channels=6, num_layers=3)
    found = constructor_of(mlp)
    assert found is not None and found["arguments"]["channel_list"] == [4, 5, 5, 6]


def test_of_quantized_and_smoothed_models() -> None:
    smooth = qlr.transforms.SmoothPropagation()(FLOAT["gcn"]())
    expected = constructor_of(FLOAT["gcn"]())
    assert constructor_of(qlr.quantize(smooth, bits=4)) == expected
    assert_same(model := trained(qlr.quantize(smooth, bits=4)), load(written(model)))


def test_it_loads_in_a_process_that_has_not_imported_it(tmp_path: Path) -> None:
    model = converted(make("gcn"))
    qlr.save(model, tmp_path / "model.safetensors")
    torch.save((X, EDGES, run(model)[0]), tmp_path / "data.pt")
    code = f"""
import torch, torch_geometric_qlr as qlr
x, edges, expected = torch.load({str(tmp_path / "data.pt")!r})
assert torch.equal(qlr.load({str(tmp_path / "model.safetensors")!r})(x, edges), expected)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# What a file may not do ###########################################################################


@pytest.fixture
def raw() -> bytes:
    return written(qlr.quantize(Double(), bits=4))


def with_constructor(raw: bytes, **values: Any) -> bytes:
    return edited(raw, lambda header: header["constructor"].update(values))


def test_imports_are_allowed_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes
) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    body = "from tests.helpers.io_cases import *\nclass Double(Double):\n    pass\n"
    (tmp_path / "my_package" / "models.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    forged = with_constructor(raw, module="my_package.models")
    words = r"my_package\.models\.Double.*Import my_package\.models first.*trust=\('my_package',\)"
    for trust in ((), ("my",), ("my_package.other",), ("package",)):
        with pytest.raises(CheckpointError, match=words):
            load(forged, trust=trust)
    assert not any(name.startswith("my_package") for name in sys.modules)
    try:
        found = unwrapped_class(load(forged, trust=("my_package",)))
        assert found.__module__ == "my_package.models"
        load(forged)  # imported by now
        gone = with_constructor(raw, module="my_package.gone")
        with pytest.raises(CheckpointError, match=r"my_package\.gone cannot be imported .Module"):
            load(gone, trust=["my_package"])
    finally:
        for name in [name for name in sys.modules if name.startswith("my_package")]:
            del sys.modules[name]


@pytest.mark.parametrize("trust", ["my_package", None, (3,), ("",), 3])
def test_trust_is_names(raw: bytes, trust: Any) -> None:
    with pytest.raises(ConfigError, match=r'trust is .*such as trust=\("my_package",\)'):
        load(raw, trust=trust)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"module": "os", "name": "system", "arguments": {"command": "x"}}, "no such model"),
        ({"module": "builtins", "name": "eval"}, "no such model"),
        ({"module": "builtins", "name": "list"}, "no such model"),
        ({"module": "torch", "name": "nn.Linear"}, "no such model"),
        ({"module": "torch.nn", "name": "Linear"}, "no such model"),
        ({"module": "subprocess", "name": "Popen"}, "no such model"),
        ({"name": "Double.forward"}, "no such model"),
        ({"name": "Double.__class__"}, "no such model"),
        ({"name": "X.grad"}, "no such model"),
        ({"name": ""}, "no such model"),
        ({"name": "Gone"}, "no such model"),
        ({"module": ""}, "a file does not decide what is imported"),
        ({"module": "antigravity"}, "a file does not decide what is imported"),
        ({"module": "torch_geometric.gone"}, "cannot be imported"),
        ({"module": "torch_geometric.."}, "cannot be imported"),
        ({"arguments": {"more": 1}}, "cannot be built with what the file says .TypeError"),
        ({"arguments": []}, "damaged"),
        ({"arguments": {"n": 10**9}}, "cannot account for"),
        ({"module": 3}, "damaged"),
    ],
)
def test_classes_that_a_file_may_not_name(raw: bytes, values: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load(with_constructor(raw, **values))
    assert "damaged" in words or "qlr.load(path, model)" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"in_channels": 10**6}, "cannot account for"),
        ({"num_layers": 10**12}, "cannot account for"),
        ({"norm_kwargs": {"eps": [10**12]}}, "cannot account for"),
        ({"in_channels": 900, "hidden_channels": 900}, r"with [\d,]+ parameters"),
        ({"act": "gone"}, "cannot be built"),
        ({"num_layers": 3}, r"shape \[3, 6\], the model one of \[6, 6\]"),
        ({"hidden_channels": 7}, r"weight of shape \[6, 8\], the model one of \[7, 8\]"),
        ({"act": "tanh"}, r"act: the file has ReLU there, the model Tanh"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], words: str) -> None:
    def edit(header: dict[str, Any]) -> None:
        header["constructor"]["arguments"].update(arguments)

    with pytest.raises(CheckpointError, match=words):
        load(edited(written(converted(make("gcn"))), edit))


def test_files_that_are_read_once() -> None:
    """A pipe, or a response of a server; what gives no bytes is refused."""

    class Once:
        def __init__(self, content: Any) -> None:
            self.content = content

        def read(self) -> Any:
            return self.content

    model = make("gcn")
    once: Any = Once(written(model))
    assert_same(model, qlr.load(once))
    once.content = "text"
    with pytest.raises(InputError, match=r"Once\.read\(\) gives a str, not bytes"):
        qlr.load(once)
