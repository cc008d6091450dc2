"""Converted models, whole."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch_geometric.nn import APPNP, GAT, GCN, GIN, GraphSAGE

import torch_geometric_qlr as qlr
from tests.helpers.packed_cases import deviation, quantized, run
from tests.helpers.predict import Predict
from torch_geometric_qlr.errors import QLRWarning

MODELS = {
    "GCN": lambda: GCN(16, 8, 2, 4),
    "SAGE": lambda: GraphSAGE(16, 8, 2, 4),
    "GIN": lambda: GIN(16, 8, 2, 4),
    "GAT": lambda: GAT(16, 8, 2, 4, heads=2),
    "APPNP": lambda: Predict(APPNP(K=3, alpha=0.1), 16, 4),
    "SMP": lambda: Predict(qlr.nn.SMP(K=2), 16, 4),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_computes_with_the_kernels(name: str) -> None:
    torch.manual_seed(0)
    config: dict[str, Any] = {"bits": 8} if name in ("SAGE", "GAT") else {"bits": 2}
    if name in ("GCN", "SMP"):
        config["truncation"] = "bt*"
    x, edge_index = torch.rand(9, 16), torch.randint(9, (2, 30))
    model = quantized(MODELS[name](), (x, edge_index), **config)
    truth = run(qlr.convert(model, backend="reference"), x, edge_index)
    converted = qlr.convert(model, backend="triton")
    with warnings.catch_warnings():
        warnings.simplefilter("error", QLRWarning)  # nothing is left to the definition
        assert deviation(truth, run(converted, x, edge_index)) <= 1e-5
