"""What a `torch_sparse.SparseTensor` holds is used as it is, and its sums are those of numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric.nn import GraphConv, SAGEConv
from torch_geometric.typing import SparseTensor

import torch_geometric_qlr as qlr
from tests.helpers.optional import needs_torch_sparse
from torch_geometric_qlr.sparse import CSRGraph, csr_graph
from torch_geometric_qlr.tensor import PackedTensor
from torch_geometric_qlr.tensor import functional as packed

pytestmark = needs_torch_sparse

NODES = 40
PLACES = torch.randint(NODES * (NODES - 1), (200,)).sort().values  # the last node is isolated
ROW, COL = PLACES // NODES, PLACES % NODES
WEIGHT = torch.rand(200)


def compressed(value: Tensor | None = None) -> SparseTensor:
    """With offsets and no rows, as loaders and files have them."""
    rowptr = torch.bincount(ROW, minlength=NODES).cumsum(0)
    rowptr = torch.cat([rowptr.new_zeros(1), rowptr])
    known = {"sparse_sizes": (NODES, NODES), "is_sorted": True, "trust_data": True}
    return SparseTensor(rowptr=rowptr, col=COL, value=value, **known)


@pytest.fixture
def nothing_is_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    def sort(*args: object, **kwargs: object) -> None:
        raise AssertionError("edges are sorted again")

    monkeypatch.setattr(CSRGraph, "from_edge_index", sort)
    for module in ("torch_sparse.storage", "torch_geometric_qlr.sparse.csr"):
        monkeypatch.setattr(f"{module}.index_sort", sort)
    for name in ("sort", "argsort"):
        monkeypatch.setattr(torch, name, sort)


def same_memory(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.data_ptr() == b.data_ptr()


@pytest.mark.usefixtures("nothing_is_sorted")
@pytest.mark.parametrize("weighted", (True, False))
def test_rows_are_taken_as_they_are(weighted: bool) -> None:
    matrix = compressed(WEIGHT if weighted else None)
    graph = csr_graph(matrix)
    assert same_memory(graph.rowptr, matrix.storage.rowptr())
    assert same_memory(graph.value, WEIGHT) if weighted else graph.value is None
    # Kernels read columns of 32 bits, which torch-sparse does not have; they are narrowed once.
    assert graph.col.dtype == torch.int32 and torch.equal(graph.col.long(), COL)
    assert csr_graph(matrix) is graph
    # Nothing was made on the matrix that it did not have.
    assert matrix.has_value() == weighted
    assert not (matrix.storage.has_row() or matrix.storage.has_csr2csc())


def test_columns_that_it_knows_are_rows_of_the_transposed_matrix(
    request: pytest.FixtureRequest,
) -> None:
    matrix = compressed(WEIGHT)
    matrix.fill_cache_()  # sorts by column
    request.getfixturevalue("nothing_is_sorted")
    graph, order = csr_graph(matrix.t()), matrix.storage.csr2csc()
    assert same_memory(graph.rowptr, matrix.storage.colptr())
    assert torch.equal(graph.col.long(), ROW[order])
    assert graph.value is not None and torch.equal(graph.value, WEIGHT[order])


@pytest.mark.parametrize("make", (SAGEConv, GraphConv))
def test_models_take_it_as_it_is(make: type, request: pytest.FixtureRequest) -> None:
    x = torch.rand(NODES, 8)
    model = qlr.quantize(make(8, 4), bits=4).train()
    model(x, torch.stack([COL, ROW]))
    with torch.no_grad():
        expected = model.eval()(x, torch.stack([COL, ROW]))
        request.getfixturevalue("nothing_is_sorted")
        for layer in (model, qlr.convert(model)):
            matrix = compressed()
            out = layer(x, matrix)
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
            assert not (matrix.storage.has_row() or matrix.has_value())


@pytest.mark.parametrize("bits", (2, 8))
def test_sums_of_a_hub_do_not_wrap(bits: int) -> None:
    """Codes that are summed up as bytes do; here they are summed up as numbers."""
    codes = torch.full((300, 5), 2**bits - 1, dtype=torch.uint8)
    hub = torch.zeros(300, dtype=torch.long)
    matrix = SparseTensor(row=hub, col=torch.arange(300), sparse_sizes=(1, 300))
    one = torch.ones(300, dtype=torch.uint8)
    theirs = matrix.set_value(one, layout="coo").matmul(codes)
    true = 300 * (2**bits - 1)
    assert theirs.eq(true % 256).all() and true > 255
    graph = csr_graph(matrix)
    sources = PackedTensor.from_codes(codes, torch.ones(()), torch.zeros(()), bits)
    assert packed.spmm(graph.rowptr, graph.col, sources).eq(true).all()


def test_weights_of_integers_keep_their_fractions() -> None:
    """Elsewhere they become integers, as what they multiply is."""
    codes = torch.tensor([[2], [4]], dtype=torch.uint8)
    matrix = SparseTensor(
        row=torch.tensor([0, 0]), col=torch.tensor([0, 1]), value=torch.tensor([0.5, 0.25])
    )
    assert matrix.matmul(codes).eq(0).all()
    graph = csr_graph(matrix)
    sources = PackedTensor.from_codes(codes, torch.ones(()), torch.zeros(()), 4)
    assert packed.spmm(graph.rowptr, graph.col, sources, edge_weight=graph.value).item() == 2.0
