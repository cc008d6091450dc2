"""Ranges from data, without training."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from torch_geometric_qlr.calibration.batches import Forward, is_callable_only, runner, several
from torch_geometric_qlr.calibration.together import join_others, joined
from torch_geometric_qlr.calibration.watch import ESTIMATORS, Watch
from torch_geometric_qlr.errors import (
    AlreadyQuantizedError,
    ConfigError,
    NothingToQuantizeError,
    QLRWarning,
)
from torch_geometric_qlr.expect import expect_module, expect_number
from torch_geometric_qlr.layers.state import LayerState
from torch_geometric_qlr.nn.packed import PackedLayer
from torch_geometric_qlr.quantizers import Quantizer
from torch_geometric_qlr.quantizers.processes import processes

__all__ = ["Calibration", "calibrate", "calibrating"]


class Calibration:
    r"""What was seen of each range of a model. More data can be added to it later.

    Attributes:
        batches (int): How many times the model ran, as far as :func:`calibrate` called it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.batches = 0
        self.watches: dict[str, Watch] = {}
        #: What the other processes have seen, too.
        self.joined = self.watches
        self.others: dict[str, Quantizer] = {}
        for name, module in model.named_modules():
            if isinstance(module, Quantizer) and module.takes_range:
                self.watches[module.path or name] = Watch(module)
            elif isinstance(module, Quantizer) and not module.is_frozen:
                self.others[module.path or name] = module

    @property
    def observed(self) -> list[str]:
        """Names of the quantizers that have a range from it."""
        return [name for name, watch in self.joined.items() if watch.has_seen]

    @property
    def unobserved(self) -> list[str]:
        """Names of those that no data has reached, and nobody has guessed a range for."""
        never = [name for name, watch in self.joined.items() if not watch.has_seen]
        return [*never, *(name for name, other in self.others.items() if not other.has_range)]

    def __repr__(self) -> str:
        return f"Calibration(observed={len(self.observed)}, unobserved={self.unobserved})"


@contextlib.contextmanager
def calibrating(
    model: nn.Module,
    *,
    method: str = "mse",
    share: float = 0.9999,
    resume: Calibration | None = None,
    alone: bool = False,
) -> Iterator[Calibration]:
    r"""Inside, a quantized model is in evaluation, its activations pass unrounded, and quantizers
    count what passes. At the end they have ranges that are fixed. If the block ends with an
    exception they are what they were.

    The same data gives the same ranges in whatever batches and order it comes, to the width of a
    bin of a :class:`~torch_geometric_qlr.calibration.Histogram`. Ranges that are taken from each
    node have a multiplier only, which follows from the batches as in evaluation; weights have
    ranges of their own anyway.

    With :mod:`torch.distributed` all processes end the block together, and have the ranges of what
    all of them have seen.

    Args:
        model (torch.nn.Module): A model from :func:`~torch_geometric_qlr.quantize`.
        method (str): :obj:`"mse"` (the multiplier of the range with the least squared error),
            :obj:`"percentile"` or :obj:`"minmax"`. (default: :obj:`"mse"`)
        share (float): Of the values that a percentile keeps. (default: :obj:`0.9999`)
        resume (Calibration, optional): What an earlier block has yielded, to go on from.
        alone (bool): Whether other processes do not take part. (default: :obj:`False`)

    Raises:
        NothingToQuantizeError: If nothing of the model is quantized.
        AlreadyQuantizedError: If it is converted, and its ranges are what they are.
        ConfigError: If there is no such method, the share is none, or :obj:`resume` is of another
            model.
        InputError: If what passes is NaN or infinite.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.nn import GCN
        >>> x, edge_index = torch.rand(3, 8), torch.tensor([[0, 1], [1, 2]])
        >>> model = qlr.quantize(GCN(8, 16, num_layers=2, out_channels=4), bits=4)
        >>> with qlr.calibrating(model) as calibration:
        ...     _ = model(x, edge_index)
        >>> calibration
        Calibration(observed=3, unobserved=[])
    """
    _check(model, method, share)
    calibration = Calibration(model) if resume is None else resume
    if resume is not None:
        _check_same(model, resume)
    states = [module for module in model.modules() if isinstance(module, LayerState)]
    training = [(module, module.training) for module in model.modules()]
    before = {q: copy.deepcopy(q) for q in calibration.others.values()}
    model.eval()
    for state in states:
        state.observes = True
    for watch in calibration.watches.values():
        watch.quantizer.watch = watch
    try:
        with torch.no_grad():
            yield calibration
    except BaseException:
        for quantizer, earlier in before.items():
            quantizer.take_back(earlier)
        raise
    else:
        _conclude(calibration, method, share, alone)
    finally:
        for watch in calibration.watches.values():
            watch.quantizer.watch = None
        for state in states:
            state.observes = False
        for module, was_training in training:
            module.training = was_training


