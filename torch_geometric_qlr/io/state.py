"""From the bytes of a file to a ``state_dict``."""

from __future__ import annotations

import reprlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.io.header import Damage

__all__ = ["state_of", "tensor_of"]


def tensor_of(raw: Tensor, name: str, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    r"""A tensor of bytes as what it stands for.

    Args:
        raw (torch.Tensor): Its bytes, which nobody else has.
        name (str): Its name.
        dtype (torch.dtype): Its type.
        shape (list): Its shape.

    Raises:
        Damage: If they stand for nothing.
    """
    if dtype == torch.bool and bool((raw > 1).any()):
        raise Damage(f"the tensor {reprlib.repr(name)} has flags that are neither 0 nor 1")
    return raw.view(dtype).view(tuple(shape))


def state_of(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Any:
    r"""Tensors, those that are others' too, and the versions of the modules they belong to.

    Args:
        tensors (dict): By name.
        header (dict): Of the file.
    """
    state: Any = OrderedDict(tensors)
    for name, same in header["aliases"].items():
        state[name] = state[same]
    modules = {name.rpartition(".")[0] for name in state}
    state._metadata = OrderedDict(
        (name, {"version": header["versions"].get(name, 1)})
        for name in sorted(modules | set(header["versions"]))
    )
    return state
