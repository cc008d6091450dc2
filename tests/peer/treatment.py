"""What is done to a layer of PyG as its own test calls it for the first time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import torch_geometric_qlr as qlr
from torch_geometric_qlr.errors import LazyModuleError, NothingToQuantizeError
from torch_geometric_qlr.nn import QuantLayer
from torch_geometric_qlr.quantizers import LearnedRangeQuant


class Variant(NamedTuple):
    """How the layers of one run of a test compute."""

    name: str
    bits: int | None = None
    granularity: str = "tensor"
    converted: bool = False


VARIANTS = (
    Variant("float"),  # a test that fails here tells nothing about us
    Variant("quantized-8-node", 8, "node"),
    *(
        Variant(f"converted-{bits}-{granularity}", bits, granularity, converted=True)
        for bits in (8, 2)
        for granularity in ("tensor", "node")
    ),
)


class Comparison(NamedTuple):
    """Two tensors of a test that were not close: how far apart, and whether a layer gave both."""

    distance: float
    both_outputs: bool


@dataclass
class Rehearsed:
    """A layer of the rehearsal, and the widest ranges it had, also if the test has reset it since.
    The average that training leaves is for data of one kind, and a test may bring several."""

    module: nn.Module
    ranges: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def remember(self) -> None:
        for name, quantizer in _ranges(self.module):
            if bool(quantizer.calibrated):
                state = {key: value.clone() for key, value in quantizer.state_dict().items()}
                for key, widest in (("lo", torch.minimum), ("hi", torch.maximum)):
                    before = self.ranges.get(name, {}).get(key)
                    if before is not None and before.shape == state[key].shape:
                        state[key] = widest(before, state[key])
                self.ranges[name] = state


@dataclass
class Watch:
    """What happened in one test: which tensors layers returned, what was compared last."""

    variant: Variant
    depth: int = 0
    outputs: dict[int, Tensor] = field(default_factory=dict)
    comparison: Comparison | None = None
    rehearsing: bool = False
    rehearsed: list[Rehearsed] = field(default_factory=list)
    treated: int = 0

    def call(self, original: Callable[..., Any], module: nn.Module, *args: Any, **kw: Any) -> Any:
        """A call of any module; the outermost ones are a test's own."""
        if self.depth or not _has_layers_of_pyg(module):
            return original(module, *args, **kw)
        self.depth += 1
        try:
            self._treat(module, lambda: original(module, *args, **kw))
            out = original(module, *args, **kw)
        finally:
            self.depth -= 1
            for layer in self.rehearsed if self.rehearsing else ():
                layer.remember()
        self.outputs.update((id(tensor), tensor) for tensor in _tensors(out))
        return out

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Inside, layers are quantized and see all the data of a test, whatever it asserts."""
        self.rehearsing = True
        try:
            yield
        finally:
            self.rehearsing, self.depth, self.treated = False, 0, 0
            self.outputs.clear()

    def _treat(self, module: nn.Module, call: Callable[[], Any]) -> None:
        """Quantizes the whole module in place, with the ranges of its twin in the rehearsal."""
        module = getattr(module, "_orig_mod", module)
        if self.variant.bits is None:
            return
        if any(isinstance(m, QuantLayer) for m in module.modules()):
            if self.rehearsing:
                self._observe(module, True)
            return
        with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._quantize(module)
            except LazyModuleError:
                call()
                self._quantize(module)
            except NothingToQuantizeError:
                return
            self.treated += 1
            if self.rehearsing:
                self.rehearsed.append(Rehearsed(module))
                return
            self._take_ranges(module, call)
            if self.variant.converted:
                qlr.convert_(module.eval())
        self._observe(module, False)

    def _take_ranges(self, module: nn.Module, call: Callable[[], Any]) -> None:
        if self.treated > len(self.rehearsed):
            call()
            return
        known = self.rehearsed[self.treated - 1].ranges
        for name, quantizer in _ranges(module):
            if name in known:
                quantizer.load_state_dict(known[name])

    @staticmethod
    def _observe(module: nn.Module, on: bool) -> None:
        """A range that moves from call to call is no fault, so it does in the rehearsal alone."""
        for _, quantizer in _ranges(module):
            quantizer.train(on)

    def _quantize(self, module: nn.Module) -> None:
        node = self.variant.granularity == "node"
        roles = ("input", "activation", "message") if node else ("input",)
        granularity = dict.fromkeys(roles, self.variant.granularity)
        qlr.quantize_(module, bits=self.variant.bits, granularity=granularity)

    def note(self, a: Any, b: Any) -> None:
        """Remembers how far two tensors are apart that should be equal."""
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape:
            return
        first, second = (t.detach().to_dense().double() for t in (a, b))
        scale = max(float(t.abs().max()) if t.numel() else 0.0 for t in (first, second))
        distance = float((first - second).abs().max()) / (scale or 1.0) if first.numel() else 0.0
        self.comparison = Comparison(distance, self._is_output(a) and self._is_output(b))

    def _is_output(self, tensor: Tensor) -> bool:
        base = tensor if tensor._base is None else tensor._base
        return id(base) in self.outputs


@contextmanager
def watching(variant: Variant) -> Iterator[Watch]:
    """Inside, every layer is treated at its first call, and every comparison is remembered."""
    watch = Watch(variant)
    original, allclose = nn.Module.__call__, torch.allclose

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return watch.call(original, module, *args, **kwargs)

    def compare(a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> bool:
        close = watch.rehearsing or allclose(a, b, *args, **kwargs)
        if not close:
            watch.note(a, b)
        return close

    nn.Module.__call__, torch.allclose = call, compare  # type: ignore[method-assign]
    try:
        yield watch
    finally:
        nn.Module.__call__, torch.allclose = original, allclose  # type: ignore[method-assign]


def _ranges(module: nn.Module) -> Iterator[tuple[str, LearnedRangeQuant]]:
    return ((n, m) for n, m in module.named_modules() if isinstance(m, LearnedRangeQuant))


def _has_layers_of_pyg(module: nn.Module) -> bool:
    return any(
        type(m).__module__.startswith("torch_geometric.nn") for m in module.modules()
    ) or any(hasattr(m, "propagate") for m in module.modules())


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, dict):
        for value in out.values():
            yield from _tensors(value)
    elif isinstance(out, (tuple, list)):
        for value in out:
            yield from _tensors(value)
