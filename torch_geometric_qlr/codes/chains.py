"""What a converted model has found out about the results of its layers, and each call of it."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from torch_geometric_qlr.codes.promise import (
    Chain,
    ChainPlan,
    Promise,
    promised_codes,
    realised,
)
from torch_geometric_qlr.codes.readings import Readings
from torch_geometric_qlr.codes.recorder import Recorder, Watched
from torch_geometric_qlr.codes.stage import Stage
from torch_geometric_qlr.layers.running import is_own_hook, running_model
from torch_geometric_qlr.layers.state import LayerState
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["Chains", "codes_of", "handed_out", "may_wait", "plain", "rows_of", "with_promise"]

#: Which result: the layer, and the how manieth of this call of the model.
Key = tuple[Any, int]


class Chains:
    r"""Which results of a converted model are read by one quantizer only, found out when it runs.

    Args:
        fuse (bool): Whether to make use of it.
    """

    #: So often a model that goes new ways is looked at again.
    max_recordings = 8
    #: Results of fewer numbers are computed at once: to pass over the memory of a small one takes
    #: less time than to follow what is done with it (measured on one core).
    smallest = 1 << 18

    def __init__(self, fuse: bool = True) -> None:
        self.fuse = fuse
        self.plans: dict[Key, ChainPlan | None] = {}
        self.recordings = 0
        self.is_complete = False

    def enter(self, model: nn.Module, args: Any, kwargs: Any) -> tuple[_Scope, Any, Any]:
        """A call of the model begins."""
        return _Scope(self, model), with_promise(args), with_promise(kwargs)

    # A copy of a model has other layers.
    def __deepcopy__(self, memo: dict[int, Any]) -> Chains:
        return Chains(self.fuse)

    def __reduce__(self) -> tuple[Any, ...]:
        return Chains, (self.fuse,)


class _Scope:
    """One call of a converted model."""

    def __init__(self, chains: Chains, model: nn.Module) -> None:
        self.chains, self.model = chains, model
        self.recorder: Recorder | None = None
        self.counts: dict[Any, int] = {}
        #: A promise itself cannot become an ordinary tensor while something refers to it weakly.
        self.started: list[weakref.ref[Chain]] = []
        self.knows_all = True
        self._fuses: bool | None = None

    @property
    def fuses(self) -> bool:
        """Whether results may wait, found out when the first one could."""
        if self._fuses is None:
            chains = self.chains
            self._fuses = chains.fuse and not _has_foreign_hooks(self.model)
            if self._fuses and not chains.is_complete and chains.recordings < chains.max_recordings:
                self.recorder = Recorder()
        return self._fuses

    def key(self, owner: Any) -> Key:
        count = self.counts[owner] = self.counts.get(owner, -1) + 1
        return owner, count

    def leave(self, out: Any) -> Any:
        """The call ends: nothing that is not computed outlives it."""
        out = realised(out)
        chains = self.chains
        if self.recorder is not None:
            if sys.exc_info()[0] is None:
                found = self.recorder.finish()
                chains.plans = {**found, **chains.plans}
                chains.recordings += 1
                chains.is_complete = True
            else:
                self.recorder.finish()
        elif not self.knows_all:
            chains.is_complete = False
        left = [chain for ref in self.started if (chain := ref()) is not None]
        if left:
            self._explain_failure(left)
            for chain in left:
                realised(list(_promises_of(chain)))  # whoever keeps one has a tensor from now on
        return out

    def _explain_failure(self, left: list[Chain]) -> None:
        """Who reads memory past torch's functions cannot be given floats; says what can be done."""
        error = sys.exc_info()[1]
        if isinstance(error, RuntimeError) and "data pointer" in str(error):
            self.chains.fuse = False
            layers = sorted({chain.stage.owner.path for chain in left})
            error.args = (
                f"{error.args[0]}\n\nThe model read the memory of a result that it did not read "
                f"when it first ran (of {' or '.join(layers)}). From the next call on every result "
                f"is computed at once, as after qlr.convert(model, fuse=False).",
            )


