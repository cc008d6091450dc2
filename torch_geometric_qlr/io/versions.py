"""Files of older versions, in the terms of this one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any

from torch import nn

from torch_geometric_qlr.nn.state_metadata import QUANTIZERS
from torch_geometric_qlr.quantizers import Quantizer
from torch_geometric_qlr.quantizers.signature import KEY as SIGNATURE

__all__ = ["complete_state", "renamed_state"]

#: Where version 1 kept the quantizers of a layer.
_OLD_QUANTIZERS = "quantizers"


def renamed_state(state: Any, layers: Collection[str]) -> Any:
    r"""A state of version 1 with the names of now.

    Args:
        state (dict): The state of a file.
        layers (list): Names of the quantized layers.
    """
    out: Any = OrderedDict((_renamed(name, layers), t) for name, t in state.items())
    out._metadata = OrderedDict((_renamed(n, layers), m) for n, m in state._metadata.items())
    return out


def _renamed(name: str, layers: Collection[str]) -> str:
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part == _OLD_QUANTIZERS and ".".join(parts[:i]) in layers:
            return ".".join([*parts[:i], QUANTIZERS, *parts[i + 1 :]])
    return name


def complete_state(state: dict[str, Any], model: nn.Module) -> None:
    r"""Gives a state of version 1 what quantizers save now, in the shape and type of now.

    Args:
        state (dict): The state of a file, with the names of now.
        model (torch.nn.Module): The model that was built from its header.
    """
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Quantizer):
            for key, own in module.state_dict(prefix=f"{name}.").items():
                if key.endswith(SIGNATURE):
                    state.setdefault(key, own)
                elif key in state and state[key].numel() == own.numel():
                    state[key] = state[key].reshape(own.shape).to(own.dtype)
