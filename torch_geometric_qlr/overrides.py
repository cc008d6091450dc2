"""Ordered rules from modules to what differs there: exact name > regex > glob > type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from .errors import ConfigError

__all__ = ["normalize_overrides", "match_override", "check_all_matched"]

_GLOB = re.compile(r"[*?\[]")


def normalize_overrides(
    rules: Mapping[Any, Any], fields_of: Callable[[Any, str], dict[str, Any] | None]
) -> dict[str, dict[str, Any] | None]:
    """Rules with string keys and plain values; ``fields_of(value, where)`` checks each value."""
    if not isinstance(rules, Mapping):
        raise ConfigError(f"overrides is a {type(rules).__name__}; expected a dict of rules.")
    out: dict[str, dict[str, Any] | None] = {}
    for key, value in rules.items():
        name = key.__name__ if isinstance(key, type) else key
        if not isinstance(name, str) or not name:
            raise ConfigError(f"override {key!r} is neither a module name, a pattern nor a type.")
        if name.startswith("re:"):
            try:
                re.compile(name[3:])
            except re.error as error:
                raise ConfigError(
                    f"override {name!r} is no regular expression: {error}."
                ) from error
        out[name] = fields_of(value, f"override {name!r}")
    return out


def match_override(rules: Iterable[str], lineage: Sequence[tuple[str, type]]) -> str | None:
    """The rule that holds for a module, or :obj:`None`.

    ``lineage`` lists name and class of the module and of its ancestors, nearest first: a rule for a
    conv holds for the Linear inside it. The kind of a rule counts before its distance.
    """
    kinds = (_is_exact, _is_regex_match, _is_glob_match, _is_type)
    return next(
        (
            rule
            for matches in kinds
            for name, cls in lineage
            for rule in rules
            if matches(rule, name, cls)
        ),
        None,
    )


def _is_exact(rule: str, name: str, cls: type) -> bool:
    return rule == name


def _is_regex_match(rule: str, name: str, cls: type) -> bool:
    return rule.startswith("re:") and re.fullmatch(rule[3:], name) is not None


def _is_glob_match(rule: str, name: str, cls: type) -> bool:
    return not rule.startswith("re:") and _GLOB.search(rule) is not None and fnmatchcase(name, rule)


def _is_type(rule: str, name: str, cls: type) -> bool:
    return any(base.__name__ == rule for base in cls.__mro__ if base.__name__ != "Module")


def check_all_matched(rules: Iterable[str], counts: Mapping[str, int], names: list[str]) -> None:
    """Refuses a rule that matched nothing, with the nearest module names."""
    for rule in rules:
        if counts.get(rule, 0) == 0:
            near = get_close_matches(
                rule.removeprefix("re:"), [n for n in names if n], n=3, cutoff=0.4
            )
            hint = f" Nearest: {', '.join(near)}." if near else ""
            raise ConfigError(
                f"override {rule!r} matches no layer of the model.{hint} qlr.plan(model) lists the "
                f"names and types of all layers."
            )
