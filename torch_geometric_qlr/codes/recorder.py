"""The first run of a converted model: who reads the results of its layers.

While it records, a layer hands out its result with all its floats, as a tensor that notes what is
done with it. Only if that was a few operations a kernel can take over, then one quantizer, and
nothing else at all (no other operation, no other library, no container or attribute in which it
outlives the call), the result is a promise in later runs. Whatever is not recognised decides
against it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_geometric_qlr.codes.promise import ChainPlan
from torch_geometric_qlr.codes.stage import NO_EPILOGUE, Epilogue, Stage
from torch_geometric_qlr.codes.steps import (
    HARMLESS,
    IN_PLACE,
    Step,
    function_name,
    recognise,
    with_step,
)

__all__ = ["Recorder", "Watched"]


class _Place:
    """Where a watched tensor stands: how many steps behind which result."""

    def __init__(self, result: _Result, position: int, epilogue: Epilogue) -> None:
        self.result, self.position, self.epilogue = result, position, epilogue


class _Result:
    """What was seen of one result of a layer."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.is_open = False
        #: What follows at each position: a step, or at last a quantizer.
        self.next: dict[int, Any] = {}
        self.tensors: list[weakref.ref[Watched]] = []

    def note(self, position: int, what: Any) -> bool:
        """Notes what follows; two different readers are one too many."""
        if position in self.next and not self._same(self.next[position], what):
            self.is_open = True
        self.next[position] = what
        return not self.is_open

    @staticmethod
    def _same(a: Any, b: Any) -> bool:
        return a is b and not isinstance(a, Step)

    def plan(self) -> ChainPlan | None:
        if self.is_open or any(ref() is not None for ref in self.tensors):
            return None
        steps: list[Step] = []
        while isinstance(self.next.get(len(steps)), Step):
            steps.append(self.next[len(steps)])
        quantizer = self.next.get(len(steps))
        if quantizer is None or quantizer.output() is None:
            return None
        return ChainPlan(tuple(steps), quantizer)


class Recorder:
    """Watches the results of the layers during one call of a model."""

    def __init__(self) -> None:
        self._results: dict[Any, _Result] = {}
        self.is_over = False

    def watch(self, key: Any, stage: Stage, value: Tensor) -> Tensor:
        r"""The result of a layer, which notes from now on what is done with it.

        Args:
            key (Any): Which result of which layer.
            stage (Stage): Its kernel.
            value (torch.Tensor): Its floats.
        """
        result = self._results[key] = _Result(stage)
        return _watched(value, _Place(result, 0, NO_EPILOGUE))

    def read(self, x: Any, quantizer: Any) -> None:
        """A quantizer reads a tensor as a whole."""
        if isinstance(x, Watched) and (place := x._qlr_place) is not None:
            is_whole = tuple(x.shape) == place.result.stage.shape
            if is_whole:
                place.result.note(place.position, quantizer)
            else:
                place.result.is_open = True

    def finish(self) -> dict[Any, ChainPlan | None]:
        """What was found out. Tensors that live on become ordinary ones."""
        self.is_over = True
        plans = {key: result.plan() for key, result in self._results.items()}
        for result in self._results.values():
            for ref in result.tensors:
                tensor = ref()
                if tensor is not None:
                    _release(tensor)
        return plans


class Watched(Tensor):
    """A tensor with memory of its own, like any other, that notes what is done with it."""

    _qlr_place: _Place | None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        watched = list(_all_watched((args, kwargs)))
        with torch._C.DisableTorchFunctionSubclass(), _Operations(watched) as operations:
            out = func(*args, **kwargs)
        name = function_name(func)
        for x in watched:
            place = x._qlr_place
            if place is None or id(x) in operations.seen or name in HARMLESS:
                continue
            # As contiguous(), to(), and dropout in evaluation do.
            returns_itself = out is x and not name.endswith("_")
            if not returns_itself:
                place.result.is_open = True
        return operations.watch(out)


class _Operations(TorchDispatchMode):
    """The operations inside one call of a function."""

    def __init__(self, watched: list[Watched]) -> None:
        super().__init__()
        self.watched = watched
        self.seen: set[int] = set()
        self.places: list[tuple[Tensor, _Place]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        inside = {id(x) for x in _all_watched((args, kwargs))}
        taken = False
        for x in self.watched:
            if id(x) not in inside:
                continue
            self.seen.add(id(x))
            place = x._qlr_place
            if place is None:
                continue
            step = None if taken or kwargs or place.result.is_open else _step(func, args, x, place)
            if step is None:
                place.result.is_open = True
                continue
            after = with_step(place.result.stage, place.epilogue, step)
            assert after is not None
            place.result.note(place.position, step)
            new = _Place(place.result, place.position + 1, after)
            taken = True
            if func in IN_PLACE:
                x._qlr_place = new
            else:
                self.places.append((out[0] if isinstance(out, tuple) else out, new))
        return out

    def watch(self, out: Any) -> Any:
        """The result of the function, watched where it is the result of a step."""
        if isinstance(out, Tensor):
            for tensor, place in self.places:
                if out is tensor:
                    return _watched(out, place)
            if isinstance(out, Watched) and out._qlr_place is None:
                out.__class__ = Tensor  # type: ignore[assignment]
        return out


def _step(func: Any, args: tuple[Any, ...], x: Watched, place: _Place) -> Step | None:
    stage = place.result.stage
    step = recognise(func, args, x, tuple(x.shape) == stage.shape)
    if step is None or with_step(stage, place.epilogue, step) is None:
        return None
    return step


def _watched(value: Tensor, place: _Place) -> Watched:
    out: Watched = value.as_subclass(Watched)
    out._qlr_place = place
    place.result.tensors.append(weakref.ref(out))
    return out


def _release(x: Watched) -> None:
    x._qlr_place = None
    x.__class__ = Tensor  # type: ignore[assignment]


def _all_watched(value: Any) -> Iterator[Watched]:
    if isinstance(value, Watched):
        if getattr(value, "_qlr_place", None) is not None:
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _all_watched(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _all_watched(item)
