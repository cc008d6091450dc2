"""Several model transforms as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from torch_geometric_qlr.errors import ConfigError

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
        is_list = isinstance(transforms, (tuple, list))
        if not is_list or not all(map(callable, transforms)):
            raise ConfigError(
                f"Compose: {transforms!r} is no list of transforms; pass callables from model to "
                f"model, such as [Quantize(bits=4)]."
            )
        self.transforms = list(transforms)

    def __call__(self, model: nn.Module) -> nn.Module:
        for transform in self.transforms:
            model = transform(model)
        return model

    def __repr__(self) -> str:
        return "Compose([\n" + "".join(f"  {t}\n" for t in self.transforms) + "])"
