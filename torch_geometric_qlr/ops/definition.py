"""What an op is in Python: one class, with all that its schema does not say.

Each file of `definitions/` holds some. They are found by the names of their ops, so a new op is a
line of `schemas.inc` and a file there, and a kernel where one is worth it.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.checks import NOT_FINITE, Check

__all__ = ["Call", "Definition", "find_definitions"]

#: An op, called by name as ``torch.ops.qlr.<name>`` is, on the back end that computes already.
Call = Callable[..., Any]


class Definition(ABC):
    r"""An op: what it takes, the shape of what it gives, and what it computes.

    A subclass says which op it is: ``class Pack(Definition, op="pack")``.
    """

    op: ClassVar[str]
    #: Whether floats go in and no gradient comes out, so that who asks for one is refused.
    loses_gradient: ClassVar[bool] = True
    #: The derivative and what saves for it, as :func:`torch.library.register_autograd` takes them.
    derivative: ClassVar[tuple[Callable[..., Any], Callable[..., None]] | None] = None

    _classes: ClassVar[list[type[Definition]]] = []

    def __init_subclass__(cls, *, op: str) -> None:
        cls.op = op
        Definition._classes.append(cls)

    @abstractmethod
    def check(self, check: Check, a: Arguments) -> None:
        """Raises if the op cannot take these arguments, whatever their values are: kernels read raw
        memory, so what decides about an address is checked here. Sizes may be symbolic."""

    @abstractmethod
    def fake(self, a: Arguments) -> Any:
        """What has the shape of the result."""

    @abstractmethod
    def compute(self, a: Arguments, call: Call) -> Any:
        """The definition: in pure torch, or composed of ops that the back end may have kernels for.
        Arguments are checked. Raises :class:`Refused` for what is wrong with their values."""

    def not_finite(self, a: Arguments) -> str:
        """What is said of a NaN or Inf that should have become a code."""
        return NOT_FINITE


def find_definitions(names: Iterable[str]) -> dict[str, Definition]:
    r"""The definition of each op.

    Args:
        names (list): All ops that have a schema.

    Raises:
        TypeError: If there is a schema without a definition or a definition without a schema, or a
            definition lacks a part.
    """
    package = importlib.import_module(f"{__package__}.definitions")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    found = {cls.op: cls() for cls in Definition._classes}
    alone = set(names) ^ set(found)
    if alone:
        raise TypeError(
            f"an op is a line of ops/schemas.inc and a class in a file of ops/definitions; one of "
            f"the two is missing for {', '.join(sorted(alone))}"
        )
    return found