def calibrate(
    model: nn.Module,
    batches: Any,
    forward: Forward | None = None,
    *,
    method: str = "mse",
    share: float = 0.9999,
    progress: bool = True,
    resume: Calibration | None = None,
    alone: bool = False,
) -> Calibration:
    r"""Gives a quantized model its ranges from data, without training, see :func:`calibrating`.

    Args:
        model (torch.nn.Module): A model from :func:`~torch_geometric_qlr.quantize`; it is changed
            in place.
        batches (Any): A loader or a list of batches, one batch, or a callable that is given the
            model and runs it. A batch is a tensor, a tuple of positional arguments, a dict of
            keyword arguments, or a :class:`~torch_geometric.data.Data`,
            :class:`~torch_geometric.data.HeteroData` or
            :class:`~torch_geometric.data.TemporalData`, of which the arguments are taken that the
            model's forward names.
        forward (callable, optional): Called with the model and a batch, to run it.
        method, share, resume, alone (optional): As in :func:`calibrating`.
        progress (bool): Whether a bar tells how far it is. (default: :obj:`True`)

    Raises:
        ConfigError: As :func:`calibrating` does, and if there is no batch.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.nn import GCN
        >>> x, edge_index = torch.rand(3, 8), torch.tensor([[0, 1], [1, 2]])
        >>> model = qlr.quantize(GCN(8, 16, num_layers=2, out_channels=4), bits=8)
        >>> qlr.calibrate(model, (x, edge_index), progress=False)
        Calibration(observed=3, unobserved=[])
        >>> packed = qlr.convert(model)
    """
    run, data = runner(forward), batches if is_callable_only(batches) else several(batches)
    how: Any = {"method": method, "share": share, "resume": resume, "alone": alone}
    with calibrating(model, **how) as calibration:
        if is_callable_only(batches):
            batches(model)
            calibration.batches += 1
            return calibration
        ran = 0
        for batch in tqdm(data, desc="calibrating", disable=not progress):
            run(model, batch)
            ran += 1
        if ran == 0:
            raise ConfigError("calibrate: there is no batch, so there is nothing to learn from")
        calibration.batches += ran
    return calibration


def _check(model: nn.Module, method: str, share: float) -> None:
    expect_module(model, "calibrate")
    if method not in ESTIMATORS:
        raise ConfigError(f"method {method!r} is unknown, choose from {', '.join(ESTIMATORS)}")
    expect_number(share, "share")
    if not 0.5 < share <= 1.0:
        raise ConfigError(f"share is {share}; a range keeps more than half of the values, up to 1")
    if any(isinstance(module, PackedLayer) for module in model.modules()):
        raise AlreadyQuantizedError(
            f"{type(model).__name__} is converted, and its ranges are final. Calibrate the "
            f"quantized model, and convert it again."
        )
    if not any(isinstance(module, Quantizer) for module in model.modules()):
        raise NothingToQuantizeError(
            f"{type(model).__name__} is not quantized, so it has no ranges. Call qlr.quantize "
            f"first."
        )


def _check_same(model: nn.Module, resume: Calibration) -> None:
    if not isinstance(resume, Calibration):
        raise ConfigError(
            f"resume is a {type(resume).__name__}; pass what calibrate or calibrating gave before"
        )
    own = {id(module) for module in model.modules()}
    if any(id(watch.quantizer) not in own for watch in resume.watches.values()):
        raise ConfigError(
            "resume is the calibration of another model, or of this one before it was copied"
        )


def _conclude(calibration: Calibration, method: str, share: float, alone: bool) -> None:
    """Writes the ranges, and says which are missing."""
    there_are_others, group = processes()
    calibration.joined = calibration.watches
    if there_are_others and not alone:
        calibration.joined = joined(calibration.watches, group)
        join_others(list(calibration.others.values()), group)
    for watch in calibration.joined.values():
        if watch.has_seen:
            watch.quantizer.take_range(*ESTIMATORS[method](watch, share), watch.skewness())
    for other in calibration.others.values():
        other.fix()
    if calibration.unobserved:
        warnings.warn(
            f"no data has reached {', '.join(calibration.unobserved)}: they have no range. Pass "
            f"batches that use these layers.",
            QLRWarning,
            stacklevel=4,
        )
