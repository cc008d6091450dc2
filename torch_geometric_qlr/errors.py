"""What can go wrong, one class per kind, so that a caller can catch exactly the one it can handle.

Every message names where it happened (the module path), what was wrong, and the remedy.
"""

from __future__ import annotations

__all__ = [
    "QLRError",
    "ConfigError",
    "InputError",
    "NothingToQuantizeError",
    "UnsupportedLayerError",
    "AlreadyQuantizedError",
    "LazyModuleError",
    "CheckpointError",
    "ExportError",
    "BackendError",
    "QLRWarning",
]


class QLRError(Exception):
    r"""Base class of every error this package raises on purpose.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> try:
        ...     qlr.quantize(torch.nn.ReLU(), bits=2)
        ... except qlr.errors.QLRError as error:
        ...     print(type(error).__name__)
        NothingToQuantizeError
    """


class ConfigError(QLRError, ValueError):
    r"""A configuration that cannot mean anything: bits out of range, an unknown preset, an override
    that matches no module."""


class InputError(QLRError, ValueError):
    r"""A tensor or graph that a layer cannot take: wrong dtype or shape, NaN or Inf, a layout it
    has no meaning for."""


class NothingToQuantizeError(QLRError, ValueError):
    r"""A call that would have changed nothing at all."""


class UnsupportedLayerError(QLRError, TypeError):
    r"""A layer that cannot be rewritten, with the reason and the nearest thing that can."""


class AlreadyQuantizedError(QLRError, ValueError):
    r"""A model that has been quantized or converted before."""


class LazyModuleError(QLRError, ValueError):
    r"""A layer with uninitialized (lazy) parameters, which have no values to quantize yet."""


class CheckpointError(QLRError, ValueError):
    r"""A checkpoint that is damaged, of another version, or of another configuration."""


class ExportError(QLRError, RuntimeError):
    r"""A model that could not be exported: torch cannot follow it, a package is missing, or the
    file that was made computes something else."""


class BackendError(QLRError, RuntimeError):
    r"""A kernel back end that was asked for by name and is not available here."""


class QLRWarning(UserWarning):
    r"""What this package warns of: a model that computes more slowly than it could, ranges that are
    still missing. Its own class, so that a filter can mean these and no others."""
