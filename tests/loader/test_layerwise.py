"""PyG's inference layer by layer over all nodes, of quantized and converted models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import GAT, GIN, GraphSAGE

import torch_geometric_qlr as qlr
from tests.helpers.optional import needs_sampler

NODES = 200


@needs_sampler
@pytest.mark.filterwarnings("ignore:Using 'NeighborSampler' without a 'pyg-lib':UserWarning")
@pytest.mark.parametrize("cls", [GraphSAGE, GIN, GAT])
@pytest.mark.parametrize("bits", [8, 2])
def test_answers_are_those_of_the_whole_graph(cls: Any, bits: int) -> None:
    torch.manual_seed(0)
    data = Data(x=torch.randn(NODES, 16), edge_index=torch.randint(0, NODES, (2, 1200)))
    loader = NeighborLoader(data, num_neighbors=[-1], batch_size=64)
    # With a scale for each row a sum over rows would be one of floats.
    model = qlr.quantize(cls(16, 32, 3, 8), bits=bits, granularity={"input": "tensor"})
    model(data.x, data.edge_index)
    for ready in (model.eval(), qlr.convert(model)):
        with torch.no_grad():
            expected = ready(data.x, data.edge_index)
        found = ready.inference(loader)
        if cls is GAT:  # a softmax is a sum of floats, in the order in which edges come
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(found, expected)
