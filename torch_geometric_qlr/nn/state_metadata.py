"""What is said when the state of a quantized model loads, and where it keeps its quantizers."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from torch_geometric_qlr.errors import QLRWarning
from torch_geometric_qlr.layers.state import STATE
from torch_geometric_qlr.quantizers import Quantizer

__all__ = ["QUANTIZERS", "report_fresh_ranges"]

#: The child of a layer that holds its quantizers: a part of their keys in every ``state_dict``.
QUANTIZERS = STATE


def report_fresh_ranges(model: nn.Module, incompatible_keys: Any) -> None:
    """A hook after loading: names the quantizers that a float checkpoint left without a range."""
    fresh = [q.path for q in model.modules() if isinstance(q, Quantizer) and q.loaded_fresh]
    if fresh:
        shown = ", ".join(fresh[:3]) + (", ..." if len(fresh) > 3 else "")
        warnings.warn(
            f"The checkpoint holds no ranges for {len(fresh)} quantizers ({shown}): it comes from "
            f"a float model. Their ranges start from the next batch.",
            QLRWarning,
            stacklevel=4,
        )
