"""What a user passes as data: the batches, and how a model runs on one of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData, TemporalData

from torch_geometric_qlr.errors import ConfigError

__all__ = ["Forward", "Run", "is_callable_only", "run_on", "runner", "runs_of", "several"]

Forward = Callable[[nn.Module, Any], Any]

#: Runs a model on one batch, and returns what the model does.
Run = Callable[[nn.Module], Any]


def is_callable_only(batches: Any) -> bool:
    r"""Whether what was passed as data is a function that runs the model.

    Args:
        batches (Any): What was passed.
    """
    return callable(batches) and not isinstance(batches, (Iterable, Tensor))


def several(batches: Any) -> Iterable[Any]:
    r"""The batches, of which one may come alone.

    Args:
        batches (Any): A loader, a list of batches, or one batch.

    Raises:
        ConfigError: If it is nothing of that kind.

    Example:
        >>> batch = torch.ones(2), torch.zeros(2)
        >>> several(batch) == [batch], several([batch, batch]) == [batch, batch]
        (True, True)
    """
    if isinstance(batches, (Tensor, tuple, dict, Data, HeteroData, TemporalData)):
        return [batches]
    if isinstance(batches, (str, bytes)) or not isinstance(batches, Iterable):
        raise ConfigError(
            f"the data is a {type(batches).__name__}; pass a loader, a list of batches, one batch "
            f"(a tensor, a tuple, a dict, a Data), or a function that runs the model"
        )
    return batches


def runner(forward: Forward | None) -> Forward:
    r"""What runs a model on a batch.

    Args:
        forward (callable, optional): What the user has said.

    Raises:
        ConfigError: If it cannot be called.
    """
    if forward is None:
        return run_on
    if not callable(forward):
        raise ConfigError(
            f"forward is {forward!r}; it is a function of the model and a batch, such as "
            f"forward=lambda model, batch: model(batch.x, batch.edge_index)"
        )
    return forward


def run_on(model: nn.Module, batch: Any) -> Any:
    r"""Runs a model with a batch as its arguments.

    Args:
        model (torch.nn.Module): The model.
        batch (Any): A tensor, a tuple, a dict, or a data object, of which the arguments are taken
            that the model's forward names.
    """
    if isinstance(batch, (list, tuple)):
        return model(*batch)
    if isinstance(batch, dict):
        return model(**batch)
    if isinstance(batch, HeteroData):
        return model(batch.x_dict, batch.edge_index_dict)
    if isinstance(batch, (Data, TemporalData)):
        return model(**_arguments(model, batch))
    return model(batch)


def runs_of(batches: Any, forward: Forward | None, caller: str) -> list[Run]:
    r"""One function per batch, for what runs several models on the same data: a loader that samples
    is asked once.

    Args:
        batches (Any): As for :func:`torch_geometric_qlr.calibrate`.
        forward (callable, optional): Called with the model and a batch, to run it.
        caller (str): Who asks, for the error message.

    Raises:
        ConfigError: If there is no batch.
    """
    if is_callable_only(batches):
        return [batches]
    run = runner(forward)
    runs: list[Run] = [
        lambda model, batch=batch: run(model, batch)  # type: ignore[misc]
        for batch in several(batches)
    ]
    if not runs:
        raise ConfigError(f"{caller}: there is no batch, so there is nothing to learn from")
    return runs


def _arguments(model: nn.Module, data: Data | TemporalData) -> dict[str, Any]:
    """What a data object has of the arguments that a forward names."""
    names = inspect.signature(model.forward).parameters
    return {name: data[name] for name in names if name in data and data[name] is not None}
