"""What a checkpoint knows of the quantizers it was made with, and what is said when it loads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from torch_geometric_qlr.errors import QLRWarning
from torch_geometric_qlr.quantizers import LearnedRangeQuant

__all__ = ["differences", "report_fresh_ranges", "save_description"]

_KEY = "qlr_quantizers"


def _describe(quantizers: nn.ModuleDict) -> dict[str, list[Any]]:
    """Bits and truncation of each quantizer, as plain values for the metadata of a state dict."""
    return {
        name: [q.config.bits, q.config.truncation if q.config.truncates else None]
        for name, q in _named(quantizers)
    }


def save_description(destination: Any, prefix: str, quantizers: nn.ModuleDict) -> None:
    """Notes the quantizers in the metadata of a state dict, which has no keys for them."""
    metadata = getattr(destination, "_metadata", None)
    if metadata is not None:
        metadata.setdefault(prefix[:-1], {})[_KEY] = _describe(quantizers)


def differences(
    local_metadata: dict[str, Any], prefix: str, quantizers: nn.ModuleDict
) -> Iterator[str]:
    """What differs between the quantizers of a checkpoint and those that it is loaded into."""
    saved, own = local_metadata.get(_KEY, {}), _describe(quantizers)
    for name, kind in own.items():
        if name in saved and saved[name] != kind:
            yield (
                f"{prefix}quantizers.{name}: the checkpoint was made with {_shown(saved[name])}, "
                f"this model has {_shown(kind)}, so its ranges mean something else. Quantize with "
                f"the config of the checkpoint, or load the weights alone: leave out the keys "
                f"that contain 'quantizers.'."
            )


def report_fresh_ranges(model: nn.Module, incompatible_keys: Any) -> None:
    """A hook after loading: names the quantizers that a float checkpoint left without a range."""
    fresh = [q.path for q in model.modules() if isinstance(q, LearnedRangeQuant) and q.loaded_fresh]
    if fresh:
        shown = ", ".join(fresh[:3]) + (", ..." if len(fresh) > 3 else "")
        warnings.warn(
            f"The checkpoint holds no ranges for {len(fresh)} quantizers ({shown}): it comes from "
            f"a float model. Their ranges start from the next batch.",
            QLRWarning,
            stacklevel=4,
        )


def _named(quantizers: nn.ModuleDict) -> Iterator[tuple[str, LearnedRangeQuant]]:
    return ((n, q) for n, q in quantizers.named_modules() if isinstance(q, LearnedRangeQuant))


def _shown(kind: list[Any]) -> str:
    bits, truncation = kind
    return f"{bits} bits" + (f" and truncation {truncation!r}" if truncation else "")
