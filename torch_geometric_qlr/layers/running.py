"""Which quantized model is running in this thread, from its call to its return.

The hooks sit on the model that was quantized or converted. A call that ended in an exception no
hook is told of (Ctrl-C) is recognised by its frame, which is not on the stack any more.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

import torch
from torch import nn

from torch_geometric_qlr.errors import UnsupportedLayerError
from torch_geometric_qlr.layers.input_gain import OpenGain, lacks_gain
from torch_geometric_qlr.layers.state import LayerState, float_class, state_of
from torch_geometric_qlr.quantizers import Quantizer
from torch_geometric_qlr.quantizers.agreement import Agreement, Opens, converse, set_agreement
from torch_geometric_qlr.quantizers.processes import processes
from torch_geometric_qlr.quantizers.torch_state import is_recomputing, is_transformed
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["CHAINS", "RunningModel", "follow", "is_own_hook", "running_model", "runs_while_traced"]

#: The attribute of a converted model that holds its `Chains`.
CHAINS = "_qlr_chains"


class RunningModel:
    r"""One call of a quantized or converted model.

    Args:
        model (torch.nn.Module): The model.
        frame (FrameType): Where it was called.
        arguments (tuple): With what.
    """

    def __init__(self, model: nn.Module, frame: FrameType, arguments: Any) -> None:
        self.model, self.frame, self.arguments = model, frame, arguments
        #: Weights that the model reads itself, by layer and name.
        self.weights: dict[Any, dict[str, Any]] = {}
        #: What a converted model keeps of its call, see `codes/chains.py`.
        self.scope: Any = None
        #: What it has to settle with other processes, see `quantizers/agreement.py`.
        self.agreement: Agreement | None = None


class _Running(threading.local):
    def __init__(self) -> None:
        self.models: list[RunningModel] = []


_RUNNING = _Running()


def running_model() -> RunningModel | None:
    """The innermost quantized model that runs in this thread."""
    if torch.compiler.is_compiling():
        return None
    models = _RUNNING.models
    while models:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not models[-1].frame:
            frame = frame.f_back
        if frame is not None:
            return models[-1]
        models.pop()
    return None


@torch.compiler.assume_constant_result
def runs_while_traced() -> bool:
    """Whether a part of a model is compiled that is called from the rest of it."""
    return bool(_RUNNING.models)


def follow(model: nn.Module) -> None:
    r"""Notes from now on when a model runs.

    Args:
        model (torch.nn.Module): A quantized or converted model.
    """
    if not any(map(is_own_hook, model._forward_pre_hooks.values())):
        model.register_forward_pre_hook(_enter, with_kwargs=True)
        model.register_forward_hook(_leave, always_call=True)


def is_own_hook(hook: Any) -> bool:
    """Whether a hook is one of this module's."""
    return hook is _enter or hook is _leave


def _enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
    if torch.compiler.is_compiling():
        for state in _states(module):
            state.begin()
        return None
    running_model()  # forgets calls that were interrupted
    running = RunningModel(module, _calling_frame(), (args, kwargs))
    if not _RUNNING.models:
        running.agreement = _agreement_for(module)
        set_agreement(running.agreement)
    _RUNNING.models.append(running)
    chains = module.__dict__.get(CHAINS)
    if chains is None:
        return _with_values(args), _with_values(kwargs)
    running.scope, args, kwargs = chains.enter(module, args, kwargs)
    return args, kwargs


def _agreement_for(model: nn.Module) -> Agreement | None:
    """For a forward that moves ranges, if other processes run it, too."""
    if not model.training or is_recomputing() or is_transformed():
        return None
    there_are_others, group = processes()
    if not there_are_others:
        return None
    _check_whole(model)
    places: dict[Any, Opens | int] = {}
    device = None
    for module in model.modules():  # a layer's gain comes before what is inside of the layer
        if lacks_gain(module):
            places[state_of(module)] = OpenGain(module)
        elif isinstance(module, Quantizer) and not module.is_frozen:
            device = device or module.device
            if not module.is_fixed:
                places[module] = module
            elif module.num_exchanged:
                places[module] = module.num_exchanged
    return None if device is None else Agreement(group, places, device)


def _check_whole(model: nn.Module) -> None:
    """Refuses parameters that are cut into pieces."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and any(isinstance(module, fsdp.FSDPModule) for module in model.modules()):
        raise UnsupportedLayerError(
            f"{float_class(model).__name__}: fully_shard cuts the parameters of a quantized model "
            f"into pieces, while its ranges and its gain are found by whole ones, and leaves the "
            f"gradients of those that it ignores apart. Train it in DistributedDataParallel, or "
            f"shard the float parts of your model and quantize the others."
        )


def _settle(model: nn.Module, joint: Agreement) -> None:
    """All processes come to the same ranges."""
    joint.end()
    quantizers = (module for module in model.modules() if isinstance(module, Quantizer))
    with torch.no_grad():
        converse((q.move_together(joint) for q in quantizers if q.is_fixed), joint.group)


def _with_values(given: Any) -> Any:
    """Packed features as floats: a quantized model rounds its features itself."""
    if isinstance(given, PackedTensor):
        return given.dequantize()
    # What holds none stays the same object, which the model may write to.
    if type(given) in (tuple, list):
        values = [_with_values(v) for v in given]
        return given if _same(values, given) else type(given)(values)
    if type(given) is dict:
        named = {k: _with_values(v) for k, v in given.items()}
        return given if _same(named.values(), given.values()) else named
    return given


def _same(left: Iterable[Any], right: Iterable[Any]) -> bool:
    return all(a is b for a, b in zip(left, right, strict=True))


def _states(model: nn.Module) -> list[LayerState]:
    """While a quantized model is traced its layers note themselves that it runs. Those of a
    converted one show the same weights whether it does, and to ask all of them takes long."""
    if CHAINS in model.__dict__:
        return []
    return [module for module in model.modules() if isinstance(module, LayerState)]


def _calling_frame() -> FrameType:
    """The frame of torch's own code that calls the module, and its hooks whatever happens."""
    frame: Any = sys._getframe(2)
    return frame.f_back if frame.f_code.co_name == "inner" else frame


def _leave(module: nn.Module, args: Any, out: Any) -> Any:
    if torch.compiler.is_compiling():
        for state in _states(module):
            state.end(None)
        return None
    running = running_model()
    if running is None or running.model is not module:
        return None
    try:
        if running.agreement is not None and not _has_failed(out):
            _settle(module, running.agreement)
        return None if running.scope is None else running.scope.leave(out)
    finally:
        _RUNNING.models.pop()
        if running.agreement is not None:
            set_agreement(None)


def _has_failed(out: Any) -> bool:
    """Whether torch calls hooks because the forward has raised an exception."""
    return out is None and sys.exc_info()[0] is not None
