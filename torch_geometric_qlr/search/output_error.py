"""How far the output of a model is from the exact one, over all batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.calibration import Run
from torch_geometric_qlr.errors import ConfigError, InputError

__all__ = ["ExactOutput", "decibels"]


class ExactOutput:
    r"""What a model answers without rounding, to compare with:

    .. math::
        \epsilon = \frac{\sum_n \| \hat{\mathbf{Y}}_n - \mathbf{Y}_n \|^2}
        {\sum_n \| \mathbf{Y}_n \|^2}

    over batches :math:`n`, so that :math:`-10 \log_{10} \epsilon` is the SQNR of the output.

    Args:
        model (torch.nn.Module): The model, in evaluation.
        runs (list): Runs a model, once per batch.

    Raises:
        ConfigError: If a run returns no tensor of floats, or all that they return is zero.
        InputError: If the output holds NaN or Inf.

    Example:
        >>> exact = ExactOutput(torch.nn.Identity(), [lambda model: model(torch.ones(4))])
        >>> round(exact.error_of(lambda x: 0.9 * x), 6)
        0.01
    """

    def __init__(self, model: Any, runs: Sequence[Run]) -> None:
        self.runs = runs
        self._outputs = [_output(model, run) for run in runs]
        self._energy = sum(_energy(tensor) for tensors in self._outputs for tensor in tensors)
        name = type(model).__name__
        if self._energy == 0:
            raise ConfigError(
                f"{name}: its output is zero for all of the data, so no error can be told from "
                f"it. Pass a trained model, and data that it answers to."
            )
        if not math.isfinite(self._energy):
            raise InputError(
                f"{name}: its output holds NaN or Inf before anything is quantized. Look at its "
                f"weights and at the data."
            )

    def error_of(self, model: Any) -> float:
        r"""The error of a model that computes something else.

        Args:
            model (torch.nn.Module): The model, in evaluation.
        """
        noise = 0.0
        for run, exact in zip(self.runs, self._outputs, strict=True):
            found = _output(model, run)
            noise += sum(_energy(a - b) for a, b in zip(found, exact, strict=True))
        return noise / self._energy


def decibels(error: float) -> float:
    r"""The SQNR of a relative squared error: :math:`-10 \log_{10} \epsilon`.

    Args:
        error (float): :math:`\epsilon`.

    Example:
        >>> decibels(0.01), decibels(0.0)
        (20.0, inf)
    """
    return -10 * math.log10(error) if error > 0 else math.inf


@torch.no_grad()
def _output(model: Any, run: Run) -> list[Tensor]:
    # In double precision: at 8 bits the noise is close to what float32 resolves.
    found = [tensor.double() for tensor in _floats(run(model))]
    if not found:
        raise ConfigError(
            "a run of the model returned no tensor of floats to compare. Let forward(model, "
            "batch), or the function that is passed as data, return what the model returns."
        )
    return found


def _floats(value: Any) -> Iterator[Tensor]:
    """The tensors of floats in values of any nesting."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _floats(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _floats(item)


def _energy(x: Tensor) -> float:
    return float(x.square().sum())
