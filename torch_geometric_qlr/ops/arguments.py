"""The arguments of one call of an op, by the names that its schema gives them."""

from __future__ import annotations

from typing import Any, TypeVar

from torch_geometric_qlr.ops.groups import (
    Epilogue,
    Graph,
    PackedMatrix,
    QParams,
    Steps,
    Weights,
)
from torch_geometric_qlr.ops.schemas import Signature

__all__ = ["Arguments"]

Group = TypeVar("Group", bound=tuple[Any, ...])


class Arguments:
    r"""What an op was called with: one by one as attributes, and in groups.

    Args:
        op (Signature): The op.
        values (dict): All arguments by name, in the order of the schema.

    Example:
        >>> from torch_geometric_qlr.ops.schemas import SIGNATURES
        >>> codes = torch.zeros(2, 3, dtype=torch.uint8)
        >>> arguments = Arguments.of(SIGNATURES["pack"], (codes,), {"bits": 4})
        >>> arguments.bits, arguments.device_type
        (4, 'cpu')
    """

    __slots__ = ("op", "values")

    def __init__(self, op: Signature, values: dict[str, Any]) -> None:
        self.op, self.values = op, values

    @classmethod
    def of(cls, op: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Those of a call."""
        return cls(op, op.bind(args, kwargs))

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(f"{self.op.name} has no argument {name!r}") from None

    @property
    def device_type(self) -> str:
        """Of the first tensor, which decides who computes."""
        first = self.values[self.op.tensors[0]]
        return "" if first is None else first.device.type

    def group(self, kind: type[Group], prefix: str = "") -> Group:
        """Those that travel together, as far as this op has them."""
        fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
        names = {field: prefix + field for field in fields}
        return kind(**{f: self.values[name] for f, name in names.items() if name in self.values})

    @property
    def graph(self) -> Graph:
        """Along which packed rows are gathered."""
        return self.group(Graph)

    @property
    def matrix(self) -> PackedMatrix:
        """The packed rows."""
        return PackedMatrix(self.packed, self.num_cols, self.bits, self.scale, self.zero_point)

    @property
    def factor_matrix(self) -> PackedMatrix:
        """The second matrix of a product, as wide as the first, packed or not."""
        cols = self.values["num_cols"] if "num_cols" in self.values else self.x.size(1)
        scale, zero_point = self.weight_scale, self.weight_zero_point
        return PackedMatrix(self.weight, cols, self.weight_bits, scale, zero_point)

    @property
    def weights(self) -> Weights:
        """What messages are multiplied by."""
        return self.group(Weights)

    @property
    def epilogue(self) -> Epilogue:
        """What is done to a sum on its way out."""
        return self.group(Epilogue)

    @property
    def quantizer(self) -> QParams:
        """How the values become codes."""
        return self.group(QParams)

    @property
    def output(self) -> QParams | None:
        """How a result becomes codes, if it does."""
        return None if self.out_scale is None else self.group(QParams, "out_")

    @property
    def steps(self) -> Steps:
        """How what is sent on from each hop becomes codes."""
        return self.group(Steps, "step_")
