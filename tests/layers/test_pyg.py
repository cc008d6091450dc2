"""The private parts of PyG that are relied on: each is what ``layers/pyg.py`` takes it for."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg_nn
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, MessagePassing, SAGEConv, SGConv
from torch_geometric.utils import to_torch_csr_tensor

import torch_geometric_qlr as qlr
from torch_geometric_qlr.layers import pyg

X, EDGES = torch.randn(5, 8), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])


class Own(MessagePassing):
    """Propagates in its own way."""

    def propagate(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Any:
        return kwargs["x"]

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        return self.propagate(edge_index, x=x)


class Product(GCNConv):
    """Has its own product of a matrix and features."""

    def message_and_aggregate(self, adj_t: Any, x: Tensor) -> Tensor:
        return adj_t @ x


class Inherits(GCNConv):
    pass


def test_names_of_propagate() -> None:
    GCNConv(8, 4)
    assert pyg.PROPAGATE_NAMES[0] == "propagate"
    # Not every release has them: each that a class has is one of the three.
    has = [name for name in dir(GCNConv) if name.endswith("propagate")]
    assert set(has) <= set(pyg.PROPAGATE_NAMES)


def test_uncompiled_propagate_propagates() -> None:
    conv = SAGEConv(8, 4)
    out = pyg.uncompiled_propagate()(conv, EDGES, x=(X, X))
    assert torch.equal(out, conv.propagate(EDGES, x=(X, X)))


def test_children_of_a_sequential() -> None:
    conv, relu = GCNConv(8, 4), nn.ReLU()
    model = pyg_nn.Sequential("x, edge_index", [(conv, "x, edge_index -> h"), relu])
    assert pyg.sequential_children(model) == [
        (conv, ["x", "edge_index"], ["h"]),
        (relu, ["h"], ["h"]),
    ]


def test_own_propagate() -> None:
    for cls in (GCNConv, Inherits, GATConv):
        cls(8, 4)  # PyG writes the code of a class when its first object is made
        assert not pyg.has_own_propagate(cls)
    assert pyg.has_own_propagate(Own)


def test_own_convs_and_products() -> None:
    assert pyg.is_own_conv(GCNConv) and not pyg.is_own_conv(Inherits)
    assert not pyg.has_own_product(GCNConv) and pyg.has_own_product(Product)
    for name in pyg_nn.conv.__all__:
        assert name == "MessagePassing" or pyg.is_own_conv(getattr(pyg_nn, name)), name


def test_a_bound_propagate_is_dropped() -> None:
    conv = GCNConv(8, 4)
    conv.explain = True
    conv.explain = False
    pyg.drop_bound_propagate(conv)
    assert "propagate" not in conv.__dict__
    conv.propagate = own = lambda *args, **kwargs: None
    pyg.drop_bound_propagate(conv)
    assert conv.__dict__["propagate"] is own  # a user's is not PyG's


def test_cached_results_are_forgotten() -> None:
    conv = SGConv(8, 4, K=1, cached=True)
    conv(X, EDGES)
    assert conv._cached_x is not None
    pyg.forget_cached(conv)
    assert conv._cached_x is None
    conv = GCNConv(8, 4, cached=True)
    conv(X, EDGES)
    assert conv._cached_edge_index is not None
    pyg.forget_cached(conv)
    assert conv._cached_edge_index is None


@pytest.mark.parametrize("kind", ["propagate", "message", "aggregate", "message_and_aggregate"])
def test_hooks(kind: str) -> None:
    conv = GCNConv(8, 4)
    assert not pyg.has_hooks(conv)
    handle = getattr(conv, f"register_{kind}_forward_hook")(lambda *args: None)
    assert pyg.has_hooks(conv)
    handle.remove()
    getattr(conv, f"register_{kind}_forward_pre_hook")(lambda *args: None)
    assert pyg.has_hooks(conv)


def test_own_edge_update() -> None:
    conv = GATConv(8, 4)
    assert not pyg.has_own_edge_update(conv)
    handle = conv.register_edge_update_forward_hook(lambda *args: None)
    assert pyg.has_own_edge_update(conv)
    handle.remove()
    assert not pyg.has_own_edge_update(conv)
    conv.edge_update = lambda *args, **kwargs: None
    assert pyg.has_own_edge_update(conv)


def test_fusing() -> None:
    matrix = to_torch_csr_tensor(EDGES, size=(5, 5))
    conv = SAGEConv(8, 4)
    assert pyg.fuses(conv, matrix) and not pyg.fuses(conv, EDGES)
    conv.fuse = False
    assert not pyg.fuses(conv, matrix)


def test_node_counts() -> None:
    small = torch.randn(3, 8)
    conv = SAGEConv(8, 4)
    assert pyg.node_counts(conv, EDGES, None, {"x": X}) == ([5, None], 5)
    assert pyg.node_counts(conv, EDGES[:, :0], None, {"x": (X, small)}) == ([5, 3], 3)
    assert pyg.node_counts(conv, EDGES, (5, 7), {"x": (X, None)}) == ([5, 7], 7)
    turned = SAGEConv(8, 4, flow="target_to_source")
    assert pyg.node_counts(turned, EDGES, None, {"x": X})[1] == 5


def test_message_arguments() -> None:
    conv = GCNConv(8, 4)
    weight = torch.rand(4)
    sizes, _ = pyg.node_counts(conv, EDGES, None, {"x": X})
    found = pyg.message_arguments(conv, EDGES, sizes, {"x": X, "edge_weight": weight})
    assert set(found) == {"x_j", "edge_weight"}
    assert torch.equal(found["x_j"], X[EDGES[0]]) and found["edge_weight"] is weight


def test_lazy_parameters() -> None:
    assert pyg.is_uninitialized_parameter(pyg_nn.Linear(-1, 4).weight)
    assert not pyg.is_uninitialized_parameter(nn.Linear(3, 4).weight)


# Nobody else reaches in ###########################################################################

PACKAGE = Path(qlr.__file__).resolve().parent
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "pyg.py"]

#: What PyG keeps to itself on a layer or beside its classes.
# Of a class of our own: PyG would write code into MessagePassing itself, and break its subclasses.
PRIVATE = {name for name in vars(Own(aggr="add")) if name.startswith("_")}
PRIVATE |= {name for name in vars(MessagePassing) if name.startswith("_")}
PRIVATE |= {"_collect", "_user_args", "_fused_user_args", "_orig_propagate", "_jinja_propagate"}
PRIVATE |= {"is_uninitialized_parameter", "collect_param_data"}
#: Those that torch.nn.Module or every object has are no secrets of PyG's.
PRIVATE -= {name for cls in (nn.Module, object) for name in dir(cls)}
PRIVATE -= set(vars(nn.Module()))

#: This package's, by the same name.
OWN = {"_set_size"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_else_reaches_into_pyg(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr not in PRIVATE - OWN, f"{node.lineno}: .{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value not in PRIVATE, f"{node.lineno}: {node.value!r}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "torch_geometric."
        ):
            private = [a.name for a in node.names if a.name.startswith("_") or a.name in PRIVATE]
            assert not private, f"{node.lineno}: {private}"


#: A layer class is known by name where its row is, and nowhere else in the room.
LAYER_NAMES = {*pyg_nn.conv.__all__, *pyg_nn.dense.__all__} - {"MessagePassing"}
LAYER_NAMES |= {"Embedding", "Conv1d", "MultiheadAttention", "TransformerEncoder", "RNNBase"}
NN = [path for path in FILES if path.parent.name in ("nn", "layers", "codes", "packed")]


@pytest.mark.parametrize("path", [p for p in NN if p.name != "table.py"], ids=lambda p: p.name)
def test_layers_are_known_by_their_rows(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        assert not LAYER_NAMES & set(names), f"{node.lineno}: {names}"  # type: ignore[attr-defined]
