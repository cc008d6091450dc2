"""What the numbers of a quantizer mean, as a small tensor in its state.

A range says nothing of the codes that it is cut into, and packed codes of 3 bits look like those of
4. So everything that changes the arithmetic travels in the ``state_dict``, where no detour can lose
it: a plain dictionary, a file of tensors, an average of several states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_geometric_qlr.config import DEFAULT_METHOD

if TYPE_CHECKING:
    from torch_geometric_qlr.quantizers.base import Quantizer

__all__ = ["Signature", "SignedState", "differences"]

#: Key of the tensor, which torch expects what is no parameter or buffer under.
KEY = "_extra_state"

_VERSION = 1
_TRUNCATIONS = (None, "bt", "bt*")
_GRANULARITIES = ("tensor", "channel", "feature", "node")
_STATISTICS = ("running", "current")
_UNITS = ("code", "step")
#: Numbers of the settings, which the letters of a name may follow.
_NUMBERS = 9
_LONGEST_NAME = 64


class Signature(NamedTuple):
    r"""Everything that changes what the state of a quantizer means, and nothing else: two
    quantizers of equal signature and equal state make equal codes.

    Args:
        bits (int): Width of a code.
        truncation (str, optional): As in :class:`~torch_geometric_qlr.config.QuantizerConfig`, and
            :obj:`None` where it does nothing; so are the other options.
        granularity (str): What shares a range.
        statistics (str): Where the range is taken from.
        columns (bool): Whether the groups are columns of the matrix.
        zero_aligned (bool): Whether 0 is a level.
        skewness_unit (str): What a unit of skewness shifts by.
        skewness_rounding (bool): Whether that shift is rounded.
        method (str): What makes the codes, see
            :data:`torch_geometric_qlr.quantizers.methods.METHODS`.
    """

    bits: int
    truncation: str | None = None
    granularity: str = "tensor"
    statistics: str = "running"
    columns: bool = False
    zero_aligned: bool = False
    skewness_unit: str = "code"
    skewness_rounding: bool = False
    method: str = DEFAULT_METHOD

    @classmethod
    def of(cls, quantizer: Quantizer) -> Signature:
        """The signature of a quantizer."""
        config = quantizer.config
        out = cls(
            config.bits,
            granularity=config.granularity,
            statistics=config.statistics,
            columns=quantizer.groups.axis == 1,
            method=config.method,
        )
        if config.truncates:
            out = out._replace(truncation=config.truncation, zero_aligned=config.zero_aligned)
        if out.truncation == "bt*":
            out = out._replace(
                skewness_unit=config.skewness_unit, skewness_rounding=config.skewness_rounding
            )
        return out

    def to_tensor(self) -> Tensor:
        r"""The signature as small numbers, in float32 as the rest of the state: code that averages
        or casts all of a state can do so to these too, and they stay what they are. The name of a
        method other than the default follows, letter by letter.

        Example:
            >>> Signature(bits=2, truncation="bt").to_tensor()
            tensor([1., 2., 1., 0., 0., 0., 0., 0., 0.])
        """
        values = [
            _VERSION,
            self.bits,
            _TRUNCATIONS.index(self.truncation),
            _GRANULARITIES.index(self.granularity),
            _STATISTICS.index(self.statistics),
            self.columns,
            self.zero_aligned,
            _UNITS.index(self.skewness_unit),
            self.skewness_rounding,
            *(self.method.encode("ascii") if self.method != DEFAULT_METHOD else ()),
        ]
        return torch.tensor(values, dtype=torch.float32, device="cpu")

    @classmethod
    def from_tensor(cls, state: Any) -> Signature:
        r"""The inverse of :meth:`to_tensor`, also of one that was cast or averaged.

        Raises:
            ValueError: If it is no signature; the message says why.
        """
        fits = isinstance(state, Tensor) and state.dim() == 1
        fits = fits and _NUMBERS <= len(state) <= _NUMBERS + _LONGEST_NAME
        if not fits or state.is_complex() or not bool(state.isfinite().all()):
            raise ValueError("no record of its settings that can be read")
        version, bits, *rest = (round(value) for value in state.double().tolist())
        rest, letters = rest[: _NUMBERS - 2], rest[_NUMBERS - 2 :]
        if version != _VERSION:
            raise ValueError(f"settings of version {version}, and this release reads {_VERSION}")
        tables = (_TRUNCATIONS, _GRANULARITIES, _STATISTICS, _FLAG, _FLAG, _UNITS, _FLAG)
        settings = list(zip(rest, tables, strict=True))
        exist = 1 <= bits <= 8 and all(0 <= k < len(table) for k, table in settings)
        if not exist or not all(0 < letter < 128 for letter in letters):
            raise ValueError("settings that do not exist, so it is damaged")
        method = bytes(letters).decode("ascii") or DEFAULT_METHOD
        return cls(bits, *(table[k] for k, table in settings))._replace(method=method)

    def shown(self, other: Signature) -> str:
        r"""The signature for people: bits, truncation, and whatever :obj:`other` has otherwise.

        Example:
            >>> Signature(4, granularity="node").shown(Signature(4))
            "4 bits, granularity='node'"
        """
        out = f"{self.bits} bits"
        out += f" and truncation {self.truncation!r}" if self.truncation else ""
        for name, mine, theirs in zip(self._fields[2:], self[2:], other[2:], strict=True):
            out += f", {name}={mine!r}" if mine != theirs else ""
        return out


_FLAG = (False, True)


def differences(state: Mapping[str, Any], prefix: str, own: Signature | None) -> Iterator[str]:
    r"""What is different between the signature in a state and that of the module it is for.

    Args:
        state (dict): A :obj:`state_dict`.
        prefix (str): Of the module's keys.
        own (Signature, optional): That of the module, if it knows.
    """
    found = state.get(prefix + KEY)
    if found is None or own is None or (isinstance(found, Tensor) and found.is_meta):
        return
    try:
        saved = Signature.from_tensor(found)
    except ValueError as error:
        yield f"{prefix[:-1]}: the checkpoint has {error}."
        return
    if saved != own:
        yield (
            f"{prefix[:-1]}: the checkpoint was made with {saved.shown(own)}, this model has "
            f"{own.shown(saved)}, so its ranges mean something else. Quantize with the config of "
            f"the checkpoint, or load the weights alone: leave out the keys of all quantizers."
        )


class SignedState(nn.Module):
    """A quantizer whose state holds its signature, and which loads none but its own."""

    def get_extra_state(self) -> Tensor:
        """What torch saves beside parameters and buffers."""
        return Signature.of(self).to_tensor()  # type: ignore[arg-type]

    def set_extra_state(self, state: Any) -> None:
        """Nothing to set: it was compared."""

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        error_msgs: list[str] = args[-1] if args else kwargs["error_msgs"]
        error_msgs += differences(state_dict, prefix, Signature.of(self))  # type: ignore[arg-type]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
