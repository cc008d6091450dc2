"""How a quantizer comes to know its range: from data that passes, or from what was saved."""

from __future__ import annotations

import math
import threading
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.quantizers.agreement import Agreement, Conversation, Opens, agreement
from torch_geometric_qlr.quantizers.processes import processes, take_first
from torch_geometric_qlr.quantizers.signature import SignedState
from torch_geometric_qlr.quantizers.statistics import Batch, Groups
from torch_geometric_qlr.quantizers.torch_state import (
    is_abstract,
    is_transformed,
    outside_of_transforms,
    unwrapped,
)

__all__ = ["GROWTH", "Observing", "RangeState"]

#: Several threads may evaluate one model.
GROWTH = threading.Lock()


class RangeState:
    r"""What :obj:`calibrated` holds.

    Attributes:
        MISSING (int): No data has been seen.
        GROWING (int): Only evaluation batches have been; each further one counts.
        FIXED (int): Made in training, loaded, or declared final: evaluation does not move it.
    """

    MISSING, GROWING, FIXED = 0, 1, 2
    NAMES = ("missing", "growing", "fixed")


class Observing(SignedState, Opens):
    r"""The life of a range, whatever the method: nothing is known at first, then evaluation batches
    count until a training batch, a load or :meth:`fix` ends that, see :class:`RangeState`.

    Args:
        config (QuantizerConfig): Width, truncation, granularity, statistics.
        groups (Groups): What shares a range.

    Attributes:
        path (str): Where it sits, ``"convs.0.source"`` say, for error messages.
        is_frozen (bool): Whether it neither learns nor observes.
        loaded_fresh (bool): Whether the last strict load was of a float checkpoint, without ranges.
    """

    calibrated: Tensor

    is_frozen = False
    loaded_fresh = False

    def __init__(self, config: QuantizerConfig, groups: Groups) -> None:
        super().__init__()
        self.config, self.groups, self.path = config, groups, ""
        # A number, not a bool, so that averages of models can hold it.
        self.register_buffer("calibrated", torch.tensor(RangeState.MISSING))
        self._state = RangeState.MISSING

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return self.calibrated.device

    @property
    def _name(self) -> str:
        return self.path or "quantizer"

    # What is known ################################################################################

    @property
    def range_state(self) -> int:
        """How the range came about, see :class:`RangeState`."""
        # The Python number spares the device a stall per step. The buffer is asked only until it
        # says that the range is fixed, because copies (EMA, DDP) arrive through it.
        if self._state != RangeState.FIXED and not torch.compiler.is_compiling():
            state = unwrapped(self.calibrated)
            if state is None:  # a batch of models
                return RangeState.FIXED
            if not is_abstract(state):
                self._state = int(state)
        return self._state

    @property
    def has_range(self) -> bool:
        """Whether it has seen data, or loaded what another one has seen."""
        return self.range_state != RangeState.MISSING

    @property
    def is_fixed(self) -> bool:
        """Whether evaluation does not move it any more."""
        return self.range_state == RangeState.FIXED

    def fix(self) -> None:
        r"""Declares a range that is made of evaluation batches final: no further one counts."""
        if self.range_state == RangeState.GROWING:
            self._set_state(RangeState.FIXED)

    def _set_state(self, state: int) -> None:
        with torch.no_grad():
            self._own(self.calibrated).fill_(state)
        self._state = state

    def reset_parameters(self) -> None:
        r"""Forgets what was seen and learned; the next batch starts it anew."""
        self._set_state(RangeState.MISSING)

    @torch.no_grad()
    def take_back(self, earlier: Observing) -> None:
        r"""Is again what it was when it was copied.

        Args:
            earlier (Observing): The copy.
        """
        numbers = zip(
            [*self.parameters(recurse=False), *self.buffers(recurse=False)],
            [*earlier.parameters(recurse=False), *earlier.buffers(recurse=False)],
            strict=True,
        )
        for now, then in numbers:
            now.copy_(then)
        self._state = earlier._state

    # Looking at data ##############################################################################

    def observe(self, batch: Batch) -> None:
        r"""Looks at data that passes, without gradients, where it may change what is remembered: at
        every batch in training, and at those in evaluation until the first one in training. The
        first of all finds :attr:`has_range` false, and starts the parameters.

        Args:
            batch (Batch): What passes.
        """
        raise NotImplementedError

    def _looks(self, batch: Batch) -> bool:
        """Whether it is due to look at a batch."""
        if self.is_frozen or batch.seen.numel() == 0:
            return False
        return self.training or self.range_state != RangeState.FIXED

    def _shown(self, batch: Batch) -> Tensor | None:
        """What a batch shows of its values: below a transform, if it wraps one tensor for one
        quantizer. Tensors without values (meta, fake) show nothing."""
        seen: Tensor | None = batch.seen
        if is_transformed():
            several = any(unwrapped(p) is None for p in self._parameters.values() if p is not None)
            seen = None if several else unwrapped(batch.seen)
            if seen is None and not self.has_range:
                raise InputError(
                    f"{self._name} has no range yet, and a forward under torch.func.vmap cannot "
                    f"make one. Run the model once on one sample first."
                )
        return None if seen is None or is_abstract(seen) else seen

    @torch.no_grad()
    def _see(self, batch: Batch) -> None:
        """Observes a batch that shows its values, and notes that it did."""
        compiles = torch.compiler.is_compiling()
        alone = nullcontext() if self.training or compiles else GROWTH
        with outside_of_transforms(), alone:
            state = self.range_state  # another thread may have been here
            if state == RangeState.FIXED and not self.training:
                return
            self.observe(batch)
            if self.training and state != RangeState.FIXED:
                joint = agreement()
                if joint is None:
                    self._take_first()
                elif joint.opens(self):
                    joint.meet(self, (batch, state))
                self._set_state(RangeState.FIXED)
            elif state == RangeState.MISSING:
                self._set_state(RangeState.GROWING)

    # Several processes ############################################################################

    def start_together(self, noted: Any) -> Conversation:
        r"""All take what the first process has that has seen a batch. A method that can do better
        says how, see :class:`~torch_geometric_qlr.quantizers.agreement.Opens`."""
        own = (*self._parameters.values(), *self._buffers.values())
        numbers = [self._own(number).detach() for number in own if number is not None]
        has_seen = self.calibrated.new_full((1,), noted is not None)
        rows = yield torch.cat([has_seen, *(number.reshape(-1) for number in numbers)])
        first = rows[rows[:, 0].argmax(), 1:].split([number.numel() for number in numbers])
        for number, new in zip(numbers, first, strict=True):
            number.data.copy_(new.view_as(number))
        self._set_state(RangeState.FIXED)

    @property
    def num_exchanged(self) -> int:
        """How many numbers processes exchange when its range moves in training."""
        return 0

    def grow_together(self) -> Conversation:
        r"""Of what evaluation batches have made of the parameters, the largest numbers of all
        processes. A method that can do better says how."""
        own = [*self._parameters.values(), *self._buffers.values()]
        numbers = [number for number in own if number is not None]
        told = torch.cat([number.detach().double().reshape(-1) for number in numbers])
        rows = yield told if self.has_range else torch.full_like(told, -torch.inf)
        most = rows.amax(0).split([number.numel() for number in numbers])
        if bool(most[0].isfinite().all()):
            for number, new in zip(numbers, most, strict=True):
                number.copy_(new.view_as(number))
            self._state = RangeState.MISSING  # as the buffer says

    def move_together(self, joint: Agreement) -> Conversation:
        r"""What is said at the end of a forward, by a method whose buffers move in training.

        Args:
            joint (Agreement): What was noted in the forward.
        """
        yield from ()

    @torch.no_grad()
    def _take_first(self) -> None:
        """Outside of a model, or compiled, all take what the first process has."""
        there_are_others, group = processes()
        if there_are_others:
            for parameter in self._parameters.values():
                if parameter is not None:
                    take_first(self._own(parameter), group)

    @staticmethod
    def _own(tensor: Tensor) -> Tensor:
        """The tensor itself, to be changed, also where a transform follows it."""
        found = unwrapped(tensor) if is_transformed() else tensor
        return tensor if found is None else found

    @staticmethod
    def _may_read(x: Tensor) -> bool:
        """Whether looking at values stalls no device and breaks no graph."""
        return x.is_cpu and not torch.compiler.is_compiling()

    def check_finite(self, *numbers: Tensor) -> None:
        """Refuses statistics of values that are none, where looking stalls no device."""
        if self._may_read(numbers[0]) and not math.isfinite(sum(map(_total, numbers))):
            raise InputError(
                f"{self._name}: the tensor to quantize holds NaN or Inf, so it has no range. Look "
                f"for a diverged loss or a division by zero before this layer; "
                f"torch.nan_to_num(x) replaces such values."
            )

    # What was saved ###############################################################################

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        numbers = [*self._parameters.items(), *self._buffers.items()]
        self.loaded_fresh = (
            strict and not self.is_frozen and not any(prefix + n in state_dict for n, _ in numbers)
        )
        if self.loaded_fresh:
            # A float checkpoint: its weights load, and ranges start from the next batch.
            self.reset_parameters()
            return
        own = {k: v for k, v in state_dict.items() if k.startswith(prefix)}
        for name, target in numbers:
            value = own.get(prefix + name)
            if not isinstance(value, Tensor) or target is None:
                continue
            if name == "calibrated":  # what has been saved is final
                own[prefix + name] = value.ne(0).long() * RangeState.FIXED
            elif value.dim() == 2 and value.numel() == target.numel():  # of an older version
                own[prefix + name] = value.reshape(target.shape)
        super()._load_from_state_dict(own, prefix, local_metadata, strict, *args, **kwargs)
        self._state = RangeState.MISSING  # as the buffer says


def _total(x: Tensor) -> float:
    """The sum, as a number of the host's."""
    return (x.sum() if x.dim() else x).item()
