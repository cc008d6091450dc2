"""A 2-bit GCN in a LightningModule: two groups in the optimizer, averaged weights, a checkpoint.

    python examples/lightning_gcn.py [--root FOLDER]

Needs Lightning: python -m pip install lightning
"""

from __future__ import annotations

import importlib.util
import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCN

import torch_geometric_qlr as qlr
from _common import parse_args, require
from _data import load_citation

require(
    importlib.util.find_spec("lightning") is not None, "Lightning trains", "pip install lightning"
)

import lightning as L  # noqa: E402
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint  # noqa: E402


class LowBitGCN(L.LightningModule):
    """What is trained. Quantized in the constructor, a checkpoint finds its ranges a place."""

    def __init__(self, in_channels: int, out_channels: int, bits: int, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        model = GCN(in_channels, 64, num_layers=2, out_channels=out_channels, dropout=0.5)
        self.model = qlr.quantize(model, bits=bits)

    def forward(self, data: Data) -> Tensor:
        out: Tensor = self.model(data.x, data.edge_index)
        return out

    def training_step(self, data: Data, _: int) -> Tensor:
        mask = data.train_mask
        return F.cross_entropy(self(data)[mask], data.y[mask])

    def validation_step(self, data: Data, _: int) -> None:
        self.log("val", self._accuracy(data, data.val_mask), batch_size=1)

    def test_step(self, data: Data, _: int) -> None:
        self.log("test", self._accuracy(data, data.test_mask), batch_size=1)

    def _accuracy(self, data: Data, mask: Tensor) -> Tensor:
        return (self(data)[mask].argmax(dim=-1) == data.y[mask]).float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = qlr.parameter_groups(self.model, lr=self.hparams["lr"], weight_decay=5e-4)
        return torch.optim.Adam(groups)


def main() -> None:
    args = parse_args(__doc__, epochs=120, seeds=1)
    graph = load_citation(args.root, "Cora", args.generated)
    loader = DataLoader([graph.data])
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    for seed in range(args.seeds):
        L.seed_everything(seed, verbose=False)
        with tempfile.TemporaryDirectory() as folder:
            best = ModelCheckpoint(folder, monitor="val", mode="max")
            trainer = L.Trainer(
                accelerator="cpu" if args.device == "cpu" else "auto",
                max_epochs=args.epochs,
                callbacks=[EMAWeightAveraging(decay=0.9), best],
                logger=False,
                log_every_n_steps=1,
                **quiet,
            )
            trainer.fit(
                LowBitGCN(graph.data.num_features, graph.num_classes, bits=2), loader, loader
            )
            module = LowBitGCN.load_from_checkpoint(best.best_model_path)
        (found,) = trainer.test(module, loader, verbose=False)
        packed = qlr.convert(module.model.cpu().eval())
        with torch.no_grad():
            same = packed(graph.data.x, graph.data.edge_index).argmax(-1)
            expected = module.cpu().eval()(graph.data).argmax(-1)
        print(
            f"seed {seed}: test accuracy {100 * found['test']:.1f} % on {graph.description}; "
            f"converted, {int((same != expected).sum())} answers differ"
        )


if __name__ == "__main__":
    main()