def _promises_of(chain: Chain) -> Iterator[Promise]:
    """The promises that are left of a chain after the call: hardly ever any."""
    for holder in gc.get_referrers(chain):
        owners = gc.get_referrers(holder) if isinstance(holder, dict) else [holder]
        yield from (x for x in owners if isinstance(x, Promise) and x._qlr_promise is chain)


def _has_foreign_hooks(model: nn.Module) -> bool:
    """Whether somebody looks at what goes into modules or comes out of them."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    left = [model]
    while left:
        module = left.pop()
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            if hooks and not all(map(is_own_hook, hooks.values())):
                return True
        left += [m for m in module._modules.values() if m is not None and type(m) is not LayerState]
    return False


def with_promise(value: Any) -> Any:
    """Packed features as tensors, which any model can pass on."""
    if isinstance(value, (PackedTensor, Readings)):
        return Promise(value, tuple(value.shape), value.device)
    if type(value) in (tuple, list):
        return type(value)(with_promise(v) for v in value)
    if type(value) is dict:
        return {k: with_promise(v) for k, v in value.items()}
    return value


def rows_of(x: Any, rows: slice) -> Any:
    r"""Some rows of what a layer may be given as features, packed as they are.

    Args:
        x (torch.Tensor): The features, or a promise of them.
        rows (slice): Which.
    """
    made_of = x._qlr_promise if isinstance(x, Promise) else x
    if isinstance(made_of, Readings):
        return with_promise(made_of.rows(rows))
    return with_promise(made_of[rows]) if isinstance(made_of, PackedTensor) else x[rows]


def _scope() -> _Scope | None:
    running = running_model()
    return None if running is None else running.scope


def may_wait(rows: int, cols: int) -> bool:
    r"""Whether a result of this size may be computed later than it is handed out.

    Args:
        rows, cols (int): Its shape.
    """
    return not torch.compiler.is_compiling() and rows * cols >= Chains.smallest


def handed_out(stage: Stage) -> Tensor:
    r"""The result of a layer as the code around it sees it.

    Args:
        stage (Stage): The kernel that computes it.
    """
    if not may_wait(*stage.shape):
        return stage.value()
    scope = _scope()
    if scope is None or not scope.fuses:
        return stage.value()
    key = scope.key(stage.owner)
    if scope.recorder is not None:
        value = stage.value()
        return scope.recorder.watch(key, stage, value) if key not in scope.chains.plans else value
    plan = scope.chains.plans.get(key)
    if plan is not None and not plan.is_on(stage.device):
        del scope.chains.plans[key]
    if key not in scope.chains.plans:
        scope.knows_all = False
        return stage.value()
    epilogue = None if plan is None else plan.epilogue(stage)
    if plan is None or epilogue is None:
        return stage.value()

    def leave() -> None:
        scope.chains.plans[key] = None

    chain = Chain(plan, stage, epilogue, leave)
    scope.started.append(weakref.ref(chain))
    return Promise(chain, stage.shape, stage.device)


def codes_of(x: Any, quantizer: Any) -> PackedTensor:
    r"""The codes of features for the quantizer that reads them.

    Args:
        x (torch.Tensor or PackedTensor): The features; packed ones are taken as they are.
        quantizer (Quantizer): The reader.
    """
    if isinstance(x, PackedTensor):
        return x
    if isinstance(x, Promise):
        codes = promised_codes(x, quantizer)
        if codes is not None:
            return codes
    elif isinstance(x, Watched):
        scope = _scope()
        if scope is not None and scope.recorder is not None:
            scope.recorder.read(x, quantizer)
    out: PackedTensor = quantizer.pack(plain(x))
    return out


def plain(x: Any) -> Any:
    """A tensor for code of this package: computed, and not watched."""
    if isinstance(x, Watched):
        return x.as_subclass(Tensor)
    return realised(x)
