"""Quantized layers, the table of what is known about each, and propagation layers.

Every registered convolution also exists by name: ``QuantGCNConv`` is what quantizing a ``GCNConv``
gives.
"""

from __future__ import annotations

from typing import Any

import torch_geometric.nn as _pyg_nn

from torch_geometric_qlr.layers.layer_spec import (
    REWRITTEN,
    EdgePreparation,
    EdgeUpdateFacts,
    ForwardFacts,
    HopChain,
    LayerSpec,
    MessageFacts,
    OwnTerm,
)
from torch_geometric_qlr.nn import propagation as _propagation
from torch_geometric_qlr.nn.layer import QuantLayer
from torch_geometric_qlr.nn.linear import QuantLinearLayer, QuantWeightLayer
from torch_geometric_qlr.nn.message_passing import QuantMessagePassing
from torch_geometric_qlr.nn.models import SMPGNN
from torch_geometric_qlr.nn.plan import Plan, PlanEntry
from torch_geometric_qlr.nn.propagation import EMP, SMP, SMPHistory
from torch_geometric_qlr.nn.registry import (
    conv_specs,
    find_spec,
    register_conv,
    register_linear,
)
from torch_geometric_qlr.nn.rewrite import class_for

__all__ = [
    "EMP",
    "EdgePreparation",
    "EdgeUpdateFacts",
    "ForwardFacts",
    "HopChain",
    "LayerSpec",
    "MessageFacts",
    "OwnTerm",
    "Plan",
    "PlanEntry",
    "QuantLayer",
    "QuantLinearLayer",
    "QuantMessagePassing",
    "QuantWeightLayer",
    "SMP",
    "SMPGNN",
    "SMPHistory",
    "conv_specs",
    "find_spec",
    "quant_conv_names",
    "register_conv",
    "register_linear",
]


def quant_conv_names() -> list[str]:
    r"""Names of the quantized convolutions of this module.

    Example:
        >>> "QuantGCNConv" in quant_conv_names()
        True
    """
    specs = conv_specs().items()
    return [f"Quant{n}" for n, s in specs if s.family in REWRITTEN and _float_conv(n) is not None]


def _float_conv(name: str) -> Any:
    return getattr(_pyg_nn, name, None) or getattr(_propagation, name, None)


def __getattr__(name: str) -> Any:
    base_name = name.removeprefix("Quant")
    spec = conv_specs().get(base_name)
    base = _float_conv(base_name)
    if name == base_name or spec is None or base is None or spec.family not in REWRITTEN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return class_for(base, spec)


def __dir__() -> list[str]:
    return sorted([*__all__, *quant_conv_names()])
