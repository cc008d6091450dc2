"""The models that a deep, smooth or quantized model is held against: plain PyG, of any depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import APPNP, GAT, GCN, MLP, GraphSAGE
from torch_geometric.typing import Adj
from torch_geometric.utils import dropout_edge

__all__ = ["BASELINES", "DropEdgeGCN", "MLPAPPNP", "baseline"]


class DropEdgeGCN(torch.nn.Module):
    r"""GCN on a graph that loses edges at random in training, from the `"DropEdge: Towards Deep
    Graph Convolutional Networks on Node Classification" <https://arxiv.org/abs/1907.10903>`_ paper.

    Args:
        in_channels (int): Size of each input sample.
        hidden_channels (int): Size of the hidden layers.
        num_layers (int): Number of layers.
        out_channels (int): Size of each output sample.
        edge_dropout (float, optional): Share of edges to drop. (default: :obj:`0.2`)
        **kwargs (optional): Further arguments of :class:`torch_geometric.nn.GCN`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        edge_dropout: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.edge_dropout = edge_dropout
        self.gcn = GCN(in_channels, hidden_channels, num_layers, out_channels, **kwargs)

    def reset_parameters(self) -> None:
        self.gcn.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        # Both directions of an edge go together, as in the paper's undirected graphs.
        kept, _ = dropout_edge(
            edge_index, p=self.edge_dropout, force_undirected=True, training=self.training
        )
        out: Tensor = self.gcn(x, kept)
        return out


class MLPAPPNP(torch.nn.Module):
    r"""Two linear layers, then ``num_layers`` steps of personalised PageRank, from the `"Predict
    then Propagate" <https://arxiv.org/abs/1810.05997>`_ paper.

    Args:
        in_channels (int): Size of each input sample.
        hidden_channels (int): Size of the hidden layer.
        num_layers (int): Number of propagation steps.
        out_channels (int): Size of each output sample.
        dropout (float, optional): Dropout probability. (default: :obj:`0.5`)
        alpha (float, optional): Teleport probability. (default: :obj:`0.1`)
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float = 0.5,
        alpha: float = 0.1,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        channels = [in_channels, hidden_channels, out_channels]
        self.mlp = MLP(channels, dropout=dropout, norm=None)
        self.propagation = APPNP(K=num_layers, alpha=alpha)

    def reset_parameters(self) -> None:
        self.mlp.reset_parameters()
        self.propagation.reset_parameters()

    def forward(self, x: Tensor, edge_index: Adj) -> Tensor:
        x = F.dropout(x, p=self.dropout, training=self.training)
        out: Tensor = self.propagation(self.mlp(x), edge_index)
        return out


def _pairnorm(*args: Any, **kwargs: Any) -> GCN:
    r"""GCN with the layer from `"PairNorm" <https://arxiv.org/abs/1909.12223>`_."""
    return GCN(*args, **{"norm": "PairNorm", **kwargs})


BASELINES: dict[str, Callable[..., torch.nn.Module]] = {
    "gcn": GCN,
    "dropedge": DropEdgeGCN,
    "pairnorm": _pairnorm,
    "appnp": MLPAPPNP,
    "gat": GAT,
    "sage": GraphSAGE,
}


def baseline(
    name: str,
    in_channels: int,
    hidden_channels: int,
    num_layers: int,
    out_channels: int,
    dropout: float = 0.5,
    **kwargs: Any,
) -> torch.nn.Module:
    r"""A baseline by name.

    Args:
        name (str): One of :obj:`BASELINES`.
        in_channels (int): Size of each input sample.
        hidden_channels (int): Size of the hidden layers.
        num_layers (int): Depth: layers, or propagation steps.
        out_channels (int): Size of each output sample.
        dropout (float, optional): Dropout probability. (default: :obj:`0.5`)
        **kwargs (optional): Further arguments of the model.
    """
    if name not in BASELINES:
        raise ValueError(f"There is no baseline {name!r}; choose one of {sorted(BASELINES)}.")
    return BASELINES[name](
        in_channels, hidden_channels, num_layers, out_channels, dropout=dropout, **kwargs
    )
