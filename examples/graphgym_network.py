"""A low-bit network for GraphGym: `cfg.model.type = "low_bit_gnn"`, and `cfg.low_bit` its settings.

    python examples/graphgym_network.py [--root FOLDER]

In a project of GraphGym the two registered functions are a file of `custom_graphgym`; here they
train on a graph. Needs what GraphGym needs: python -m pip install yacs pytorch-lightning
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric import seed_everything

import torch_geometric_qlr as qlr
from _common import parse_args, require
from _data import load_citation

for package in ("yacs", "pytorch_lightning"):
    found = importlib.util.find_spec(package) is not None
    require(found, f"GraphGym needs {package}", "python -m pip install yacs pytorch-lightning")

from torch_geometric.graphgym import register  # noqa: E402
from torch_geometric.graphgym.config import cfg, set_cfg  # noqa: E402
from torch_geometric.graphgym.models.gnn import GNN  # noqa: E402
from yacs.config import CfgNode  # noqa: E402


@register.register_config("low_bit")
def set_low_bit(cfg: Any) -> None:
    """Settings of a YAML file: `low_bit: {preset: int2-mixed}`."""
    cfg.low_bit = CfgNode({"preset": "int4"})


@register.register_network("low_bit_gnn")
def low_bit_gnn(dim_in: int, dim_out: int) -> nn.Module:
    """GraphGym's own network, quantized. Set `optim.weight_decay` to 0: GraphGym gives the
    optimizer one group, and decay pulls learned ranges to zero."""
    return qlr.quantize(GNN(dim_in, dim_out), cfg.low_bit.preset)


def main() -> None:
    args = parse_args(__doc__, epochs=100, seeds=1)
    set_cfg(cfg)  # once more: with what is registered now
    cfg.dataset.task, cfg.gnn.head, cfg.gnn.layer_type = "node", "node", "gcnconv"
    cfg.gnn.dim_inner, cfg.gnn.layers_mp, cfg.gnn.dropout = 64, 2, 0.5
    graph = load_citation(args.root, "Cora", args.generated)
    data = graph.data.to(args.device)
    for seed in range(args.seeds):
        seed_everything(seed)
        network = register.network_dict["low_bit_gnn"]
        model = network(graph.data.num_features, graph.num_classes).to(args.device)
        optimizer = torch.optim.Adam(qlr.parameter_groups(model, lr=0.01, weight_decay=5e-4))
        best = test = 0.0
        for _ in range(args.epochs):
            model.train()
            optimizer.zero_grad()
            out, y = model(data.clone().update({"split": "train"}))
            F.cross_entropy(out, y).backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                val, now = (share_right(model, data, split) for split in ("val", "test"))
            if val > best:
                best, test = val, now
        packed = qlr.convert(model)
        with torch.no_grad():
            last = share_right(packed, data, "test")
        print(
            f"seed {seed}: test accuracy {100 * test:.1f} % on {graph.description}; after the last "
            f"epoch {100 * now:.1f} quantized, {100 * last:.1f} converted"
        )


def share_right(model: nn.Module, data: Any, split: str) -> float:
    out, y = model(data.clone().update({"split": split}))
    return float((out.argmax(dim=-1) == y).float().mean())


if __name__ == "__main__":
    main()
