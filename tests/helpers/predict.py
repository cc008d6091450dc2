"""The model that propagates its answers, as APPNP and SMP do."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Predict"]


class Predict(nn.Module):
    """A Linear, and a propagation of what it gives."""

    def __init__(self, propagation: nn.Module, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lin, self.propagation = nn.Linear(in_channels, out_channels), propagation

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        out: Tensor = self.propagation(self.lin(x), edge_index, edge_weight)
        return out
