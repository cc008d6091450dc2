"""What the header of a file may say. All of it is checked before anything is built from it.

A checksum finds damage and no intent: a file may have been made by another program, or by somebody
who wishes harm. So a header is text of a limited length, JSON, and exactly the fields below, with
values that exist and sizes that the bytes of the file account for.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.io.format import DTYPES
from torch_geometric_qlr.nn.packed.kinds import KINDS
from torch_geometric_qlr.nn.propagation.smooth import SmoothOptions
from torch_geometric_qlr.nn.recipe import Point, Route
from torch_geometric_qlr.ops import PACKED_BITS

__all__ = ["Damage", "check_header"]

Check = Callable[[Any, str], None]

_MOST = 1 << 62
_LONGEST_TEXT = 1000


class Damage(ValueError):
    """What is wrong with a file, without its name."""


def check_header(header: Any, num_bytes: int, version: int) -> None:
    r"""Refuses a header that is not what a file of its version says.

    Args:
        header (dict): From a file, with what it says of its tensors.
        num_bytes (int): How many bytes of tensors follow it.
        version (int): Of the format.

    Raises:
        Damage: With the place and the value.
    """
    _HEADERS[version](header, "header")
    if header.get("byteorder", sys.byteorder) != sys.byteorder:
        raise Damage(
            f"its numbers are {header['byteorder']}-endian, and this machine is "
            f"{sys.byteorder}-endian. Save a state_dict with torch.save there, which is converted "
            f"as it loads"
        )
    _check_tensors(header, num_bytes)
    _check_layers(header, num_bytes)


# What values look like ############################################################################


def _require(holds: bool, value: Any, where: str, expected: str) -> None:
    if not holds:
        raise Damage(f"{where} is {reprlib.repr(value)}, not {expected}")


def _text(value: Any, where: str) -> None:
    # Half of a surrogate pair can be read, and neither printed nor written again.
    is_text = type(value) is str and not any("\ud800" <= c <= "\udfff" for c in value)
    fits = is_text and len(value) <= _LONGEST_TEXT
    _require(fits, value, where, f"text of at most {_LONGEST_TEXT} characters")


def _flag(value: Any, where: str) -> None:
    _require(type(value) is bool, value, where, "true or false")


def _number(value: Any, where: str) -> None:
    is_number = type(value) in (int, float) and abs(value) < _MOST
    _require(is_number, value, where, "a finite number")


def _whole(least: int, most: int = _MOST) -> Check:
    def check(value: Any, where: str) -> None:
        fits = type(value) is int and least <= value <= most
        _require(fits, value, where, f"a whole number from {least} to {most}")

    return check


def _one_of(*choices: Any) -> Check:
    def check(value: Any, where: str) -> None:
        fits = any(type(value) is type(choice) and value == choice for choice in choices)
        _require(fits, value, where, f"one of {', '.join(map(repr, choices))}")

    return check


def _optional(check: Check) -> Check:
    return lambda value, where: None if value is None else check(value, where)


def _list(check: Check, least: int = 0) -> Check:
    def check_all(value: Any, where: str) -> None:
        fits = type(value) is list and len(value) >= least
        _require(fits, value, where, f"a list of {least} or more")
        for i, one in enumerate(value):
            check(one, f"{where}[{i}]")

    return check_all


def _row(*checks: Check) -> Check:
    def check(value: Any, where: str) -> None:
        fits = type(value) is list and len(value) == len(checks)
        _require(fits, value, where, f"a list of {len(checks)}")
        for i, (one, its_check) in enumerate(zip(value, checks, strict=True)):
            its_check(one, f"{where}[{i}]")

    return check


def _mapping(check: Check) -> Check:
    def check_all(value: Any, where: str) -> None:
        _require(type(value) is dict, value, where, "a mapping")
        for key, one in value.items():
            _text(key, f"a key of {where}")
            check(one, f"{where}[{reprlib.repr(key)}]")

    return check_all


def _fields(checks: Mapping[str, Check], optional: tuple[str, ...] = ()) -> Check:
    """A mapping with these keys and no other."""

    def check(value: Any, where: str) -> None:
        _require(type(value) is dict, value, where, "a mapping")
        missing = [key for key in checks if key not in value and key not in optional]
        unknown = [key for key in value if key not in checks]
        if missing or unknown:
            kind, keys = ("lacks", missing) if missing else ("has an unknown", unknown)
            raise Damage(f"{where} {kind} {reprlib.repr(keys[0])}")
        for key, one in value.items():
            checks[key](one, f"{where}[{key!r}]")

    return check


def _plain(value: Any, where: str) -> None:
    _require(type(value) is not dict, value, where, "a plain value")
    for one in value if type(value) is list else ():
        _plain(one, where)


def _any(value: Any, where: str) -> None:
    """Whatever JSON holds: who uses it looks at it."""


def _arguments_of(cls: Any) -> Check:
    """The fields of a dataclass of plain values, by the type of their defaults."""
    kinds: dict[type, Check] = {
        bool: _flag,
        int: _whole(0),
        float: _number,
        str: _text,
        type(None): _optional(_text),
    }
    fields = dataclasses.fields(cls)
    check_fields = _fields(
        {f.name: kinds[type(f.default)] for f in fields}, optional=tuple(f.name for f in fields)
    )

    def check(value: Any, where: str) -> None:
        check_fields(value, where)
        try:
            cls(**value)
        except ConfigError as error:
            raise Damage(f"{where}: {error}") from error

    return check


# What a header looks like #########################################################################

_PACKED = _fields(
    {
        "bits": _one_of(*PACKED_BITS),
        "shape": _list(_whole(0)),
        "matrix": _row(_whole(0), _whole(0)),
    }
)
_LEARNED = _fields(
    {
        "config": _arguments_of(QuantizerConfig),
        "groups": _whole(0),
        "channel_dim": _one_of(0, -1),
    }
)


_EDGE_WEIGHTS = _fields({"bits": _whole(2, 8)})


def _quantizer(value: Any, where: str) -> None:
    if type(value) is list:
        _list(_LEARNED, least=1)(value, where)
    elif type(value) is dict and set(value) == {"bits"}:
        _EDGE_WEIGHTS(value, where)
    else:
        (_PACKED if type(value) is dict and "matrix" in value else _LEARNED)(value, where)


_LAYER = _fields(
    {
        "class": _text,
        "family": _one_of(*KINDS),
        "weights": _list(_text),
        "quantizers": _mapping(_quantizer),
        "route": _fields(dict.fromkeys(Route._fields, _text)),
        "input_gain": _one_of(True),
    },
    optional=("route", "input_gain"),
)
_SMOOTH = _fields(
    {
        "class": _text,
        "source": _text,
        "options": _arguments_of(SmoothOptions),
        "note": _text,
    }
)
_FIRST: dict[str, Check] = {
    "model": _text,
    "byteorder": _one_of("little", "big"),
    "converted": _flag,
    "layers": _mapping(_LAYER),
    "smooth": _mapping(_SMOOTH),
    "tensors": _list(_row(_text, _one_of(*DTYPES), _list(_whole(0)))),
    "aliases": _mapping(_text),
    "versions": _mapping(_whole(0, 1 << 31)),
}
_SECOND: dict[str, Check] = {**_FIRST, "modules": _mapping(_row(_text, _mapping(_plain)))}
_CONSTRUCTOR = _fields({"module": _text, "name": _text, "arguments": _mapping(_any)})
_THIRD: dict[str, Check] = {**_SECOND, "complex": _list(_text), "constructor": _CONSTRUCTOR}
del _THIRD["byteorder"]

_HEADERS: dict[int, Check] = {
    1: _fields(_FIRST),
    2: _fields(_SECOND),
    3: _fields(_THIRD, optional=("constructor",)),
}


# What must fit together ###########################################################################


def _check_tensors(header: Mapping[str, Any], num_bytes: int) -> None:
    total, names = 0, set()
    for name, dtype, shape in header["tensors"]:
        if name in names:
            raise Damage(f"it has two tensors {reprlib.repr(name)}")
        names.add(name)
        # A dimension of 0 hides the others from the sum, and not from torch.
        fits = len(shape) <= 64 and math.prod(n or 1 for n in shape) < _MOST
        _require(fits, shape, f"the shape of {reprlib.repr(name)}", "one that can be")
        total += math.prod(shape) * DTYPES[dtype].itemsize
    if total != num_bytes:
        raise Damage(f"its tensors are {total:,} bytes by the header, and {num_bytes:,} in it")
    for name, same in header["aliases"].items():
        if name in names or same not in names:
            raise Damage(f"{reprlib.repr(name)} cannot be the same as {reprlib.repr(same)}")


def _check_layers(header: Mapping[str, Any], num_bytes: int) -> None:
    left = num_bytes  # every range and every code has its bytes
    for name, entry in header["layers"].items():
        for key, found in entry["quantizers"].items():
            where = f"the quantizer {reprlib.repr(f'{name}.{key}')}"
            for one in found if isinstance(found, list) else [found]:
                if "matrix" in one:
                    is_weight = Point.of_key(key).name in entry["weights"]
                    _check_packed(one, where, header["converted"] and is_weight)
                    left -= math.prod(one["shape"]) * one["bits"] // 8
                elif "groups" in one:
                    left -= one["groups"] * 4
                if left < 0:
                    raise Damage(f"{where} needs more bytes than the file has")


def _check_packed(found: Mapping[str, Any], where: str, is_expected: bool) -> None:
    if not is_expected:
        raise Damage(f"{where} is one of codes where there can be none")
    shape, matrix = found["shape"], found["matrix"]
    count = math.prod(shape)
    if count != math.prod(matrix) or (shape and not {shape[0], shape[-1]} & set(matrix)):
        raise Damage(f"{where} has a weight of shape {shape} and codes of shape {matrix}")
