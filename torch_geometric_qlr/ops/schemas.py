"""The ops of namespace ``qlr``, one schema each.

The schemas stand in `schemas.inc`, which C++ includes and this module reads; no other place lists
the arguments of an op. What an op means is its definition (`definition.py`), who computes it is
decided in `dispatch.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["LIBRARY", "NAMES", "SIGNATURES", "Signature"]

# A program in C++ that runs Python may have defined the ops already.
LIBRARY = torch.library.Library("qlr", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag,)


def _read() -> tuple[str, ...]:
    """The lines between the marks of a C++ string literal."""
    text = Path(__file__).with_name("schemas.inc").read_text(encoding="utf-8")
    return tuple(text.splitlines()[1:-1])


class Signature:
    """An op as its schema has it.

    Args:
        text (str): The schema.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.name = text.partition("(")[0]
        #: The op that answers for its kernel (`cpu/companions.py`). It takes the same, words as the
        #: numbers of their bytes (csrc/torch/detour.cpp).
        self.companion = f"{self.name}_in_python"
        if not hasattr(torch.ops.qlr, self.name):
            LIBRARY.define(text, tags=_TAGS)
        spelled = re.sub(r"\bstr (\w+)='\w*'", r"int[] \1=[]", text)
        LIBRARY.define(spelled.replace(self.name, self.companion, 1), tags=_TAGS)
        self.overload = getattr(torch.ops.qlr, self.name).default
        schema = self.overload._schema
        self.results = len(schema.returns)
        #: Those that must be tensors: the dispatcher takes :obj:`None` for any.
        self.tensors = [a.name for a in schema.arguments if str(a.type) == "Tensor"]
        self._defaults = {a.name: a.default_value for a in schema.arguments}
        self._words = [a.name for a in schema.arguments if str(a.type) == "str"]

    def bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments of a call by name, in the order of the schema."""
        return {**self._defaults, **dict(zip(self._defaults, args, strict=False)), **kwargs}

    def spell(self, arguments: dict[str, Any]) -> list[Any]:
        """Arguments in the order and form in which the companion takes them."""
        spelled = {name: list(arguments[name].encode()) for name in self._words}
        return list({**arguments, **spelled}.values())

    def read(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the op, from those of its companion."""
        arguments = self.bind(args, kwargs)
        for name in self._words:
            arguments[name] = bytes(arguments[name]).decode(errors="replace")
        return arguments


SIGNATURES = {op.name: op for op in map(Signature, _read())}
NAMES = tuple(SIGNATURES)
