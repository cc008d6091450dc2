"""Metrics over depth: written down layer by layer, then tabulated or drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.metrics.smoothness import dirichlet_energy, mean_average_distance
from torch_geometric_qlr.sparse import Adjacency

__all__ = ["DepthRecorder"]

Metric = Callable[[Tensor, Adjacency], Tensor]

_METRICS: Mapping[str, Metric] = {
    "dirichlet_energy": dirichlet_energy,
    "mean_average_distance": mean_average_distance,
}


class DepthRecorder:
    r"""Writes down metrics of a representation layer by layer.

    Call :meth:`record` with each representation (the ``states`` of a
    :class:`~torch_geometric_qlr.nn.SMPHistory` are some), or let :meth:`watch` do so for the
    outputs of a model's message passing layers.

    Args:
        metrics (dict, optional): Names and functions of a representation and an adjacency; by
            default
            :func:`~torch_geometric_qlr.metrics.dirichlet_energy` and
            :func:`~torch_geometric_qlr.metrics.mean_average_distance` over the edges.
            (default: :obj:`None`)

    Example:
        >>> from torch_geometric.nn import GCN
        >>> recorder, edge_index = DepthRecorder(), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> model = GCN(4, 8, num_layers=3)
        >>> with recorder.watch(model):
        ...     _ = model(torch.randn(3, 4), edge_index)
        >>> recorder.depths, list(recorder.to_dict())
        ([1, 2, 3], ['depth', 'dirichlet_energy', 'mean_average_distance'])
    """

    def __init__(self, metrics: Mapping[str, Metric] | None = None) -> None:
        self.metrics = dict(_METRICS if metrics is None else metrics)
        self.depths: list[int] = []
        self._values: dict[str, list[Tensor]] = {name: [] for name in self.metrics}

    def record(self, x: Tensor, adj: Adjacency, depth: int | None = None, **values: Tensor) -> None:
        r"""Writes down the metrics of one representation; nothing leaves the device yet.

        Args:
            x (torch.Tensor): The representation ``[N, F]``.
            adj (torch.Tensor or EdgeIndex or SparseTensor): The graph.
            depth (int, optional): Its depth, by default one more than that of the last.
                (default: :obj:`None`)
            **values (optional): What was measured otherwise, by the name of its column: the
                :func:`~torch_geometric_qlr.metrics.sqnr` of the layer, say. The same names each
                time.

        Raises:
            InputError: If the names are not those of the first record.
        """
        if self.depths and set(values) != set(self._values) - set(self.metrics):
            raise InputError(
                f"DepthRecorder: got values for {sorted(values)}, the first record had them for "
                f"{sorted(set(self._values) - set(self.metrics))}; give the same each time."
            )
        with torch.no_grad():
            found = {name: metric(x.detach(), adj) for name, metric in self.metrics.items()}
        for name, value in {**found, **values}.items():
            self._values.setdefault(name, []).append(torch.as_tensor(value).detach())
        last = self.depths[-1] if self.depths else 0
        self.depths.append(last + 1 if depth is None else depth)

    @contextmanager
    def watch(self, model: torch.nn.Module) -> Iterator[DepthRecorder]:
        r"""Records what each :class:`~torch_geometric.nn.conv.MessagePassing` layer of a model
        returns, in the order of the calls, inside a ``with`` block.

        A compiled model has to be run uncompiled here.

        Args:
            model (torch.nn.Module): The model.
        """

        def hook(
            module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
        ) -> None:
            adj = kwargs["edge_index"] if "edge_index" in kwargs else args[1]
            self.record(out[0] if isinstance(out, tuple) else out, adj)

        layers = [module for module in model.modules() if isinstance(module, MessagePassing)]
        handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def to_dict(self) -> dict[str, list[float]]:
        r"""The columns of the table: ``depth``, and one for each metric."""
        columns: dict[str, list[float]] = {"depth": [float(depth) for depth in self.depths]}
        for name, values in self._values.items():
            columns[name] = [float(value) for value in values]
        return columns

    def clear(self) -> None:
        r"""Forgets everything recorded."""
        self.depths.clear()
        self._values = {name: [] for name in self.metrics}

    def plot(self, axes: Any = None, label: str | None = None, log: bool = True) -> Any:
        r"""Draws each metric over depth with matplotlib.

        Args:
            axes (sequence of matplotlib.axes.Axes, optional): One for each metric, to draw several
                models into; by default those of a new figure. (default: :obj:`None`)
            label (str, optional): Name in the legend. (default: :obj:`None`)
            log (bool, optional): Whether values are on a logarithmic scale. (default: :obj:`True`)

        Returns:
            The axes.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        columns = self.to_dict()
        depth = columns.pop("depth")
        axes = _new_axes(len(columns)) if axes is None else axes
        for axis, (name, values) in zip(axes, columns.items(), strict=True):
            axis.plot(depth, values, marker="o", label=label)
            axis.set_xlabel("depth")
            axis.set_ylabel(name.replace("_", " "))
            if log:
                axis.set_yscale("log")
            if label is not None:
                axis.legend()
        return axes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.metrics)}; {len(self.depths)} recorded)"


def _new_axes(count: int) -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "DepthRecorder.plot draws with matplotlib, which is not installed. Run "
            "'pip install matplotlib', or take the numbers from to_dict()."
        ) from error
    _, axes = plt.subplots(1, count, figsize=(5 * count, 4), squeeze=False, layout="constrained")
    return list(axes[0])
