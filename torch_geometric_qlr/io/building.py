"""How a float model is built: its class, and the arguments of its constructor where they are known.

An argument is known if the model keeps it, as a plain value under the name of the parameter. Models
of PyG and of this package keep some as a dropout or an activation; what is not found at all may
have its default there, if a model built so has the same modules with the same options.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torch_geometric_qlr.errors import CheckpointError, ConfigError
from torch_geometric_qlr.layers.pyg import ATTRIBUTES_OF_ARGUMENTS
from torch_geometric_qlr.layers.state import STATE, unwrapped_class

__all__ = ["build", "check_trust", "constructor_of"]

Constructor = Mapping[str, Any]

#: Packages whose classes are imported because a file names them.
_KNOWN_PACKAGES = ("torch_geometric", "torch_geometric_qlr")
_MISSING = object()
_REMEDY = "Or pass the float model: qlr.load(path, model)"


# From a model #####################################################################################


def constructor_of(model: nn.Module) -> dict[str, Any] | None:
    r"""The class of a float model and its arguments, if all of them are known.

    Args:
        model (torch.nn.Module): A float, quantized or converted model.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> constructor_of(GCN(8, 16, num_layers=2, dropout=0.5))["arguments"]
        {'in_channels': 8, 'hidden_channels': 16, 'num_layers': 2, 'out_channels': 16,
         'dropout': 0.5, 'act': 'ReLU', 'act_first': False, 'norm': None, 'norm_kwargs': None,
         'jk': None}
    """
    cls = unwrapped_class(model)
    if "<" in cls.__qualname__:  # made inside of a function
        return None
    is_known_package = _is_of(cls.__module__, _KNOWN_PACKAGES)
    arguments, is_complete = {}, True
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        value = _kept(model, name, is_known_package)
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            is_complete = False
        elif parameter.kind == parameter.POSITIONAL_ONLY:
            return None
        elif value is not _MISSING:
            arguments[name] = value
        elif parameter.default is parameter.empty:
            return None
        else:
            is_complete = False
    if is_known_package:
        is_complete = _builds(cls, arguments, model)
    found = {"module": cls.__module__, "name": cls.__qualname__, "arguments": arguments}
    return found if is_complete else None


def _kept(model: nn.Module, name: str, is_known_package: bool) -> Any:
    """What a model keeps of an argument."""
    value = vars(model).get(name, _MISSING)
    if value is _MISSING and is_known_package:
        value = vars(model).get(ATTRIBUTES_OF_ARGUMENTS.get(name, ""), _MISSING)
        child = model._modules.get(name)
        if isinstance(child, nn.modules.dropout._DropoutNd):
            value = child.p
        elif type(child).__module__ == nn.ReLU.__module__:
            value = type(child).__name__
    return value if _is_plain(value) else _MISSING


def _is_plain(value: Any) -> bool:
    """Whether JSON gives the very same value back."""
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(k) is str and _is_plain(v) for k, v in value.items())
    is_number = type(value) in (bool, int) or (type(value) is float and math.isfinite(value))
    return value is None or is_number or type(value) is str


def _builds(cls: Any, arguments: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether arguments give the modules of a model, each with the same plain attributes."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            twin = _attributes(cls(**arguments))
    except Exception:  # whatever a constructor finds wrong with what may not be its arguments
        return False
    own = _attributes(model)
    if own.keys() != twin.keys():
        return False
    for name, (kind, values) in own.items():
        other_kind, others = twin[name]
        same = all(values[key] == others[key] for key in values.keys() & others.keys())
        if kind is not other_kind or not same:
            return False
    return True


def _attributes(model: nn.Module) -> dict[str, tuple[Any, dict[str, Any]]]:
    return {
        name: (
            unwrapped_class(module),
            {
                key: value
                for key, value in vars(module).items()
                if key != "training" and not key.startswith("_") and _is_plain(value)
            },
        )
        for name, module in model.named_modules(remove_duplicate=False)
        if STATE not in name.split(".")
    }


# To a model #######################################################################################


def check_trust(trust: Any) -> None:
    """Refuses what are no names of packages."""
    is_names = isinstance(trust, (tuple, list, set, frozenset))
    if not is_names or not all(isinstance(name, str) and name for name in trust):
        raise ConfigError(
            f"trust is {trust!r}: give the names of packages whose classes a file may name, such "
            f'as trust=("my_package",).'
        )


def build(
    constructor: Constructor | None, name: str, num_bytes: int, trust: Sequence[str]
) -> nn.Module:
    r"""The float model that a file describes.

    Args:
        constructor (dict, optional): Its class and arguments, from a file, which may say anything.
        name (str): The name of its class.
        num_bytes (int): The bytes of its tensors in the file.
        trust (tuple): Packages whose modules may be imported.

    Raises:
        CheckpointError: If the file does not say how, the class may not be imported or is not
            there, or its constructor fails.
    """
    if constructor is None:
        raise CheckpointError(
            f"the file does not say how its {name} is built: not every argument of the constructor "
            f"is an attribute of the same name with a plain value. Pass the float model: "
            f"qlr.load(path, model)."
        )
    arguments = constructor["arguments"]
    cls = _class_of(constructor["module"], constructor["name"], trust)
    if not _fits(arguments, 8 * num_bytes):
        raise CheckpointError(
            f"{cls.__name__} is to be built with numbers that {num_bytes:,} bytes of tensors "
            f"cannot account for: the file is damaged. {_REMEDY}."
        )
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            outline = cls(**arguments)
    except Exception:  # not every constructor does without values
        outline = nn.Module()
    size = sum(t.numel() for t in outline.parameters() if not nn.parameter.is_lazy(t))
    if size > 8 * num_bytes:
        raise CheckpointError(
            f"{cls.__name__} is to be built with {size:,} parameters, and the file has "
            f"{num_bytes:,} bytes of them: it is damaged. {_REMEDY}."
        )
    try:
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = cls(**arguments)
    except Exception as error:
        raise CheckpointError(
            f"{cls.__name__} cannot be built with what the file says "
            f"({type(error).__name__}: {str(error)[:200]}). {_REMEDY}."
        ) from error
    return model


def _class_of(module: str, name: str, trust: Sequence[str]) -> Any:
    if _is_of(module, (*_KNOWN_PACKAGES, *trust)):
        try:
            scope: Any = importlib.import_module(module)
        except Exception as error:
            raise CheckpointError(
                f"the class of its model is {module}.{name}, and {module} cannot be imported "
                f"({type(error).__name__}: {str(error)[:200]}). {_REMEDY}."
            ) from error
    elif module in sys.modules:
        scope = sys.modules[module]
    else:
        raise CheckpointError(
            f"the class of its model is {module}.{name}, and a file does not decide what is "
            f"imported. Import {module} first, or allow it: "
            f"trust=({module.partition('.')[0]!r},). {_REMEDY}."
        )
    for part in name.split("."):  # never an attribute that somebody computes
        scope = vars(scope).get(part) if hasattr(scope, "__dict__") else None
    is_model = isinstance(scope, type) and issubclass(scope, nn.Module)
    if not is_model or (scope.__module__, scope.__qualname__) != (module, name):
        raise CheckpointError(
            f"the class of its model is {module}.{name}, and {module} has no such model here. "
            f"{_REMEDY}."
        )
    return scope


def _is_of(module: str, packages: Sequence[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def _fits(value: Any, most: int) -> bool:
    """Whether all numbers among arguments are ones that a model of the file's size can have."""
    if isinstance(value, dict):
        return all(_fits(one, most) for one in value.values())
    if isinstance(value, list):
        return len(value) <= most and all(_fits(one, most) for one in value)
    return not isinstance(value, int) or value <= most
