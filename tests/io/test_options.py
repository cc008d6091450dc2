"""A file is read into the architecture that was saved, and into no other with equal tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import (
    APPNP,
    GAT,
    GCN,
    GIN,
    GATConv,
    GCNConv,
    GraphConv,
    GraphSAGE,
    MessagePassing,
    SAGEConv,
    SSGConv,
    TAGConv,
)

import torch_geometric_qlr as qlr
from tests.helpers.files import parts
from tests.helpers.io_cases import (
    EDGES,
    FEATURES,
    FLOAT,
    X,
    basic,
    converted,
    read,
    refused,
    run,
    trained,
    written,
)
from torch_geometric_qlr.nn import SMPGNN
from torch_geometric_qlr.transforms import convert

Build = Callable[[], nn.Module]


class Custom(nn.Module):
    """A model of a user, with options of many kinds."""

    def __init__(self, act: Any = torch.relu, scale: float = 1.0, inner: Any = None) -> None:
        super().__init__()
        self.conv = GCNConv(FEATURES, 4)
        self.act = act
        self._set_up(scale)
        self.stages = (1, [2, (3, scale)])
        self.inner = nn.Sequential(nn.Linear(4, 4), inner or nn.ReLU())
        self.calls = 0
        self.last: Any = None
        self.dropout_rate = 0.5

    def _set_up(self, scale: float) -> None:
        self.scale = scale

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.calls
        out: Tensor = self.inner(self.act(self.conv(x, edge_index))) * self.scale
        return out


class Renamed(Custom):
    """The same by another name."""


def _conv(cls: Any, *args: Any, **kwargs: Any) -> Build:
    return lambda: cls(FEATURES, 4, *args, **kwargs)


OTHERS: dict[str, tuple[Build, Build, str]] = {
    "normalize": (_conv(GCNConv), _conv(GCNConv, normalize=False), "normalize is True in the"),
    "loops": (_conv(GCNConv), _conv(GCNConv, add_self_loops=False), "add_self_loops is True"),
    "improved": (_conv(GCNConv), _conv(GCNConv, improved=True), "improved is False .* True in"),
    "aggr": (_conv(SAGEConv), _conv(SAGEConv, aggr="max"), "aggr is 'mean' in the file, 'max'"),
    "sage": (_conv(SAGEConv), _conv(SAGEConv, normalize=True), "normalize is False"),
    "sum": (_conv(GraphConv), _conv(GraphConv, aggr="mean"), "aggr is 'add'"),
    "flow": (
        _conv(GCNConv),
        _conv(GCNConv, flow="target_to_source", add_self_loops=True),
        "flow is 'source_to_target'",
    ),
    "slope": (_conv(GATConv), _conv(GATConv, negative_slope=0.3), "negative_slope is 0.2"),
    "concat": (
        lambda: GATConv(FEATURES, 4, heads=1),
        lambda: GATConv(FEATURES, 4, heads=1, concat=False),
        "concat is True",
    ),
    "bias": (_conv(GCNConv), _conv(GCNConv, bias=False), "bias: the model has no such tensor"),
    "K": (lambda: APPNP(2, 0.1), lambda: APPNP(3, 0.1), "K is 2|APPNP|_tensor|no such tensor"),
    "alpha": (lambda: APPNP(2, 0.1), lambda: APPNP(2, 0.2), "alpha is 0.1 in the file, 0.2"),
    "ssg": (_conv(SSGConv, alpha=0.1), _conv(SSGConv, alpha=0.3), "alpha is 0.1"),
    "tag": (_conv(TAGConv, normalize=True), _conv(TAGConv, normalize=False), "normalize"),
    "act": (
        lambda: basic(GCN),
        lambda: basic(GCN, act="elu"),
        "act: the file has ReLU there, the model ELU",
    ),
    "no act": (lambda: basic(GCN), lambda: basic(GCN, act=None), "act: the file has ReLU .*noth"),
    "act first": (
        lambda: basic(GCN, norm="batch_norm"),
        lambda: basic(GCN, norm="batch_norm", act_first=True),
        "the model itself: act_first is False",
    ),
    "inner act": (
        lambda: basic(GIN),
        lambda: basic(GIN, act="tanh"),
        "act: the file has ReLU there, the model Tanh",
    ),
    "leaky": (
        lambda: basic(GAT, act="leaky_relu"),
        lambda: basic(GAT, act="leaky_relu", act_kwargs={"negative_slope": 0.5}),
        "act: negative_slope is 0.01 in the file, 0.5",
    ),
    "norm eps": (
        lambda: basic(GCN, norm="batch_norm"),
        lambda: basic(GCN, norm="batch_norm", norm_kwargs={"eps": 0.1}),
        r"norms\.0.*: eps is 1e-05",
    ),
    "jk": (
        lambda: basic(GraphSAGE, jk="max"),
        lambda: basic(GraphSAGE, jk="last"),
        "jk.*nothing|jk_mode is 'max'",
    ),
    "smp": (
        lambda: SMPGNN(FEATURES, 4, 3, K=2, mu=9.0),
        lambda: SMPGNN(FEATURES, 4, 3, K=2, mu=5.0),
        "mu is 9.0",
    ),
    "function": (Custom, lambda: Custom(torch.tanh), "act is '<relu>' in the file, '<tanh>'"),
    "kind": (Custom, lambda: Custom(nn.ReLU()), "act: the file has nothing there"),
    "number": (Custom, lambda: Custom(scale=2.0), "the model itself: scale is 1.0"),
    "nested": (Custom, lambda: Custom(scale=2.0), r"stages is \[1, \[2, \[3, 1.0\]\]\]"),
    "module": (Custom, lambda: Custom(inner=nn.ELU()), r"inner\.1: the file has ReLU"),
}


def _quantized(build: Build, convert: bool) -> nn.Module:
    torch.manual_seed(1)
    model = trained(qlr.quantize(build(), bits=4))
    return converted(model) if convert else model


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
@pytest.mark.parametrize("name", sorted(OTHERS))
def test_other_options_are_refused(name: str, convert: bool) -> None:
    build, other, message = OTHERS[name]
    try:
        model = _quantized(build, convert)
    except qlr.errors.NothingToQuantizeError:
        pytest.skip("nothing to quantize")
    raw = written(model)
    refused(raw, other(), message)
    twin = read(raw, build())
    assert all(torch.equal(a, b) for a, b in zip(run(twin.eval()), run(model), strict=True))


def _changed(model: nn.Module, **values: Any) -> nn.Module:
    for name, value in values.items():
        setattr(model, name, value)
    return model


SAME: dict[str, tuple[Build, Build]] = {
    "dropout": (lambda: basic(GCN, dropout=0.5), lambda: basic(GCN, dropout=0.1)),
    "attention dropout": (_conv(GATConv, dropout=0.6), _conv(GATConv)),
    "cached": (_conv(GCNConv, cached=True), _conv(GCNConv)),
    "evaluated": (Custom, lambda: Custom().eval()),
    "called": (Custom, lambda: _changed(Custom(), calls=10, last="x")),
    "rate": (Custom, lambda: _changed(Custom(), dropout_rate=0.1)),
    "loss": (lambda: _changed(Custom(), criterion=nn.CrossEntropyLoss(), epoch=7), Custom),
    "renamed": (Custom, Renamed),
    "in place": (Custom, lambda: Custom(inner=nn.ReLU(inplace=True))),
    "eps": (
        lambda: basic(GIN, train_eps=True),
        lambda: basic(GIN, train_eps=True, eps=0.5),
    ),
    "momentum": (
        lambda: basic(GCN, norm="batch_norm"),
        lambda: basic(GCN, norm="batch_norm", norm_kwargs={"momentum": 0.3}),
    ),
    "lazy": (
        lambda: basic(GraphSAGE),
        lambda: GraphSAGE(-1, 6, num_layers=2, out_channels=3),
    ),
}


@pytest.mark.parametrize("convert", [False, True], ids=["quantized", "converted"])
@pytest.mark.parametrize("name", sorted(SAME))
def test_what_no_result_depends_on_may_be_otherwise(name: str, convert: bool) -> None:
    build, other = SAME[name]
    model = _quantized(build, convert)
    twin = read(written(model), other()).eval()
    assert all(torch.equal(a, b) for a, b in zip(run(twin), run(model), strict=True))


# Kernels ##########################################################################################


class Sends(MessagePassing):
    """A message that is a copy, until somebody changes the class."""

    def __init__(self) -> None:
        super().__init__(aggr="add")
        self.lin = nn.Linear(FEATURES, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=self.lin(x))
        return out

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


def test_another_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    qlr.register_conv(Sends, family="copy")
    model = convert(trained(qlr.quantize(Sends(), bits=4)))
    raw = written(model)
    assert all(torch.equal(a, b) for a, b in zip(run(read(raw, Sends())), run(model), strict=True))

    def message(self: Any, x_j: Tensor) -> Tensor:
        return 2 * x_j

    monkeypatch.setattr(Sends, "message", message)
    refused(raw, Sends(), r"by the kernel 'spmm' \(sum of x\), this one by its own code")


# Files of older versions ##########################################################################

#: What the release that wrote a file computed.
OLD = {
    1: [-0.11258640885353088, -0.11258640885353088, -0.25499820709228516],
    2: [-0.24408015608787537, -0.538389265537262, -0.1324683427810669],
}


@pytest.mark.parametrize("kind", ["quantized", "converted"])
@pytest.mark.parametrize("version", OLD)
def test_files_of_older_versions_load(
    version: int, kind: str, request: pytest.FixtureRequest
) -> None:
    path = request.path.parent / "files" / f"version{version}_{kind}.pt"
    model = qlr.load(path, GCN(8, 6, num_layers=2, out_channels=3, norm="batch_norm")).eval()
    edges = torch.randint(0, 12, (2, 40), generator=torch.Generator().manual_seed(1))
    (out,) = run(model, torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), edges)
    torch.testing.assert_close(out[0], torch.tensor(OLD[version]), rtol=1e-6, atol=1e-6)
    assert model.convs[0].quantizers["source_x"][0].bits == 3
    with pytest.raises(qlr.errors.CheckpointError, match=r"pt: .*not say how its GCN is built"):
        qlr.load(path)
    again = read(written(model), GCN(8, 6, num_layers=2, out_channels=3, norm="batch_norm"))
    assert torch.equal(run(again.eval(), X, EDGES)[0], run(model, X, EDGES)[0])


def test_files_say_which_version_they_are() -> None:
    header, _ = parts(written(_quantized(FLOAT["gcn"], False)))
    assert header["__metadata__"]["version"] == "3"
