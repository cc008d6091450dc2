"""Several model transforms as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

__all__ = ["Compose"]


class Compose:
    r"""Applies model transforms one after the other.

    Args:
        transforms (list): Callables from model to model.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> transform = qlr.transforms.Compose([qlr.transforms.Quantize(bits=4)])
        >>> transform
        Compose([
          Quantize(bits=4)
        ])
        >>> type(transform(torch.nn.Linear(4, 2))).__name__
        'QuantLinear'
    """

    def __init__(self, transforms: Sequence[Callable[[nn.Module], nn.Module]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, model: nn.Module) -> nn.Module:
        for transform in self.transforms:
            model = transform(model)
        return model

    def __repr__(self) -> str:
        return "Compose([\n" + "".join(f"  {t}\n" for t in self.transforms) + "])"
