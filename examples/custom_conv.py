"""A layer of your own: what ``quantize`` does with it as it is, and once it is registered.

python examples/custom_conv.py [--root FOLDER]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import Linear, MessagePassing
from torch_geometric.utils import degree

import torch_geometric_qlr as qlr
from _common import Score, compare, fit_full_batch, parse_args, print_table
from _data import load_citation


class GatedConv(MessagePassing):
    """The node itself plus, through a learned gate per channel, its neighbours damped by degree."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(aggr="add")
        self.lin = Linear(in_channels, out_channels)
        self.gate = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        damping = degree(edge_index[0], x.size(0)).clamp(min=1.0).rsqrt()[edge_index[0]]
        x = self.lin(x)
        return x + torch.sigmoid(self.gate) * self.propagate(edge_index, x=x, damping=damping)

    def message(self, x_j: Tensor, damping: Tensor) -> Tensor:
        return damping.view(-1, 1) * x_j


class Net(nn.Module):
    """Two such layers."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = GatedConv(in_channels, hidden_channels)
        self.conv2 = GatedConv(hidden_channels, out_channels)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.conv1(x, edge_index).relu()
        h = nn.functional.dropout(h, 0.5, self.training)
        return self.conv2(h, edge_index)


def main() -> None:
    args = parse_args(__doc__, epochs=200, seeds=3)
    graph = load_citation(args.root, "Cora", args.generated, sparse=True)
    data = graph.data.to(args.device)

    def make_model() -> nn.Module:
        return Net(data.num_features, 64, graph.num_classes).to(args.device)

    def run(label: str, model: nn.Module) -> Score:
        return fit_full_batch(label, model, data, args.epochs)

    print("As it is, the layer's messages are quantized one by one, edge by edge:")
    print(qlr.plan(make_model(), bits=4))
    rows = compare(
        {"FP32": None, "INT4": {"bits": 4}}, args.seeds, make_model, run, features=data.x
    )

    # Its messages are source features times a weight per edge: quantize those, once per node.
    qlr.register_conv(GatedConv, family="copy")
    print("\nRegistered as weighted copies of the source, that is quantized once per node:")
    print(qlr.plan(make_model(), bits=4))
    rows += compare({"INT4, registered": {"bits": 4}}, args.seeds, make_model, run, features=data.x)
    print_table(graph.description, f"Net {data.num_features}-64-{graph.num_classes}", args, rows)


if __name__ == "__main__":
    main()
