"""The options of a model's modules as plain values, and what two models have otherwise.

Two models can have the same tensors and compute something else: another ``normalize``, ``aggr`` or
activation. An option is what a *constructor* sets: a public attribute with a plain value that no
other method assigns, for what a forward counts or remembers is no option.
"""

from __future__ import annotations

import dis
import functools
import json
import types
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn

from torch_geometric_qlr.layers.state import STATE, unwrapped_class

__all__ = ["option_differences", "options_of"]

Record = Mapping[str, Any]

#: Attributes that two models with equal results may have otherwise, by the reason why.
_IGNORED: Mapping[str, tuple[str, ...]] = {
    "no result depends on it": ("training", "device", "name", "verbose"),
    "the same numbers, computed in another way": ("inplace", "cached", "fuse"),
    "-1 in lazy layers; the shapes say it": ("in_channels", "in_features", "channel_list"),
    "where a tensor of the state starts": ("initial_eps", "seed"),
    "for training only": (
        *("momentum", "requires_grad", "train_eps"),
        *("lr", "learning_rate", "weight_decay", "epoch"),
    ),
}
#: The same by a part of the name.
_IGNORED_PARTS: Mapping[str, str] = {
    "for training only": "drop",
    "where a tensor of the state starts": "initializer",
}
#: Modules that hand on what they are given when a model is evaluated, or are no part of it.
_INERT = (nn.Identity, nn.modules.dropout._DropoutNd, nn.modules.loss._Loss)

_MOST_NESTED = 4
_LONGEST = 1000


def options_of(model: nn.Module) -> dict[str, Any]:
    r"""The class and the options of each module, by its name; what quantizes them is left out.

    Args:
        model (torch.nn.Module): A float, quantized or converted model.

    Example:
        >>> options_of(torch.nn.Sequential(torch.nn.LeakyReLU(0.3)))["0"]
        ['LeakyReLU', {'negative_slope': 0.3}]
    """
    return {
        name: [unwrapped_class(module).__name__, dict(_options(module))]
        for name, module in _modules(model, "", set())
    }


def option_differences(saved: Record, model: nn.Module) -> Iterator[str]:
    r"""What is different between recorded options and those of a model, in words.

    Args:
        saved (dict): From :func:`options_of`, as it comes from a file.
        model (torch.nn.Module): The model.
    """
    own = options_of(model)
    for name in [n for n in (*saved, *own) if n not in saved or n not in own]:
        # A private part without tensors is how some release of a library does things.
        if not name.rpartition(".")[2].startswith("_"):
            there, here = (r[name][0] if name in r else "nothing" for r in (saved, own))
            yield f"{name}: the file has {there} there, the model {here}"
    for name, (cls, options) in saved.items():
        if name not in own:
            continue
        own_class, own_options = own[name]
        where = name or "the model itself"
        if cls != own_class and name:  # the class of the whole may be called as one likes
            yield f"{where}: the file has {cls} there, the model {own_class}"
            continue
        for key in [key for key in options if key in own_options]:
            there, here = options[key], own_options[key]
            if there != here and not (there != there and here != here):  # NaN
                yield f"{where}: {key} is {there!r} in the file, {here!r} in the model"


def _modules(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    if module in seen or isinstance(module, _INERT):
        return
    seen.add(module)
    yield name, module
    for key, child in module._modules.items():
        if child is not None and key != STATE:
            yield from _modules(child, f"{name}.{key}" if name else key, seen)


def _options(module: nn.Module) -> Iterator[tuple[str, Any]]:
    cls: Any = unwrapped_class(module)
    ignored = _assigned_later(cls).union(*_IGNORED.values())
    for name, value in sorted(vars(module).items()):
        hides = name.startswith("_") or any(part in name for part in _IGNORED_PARTS.values())
        if hides or name in ignored:
            continue
        try:
            yield name, _short(_plain(value))
        except TypeError:
            continue


def _plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON would give it back; a function or class is its name."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (int, float, str)):  # an enum, or what else is derived from them
        return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return f"<{value.__name__}>"
    if depth < _MOST_NESTED and isinstance(value, (tuple, list)):
        return [_plain(v, depth + 1) for v in value]
    raise TypeError(f"{type(value).__name__} is no plain value")


def _short(value: Any) -> Any:
    text = json.dumps(value)
    if len(text) <= _LONGEST:
        return value
    return f"<{len(text)} characters, checksum {zlib.crc32(text.encode()):08x}>"


@functools.lru_cache(maxsize=256)
def _assigned_later(cls: Any) -> frozenset[str]:
    """Attributes that a method assigns which the constructor does not call."""
    methods: dict[str, types.CodeType] = {}
    constructors: list[types.CodeType] = []
    for base in cls.__mro__:
        if base in (nn.Module, object):
            continue
        for name, member in vars(base).items():
            function = getattr(member, "__wrapped__", member)
            if not isinstance(function, types.FunctionType):
                continue
            if name == "__init__":
                constructors.append(function.__code__)
            else:
                methods.setdefault(name, function.__code__)
    called: set[str] = set()
    while constructors:
        names = set(constructors.pop().co_names) & methods.keys() - called
        called |= names
        constructors += [methods[name] for name in names]
    later = (code for name, code in methods.items() if name not in called)
    return frozenset(name for code in later for name in _assigned(code))


def _assigned(code: types.CodeType) -> Iterator[str]:
    return (step.argval for step in dis.get_instructions(code) if step.opname == "STORE_ATTR")
