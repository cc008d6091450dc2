"""Joins schemas and implementations: on a CPU the kernels, if there are any, else the reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from torch_geometric_qlr.errors import QLRWarning
from torch_geometric_qlr.ops import gradients
from torch_geometric_qlr.ops.backend import cpu_isa
from torch_geometric_qlr.ops.cpu import KERNELS
from torch_geometric_qlr.ops.cpu_args import Unsupported
from torch_geometric_qlr.ops.reference_impl import IMPLEMENTATIONS
from torch_geometric_qlr.ops.schemas import LIBRARY, NAMES, by_name

__all__: list[str] = []


def _on_cpu(name: str) -> Callable[..., Any]:
    kernel = by_name(name, KERNELS[name])
    reference = by_name(name, IMPLEMENTATIONS[name])

    def call(*args: Any, **kwargs: Any) -> Any:
        isa = cpu_isa()
        if isa is not None:
            try:
                return kernel(*args, isa=isa, **kwargs)
            except Unsupported as error:
                _tell(name, str(error))
        return reference(*args, **kwargs)

    return call


_TOLD: set[tuple[str, str]] = set()


def _tell(name: str, reason: str) -> None:
    """Says once per process that an op is slow, and why."""
    if reason and (name, reason) not in _TOLD:
        _TOLD.add((name, reason))
        warnings.warn(
            f"torch.ops.qlr.{name} has no kernel for {reason}: its slow reference computes "
            f"instead. (Said once.)",
            QLRWarning,
            stacklevel=4,
        )


for _name in NAMES:
    LIBRARY.impl(_name, _on_cpu(_name), "CPU")
    LIBRARY.impl(_name, by_name(_name, IMPLEMENTATIONS[_name]), "CompositeExplicitAutograd")


torch.library.register_autograd(
    "qlr::fake_quantize",
    gradients.backward,
    setup_context=gradients.save_for_backward,
    lib=LIBRARY,
)
torch.library.register_autograd(
    "qlr::fake_quantize_backward",
    gradients.second,
    setup_context=gradients.save_for_second,
    lib=LIBRARY,
)
