"""The methods that make codes, by the name with which a config asks for one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.quantizers.base import Quantizer

__all__ = ["METHODS", "build_quantizer", "check_method", "find_method"]

#: Name -> file and class. A method is added with its file, and a row here.
METHODS: Mapping[str, str] = MappingProxyType(
    {
        "learned_range": "learned_range.LearnedRangeQuant",
        "lsq": "lsq.LearnedStepQuant",
    }
)


def find_method(name: str) -> type[Quantizer]:
    r"""The class of a method.

    Args:
        name (str): Its name.

    Raises:
        ConfigError: If there is none of that name.

    Example:
        >>> find_method("learned_range").__name__
        'LearnedRangeQuant'
    """
    if name not in METHODS:
        listed = ", ".join(map(repr, METHODS))
        raise ConfigError(f"method={name!r} is unknown; choose one of {listed}.")
    file, _, cls = METHODS[name].partition(".")
    found: type[Quantizer] = getattr(import_module(f"{__package__}.{file}"), cls)
    return found


def check_method(config: QuantizerConfig, path: str) -> None:
    r"""Refuses a quantizer that cannot be built, before anything is.

    Args:
        config (QuantizerConfig): What is asked for.
        path (str): Where it would sit, for the message.

    Raises:
        ConfigError: If there is no such method, or if it cannot do what the config asks for.

    Example:
        >>> check_method(QuantizerConfig(bits=4), "convs.0.lin.weight")
    """
    try:
        refusal = find_method(config.method).refusal(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if refusal:
        raise ConfigError(f"{path}: method {config.method!r} {refusal}")


def build_quantizer(
    config: QuantizerConfig, *, num_groups: int = 1, channel_dim: int = 0, path: str = ""
) -> Quantizer:
    r"""The quantizer that a config asks for.

    Args:
        config (QuantizerConfig): What to build.
        num_groups (int): Output channels or features with a range of their own.
        channel_dim (int): Dimension of the output channels of a weight, 0 or -1.
        path (str): Where it will sit, for error messages.

    Raises:
        ConfigError: If there is no such method.

    Example:
        >>> build_quantizer(QuantizerConfig(bits=4))
        LearnedRangeQuant(bits=4, granularity='tensor', range='missing')
    """
    quantizer = find_method(config.method)(config, num_groups, channel_dim)
    quantizer.path = path
    return quantizer
