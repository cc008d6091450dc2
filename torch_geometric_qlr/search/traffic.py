"""How many values pass the points of a model, enter its layers and travel along edges."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from torch_geometric_qlr.calibration import Run
from torch_geometric_qlr.quantizers import Quantizer
from torch_geometric_qlr.search.isolated import Isolated, Place
from torch_geometric_qlr.sparse import to_edge_index

__all__ = ["Traffic"]


@dataclass
class Traffic:
    r"""Numbers of values, in all runs together.

    Args:
        runs (int): How many they are.
        values (Counter): That pass a :class:`Place`: of a source one per node and feature, of a
            message one per edge and feature.
        inputs (Counter): That a layer is given as its first argument, by its name.
        rows (Counter): The rows of those.
        messages (Counter): That a layer sums up, one per edge and feature.
    """

    runs: int
    values: Counter[Place] = field(default_factory=Counter)
    inputs: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)

    @classmethod
    @torch.no_grad()
    def of(cls, isolated: Isolated, runs: Sequence[Run]) -> Traffic:
        r"""Counts what passes.

        Args:
            isolated (Isolated): The model.
            runs (list): Runs it, once per batch.
        """
        traffic = cls(len(runs))
        shown = {place: traffic._counter(place) for place in isolated.places if not place.is_read}
        with isolated.showing(shown), traffic._counting(isolated.model):
            for run in runs:
                run(isolated.model)
        return traffic

    def mean(self, count: int) -> int:
        r"""Of one run on average, rounded.

        Args:
            count (int): Of all runs.
        """
        return round(count / self.runs)

    def _counter(self, place: Place) -> Callable[[Quantizer], Callable[..., None]]:
        def shown(x: Tensor, zeros: int = 0) -> None:
            self.values[place] += x.numel() + zeros

        return lambda quantizer: shown

    @contextlib.contextmanager
    def _counting(self, model: nn.Module) -> Iterator[None]:
        handles: list[Any] = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._input_of(name)))
            if isinstance(module, MessagePassing):
                handles.append(module.register_message_forward_hook(self._messages_of(name)))
                fused = self._fused_messages_of(name)
                handles.append(module.register_message_and_aggregate_forward_hook(fused))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _input_of(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0] if args else None
            x = x[0] if isinstance(x, tuple) else x
            if isinstance(x, Tensor) and x.dim() > 0:
                self.inputs[name] += x.shape.numel()
                self.rows[name] += x.shape[:-1].numel()

        return hook

    def _messages_of(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            self.messages[name] += out.numel()

        return hook

    def _fused_messages_of(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            edges = to_edge_index(args[0])[0].size(1)
            self.messages[name] += edges * out.shape[1:].numel()

        return hook
