"""The gain of a model's features, folded into the weight that they meet first.

Weak features (a row-normalised bag of words has rows of norm 0.1 to 0.3) give that weight small
gradients. Optimizers that divide by the size of a gradient then let weight decay win, and few bits
make the gradient smaller still: training stalls for many epochs. With

.. math::
    \\mathbf{X} \\mathbf{W} = \\mathbf{X} \\, (g \\mathbf{V}), \\qquad
    g = 2^{\\max(0, \\lfloor -\\log_2 r \\rceil)},

where :math:`r` is the mean norm of the rows that are not zero, the layer learns :math:`\\mathbf{V}`
as it would from features of norm one. A power of two changes no digit of a number, so the model
computes what it did before, and the gain disappears in the range of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_geometric_qlr.layers.state import GAIN, OPEN_GAIN, STATE, LayerState, state_of
from torch_geometric_qlr.quantizers.agreement import Conversation, Opens, agreement
from torch_geometric_qlr.quantizers.processes import processes, take_first

__all__ = [
    "OpenGain",
    "add_gain",
    "find_gain",
    "fold_gain",
    "folded",
    "lacks_gain",
    "take_weight",
]

_LARGEST = 20  # as a power of two


def add_gain(state: LayerState) -> None:
    r"""Gives a layer a gain, which the first training batch finds.

    Args:
        state (LayerState): The layer's.
    """
    state._buffers[GAIN] = torch.tensor(OPEN_GAIN)


def folded(state: LayerState, name: str, weight: Tensor) -> Tensor:
    r"""The weight that a layer multiplies by: its parameter times the gain, if it has one.

    Args:
        state (LayerState): The layer's.
        name (str): The parameter.
        weight (torch.Tensor): What is stored under the name.
    """
    gain = state._buffers.get(GAIN)
    return weight if gain is None or name != "weight" else weight * gain.abs()


def fold_gain(layer: Any) -> None:
    r"""Makes the parameter, if it is still there, what the layer multiplies by; the gain is gone.

    Args:
        layer (torch.nn.Module): The layer.
    """
    state, weight = state_of(layer), layer._parameters.get("weight")
    if GAIN in state._buffers:
        if weight is not None:
            weight.data = folded(state, "weight", weight.data)
        del state._buffers[GAIN]


def take_weight(state: LayerState, loaded: Mapping[str, Any], prefix: str) -> None:
    r"""Prepares for a weight that is loaded. One without a gain is whole: it comes from a float
    model, which may be trained yet, or from a state that is older than gains.

    Args:
        state (LayerState): The layer's.
        loaded (dict): The state that is loaded.
        prefix (str): What the names of the layer's own entries begin with.
    """
    gain = state._buffers.get(GAIN)
    if gain is not None and prefix + GAIN not in loaded:
        is_older = any(key.startswith(prefix) for key in loaded)
        gain.fill_(1.0 if is_older else OPEN_GAIN)


def lacks_gain(module: nn.Module) -> bool:
    r"""Whether training is still to find the gain of a layer.

    Args:
        module (torch.nn.Module): Any module.
    """
    weight = module._parameters.get("weight")
    learns = weight is not None and weight.requires_grad
    return learns and STATE in module._modules and state_of(module).lacks_gain()


class OpenGain(Opens):
    r"""One gain for the batches of all processes.

    Args:
        layer (torch.nn.Module): Whose it is.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def start_together(self, noted: Tensor | None) -> Conversation:
        nothing = torch.zeros(2, device=state_of(self.layer).get_buffer(GAIN).device)
        rows = yield nothing if noted is None else noted
        _take_gain(self.layer, _gain_for(rows.sum(0).float()))


def find_gain(layer: Any, row_norms: Tensor) -> None:
    r"""Takes the gain from a training batch, once, and divides the parameter by it. Batches without
    a row that is not zero leave it to the next one.

    Args:
        layer (torch.nn.Module): The layer.
        row_norms (torch.Tensor): Euclidean norms of the rows of its input.
    """
    with torch.no_grad():
        norms, joint = row_norms.float(), agreement()
        sums = torch.stack([norms.sum(), (norms > 0).sum()])
        if joint is None:
            gain, (there_are_others, group) = _gain_for(sums), processes()
            if there_are_others:  # outside of a model, or compiled
                take_first(gain, group)
            _take_gain(layer, gain)
        elif joint.opens(state_of(layer)):
            joint.meet(state_of(layer), sums)


def _take_gain(layer: Any, gain: Tensor) -> None:
    state, weight = state_of(layer), layer._parameters["weight"]
    if gain.is_cpu and not bool(gain.isfinite()):
        return
    gain = torch.where(gain.isfinite(), gain, 1.0)
    # Without a trace, for what was computed from the parameter before is still right.
    weight.data.div_(gain.to(weight.dtype))
    state.get_buffer(GAIN).copy_(gain)
    state.gain_is_open = False


def _gain_for(sums: Tensor) -> Tensor:
    """For the sum of the norms of rows, and the number of those that are not zero."""
    mean = sums[0] / sums[1]
    return torch.exp2(torch.round(-torch.log2(mean)).clamp(0.0, _LARGEST))
