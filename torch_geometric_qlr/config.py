"""What a user asks for: bit widths, where to round, and how; frozen, versioned dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .errors import ConfigError
from .overrides import match_override, normalize_overrides

__all__ = ["QLRConfig", "QuantizerConfig", "POINTS", "PRESETS", "PASS_THROUGH_BITS"]

CONFIG_VERSION = 1

#: The method that makes codes unless another one is asked for.
DEFAULT_METHOD = "learned_range"

#: Places of a layer where a tensor can be quantized.
POINTS = (
    *("input", "weight", "source", "edge_weight", "message"),
    *("linear_output", "aggregate", "output"),
)

#: What is multiplied and what is gathered; nothing else costs bandwidth at inference.
DEFAULT_POINTS = ("input", "weight", "source", "edge_weight", "message")

#: The placement of the paper's reference code: messages per edge, after weighting.
PAPER_POINTS = ("input", "weight", "linear_output", "message", "aggregate")

#: Widths that mean "leave it in floating point", for mixed models.
PASS_THROUGH_BITS = (16, 32)

#: Width of the weights of edges unless another one is asked for; it does not follow `bits`.
DEFAULT_EDGE_WEIGHT_BITS = 8

_WIDTHS = ("weight_bits", "activation_bits", "message_bits", "input_bits")
_ROLES = ("weight", "activation", "message", "input")
_GRANULARITIES = {
    "weight": ("tensor", "channel"),
    "activation": ("tensor", "feature", "node"),
    "message": ("tensor", "feature", "node"),
    "input": ("tensor", "feature", "node"),
}
_DEFAULT_GRANULARITY = {
    "weight": "channel",
    "activation": "tensor",
    "message": "tensor",
    "input": "node",
}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "int8": {"bits": 8},
        "int4": {"bits": 4},
        "int2": {"bits": 2},
        "int2-mixed": {"bits": 2, "weight_bits": 4},
        "int2-bt": {"bits": 2, "truncation": "bt"},
        "int2-bt*": {"bits": 2, "truncation": "bt*"},
        "lsq": {"method": "lsq", "granularity": {"input": "tensor"}},
        "paper": {
            "points": PAPER_POINTS,
            "granularity": dict.fromkeys(_ROLES, "tensor"),
            "skewness_rounding": True,
            "edge_weight_bits": 32,
            "input_gain": False,
        },
    }
)


def _check_bits(name: str, bits: Any, where: str = "", least: int = 1) -> None:
    prefix = f"{where}: " if where else ""
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise ConfigError(
            f"{prefix}{name} is {bits!r}; expected an integer, {least} to 8 to quantize or 16 or "
            f"32 to keep floating point."
        )
    if not (least <= bits <= 8 or bits in PASS_THROUGH_BITS):
        raise ConfigError(
            f"{prefix}{name}={bits} is out of range; choose {least} to 8 to quantize, or 16 or 32 "
            f"to keep floating point."
        )


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    r"""How one quantizer turns values into codes; :class:`QLRConfig` derives one per place.

    Args:
        bits (int): Width of a code, 1 to 8. (default: :obj:`8`)
        truncation (str, optional): :obj:`None` for the plain affine quantizer, :obj:`"bt"` for
            bitwise truncation, :obj:`"bt*"` for skewness-aware bitwise truncation.
            (default: :obj:`None`)
        granularity (str): :obj:`"tensor"`, :obj:`"channel"` (weights: one range per output
            channel), :obj:`"feature"` (activations: one range per feature) or :obj:`"node"` (one
            range per row, taken from the row itself). (default: :obj:`"tensor"`)
        statistics (str): :obj:`"running"` tracks the range over batches, :obj:`"current"` takes it
            from the tensor at hand (weights, rows). (default: :obj:`"running"`)
        momentum (float): Weight of a new batch in running statistics. (default: :obj:`0.1`)
        zero_aligned (bool): With truncation, snap the 8-bit zero point to a multiple of the
            truncation step, so that 0.0 stays exactly representable. (default: :obj:`False`)
        skewness_unit (str): What one unit of skewness shifts by: :obj:`"code"`, one of the 256
            codes as in the paper, or :obj:`"step"`, one truncation step. (default: :obj:`"code"`)
        skewness_rounding (bool): Round that shift to whole 8-bit codes, as in the paper.
            (default: :obj:`False`)
        search (bool): Start the learned multiplier at the best of a grid of candidates on the
            first batch. (default: :obj:`True`)
        gradient_scaling (bool): Scale the multiplier's gradient by
            :math:`1/\sqrt{n (2^b - 1)}` as in LSQ. (default: :obj:`False`)
        method (str): What makes the codes, by its name: :obj:`"learned_range"` (QLR), or
            :obj:`"lsq"` (a learned step). (default: :obj:`"learned_range"`)

    Raises:
        ConfigError: If a value is not one of the above. Whether there is such a method is seen when
            a model is planned.

    Example:
        >>> from torch_geometric_qlr.config import QuantizerConfig
        >>> QuantizerConfig(bits=2, truncation="bt*").code_bits
        8
    """

    bits: int = 8
    truncation: str | None = None
    granularity: str = "tensor"
    statistics: str = "running"
    momentum: float = 0.1
    zero_aligned: bool = False
    skewness_unit: str = "code"
    skewness_rounding: bool = False
    search: bool = True
    gradient_scaling: bool = False
    method: str = DEFAULT_METHOD

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            raise ConfigError(f"bits={self.bits!r} is out of range; a quantizer takes 1 to 8.")
        _check_choice("truncation", self.truncation, (None, "bt", "bt*"))
        _check_choice("granularity", self.granularity, ("tensor", "channel", "feature", "node"))
        _check_choice("statistics", self.statistics, ("running", "current"))
        _check_choice("skewness_unit", self.skewness_unit, ("code", "step"))
        for name in ("zero_aligned", "skewness_rounding", "search", "gradient_scaling"):
            _check_flag(name, getattr(self, name))
        is_number = isinstance(self.momentum, (int, float))
        if not is_number or not 0.0 < self.momentum <= 1.0:
            raise ConfigError(
                f"momentum={self.momentum!r} is out of range; choose 0 < momentum <= 1."
            )
        if not isinstance(self.method, str):
            raise ConfigError(
                f"method={self.method!r} is no name; choose a method such as {DEFAULT_METHOD!r}."
            )

    def to_dict(self) -> dict[str, Any]:
        r"""The config as plain values. The method is among them where it is not the default, so
        that releases which know no other can read them."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if (k, v) != ("method", DEFAULT_METHOD)}

    @property
    def truncates(self) -> bool:
        """Whether codes pass through 8 bits first. At 8 bits truncation is the identity."""
        return self.truncation is not None and self.bits < 8

    @property
    def code_bits(self) -> int:
        """Bits of the first rounding, which are 8 under truncation and else :attr:`bits`."""
        return 8 if self.truncates else self.bits

    @property
    def search_candidates(self) -> int:
        """Size of the starting grid, 10 up to 2 bits and 50 above, as in the paper."""
        return 10 if self.bits <= 2 else 50


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is no choice; it is True or False.")


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{name}={value!r} is unknown; choose one of {listed}.")


@dataclass(frozen=True, kw_only=True)
class QLRConfig:
    r"""What to quantize, where, and to how many bits.

    A width of 1 to 8 quantizes; 16 or 32 leaves that place in floating point. Widths that are not
    given follow :attr:`bits`, except :attr:`output_bits`, which leaves the output wide, and
    :attr:`edge_weight_bits`.

    Args:
        bits (int, optional): Width of everything not named below. (default: :obj:`8`)
        weight_bits (int, optional): Weights of Linears and raw weight parameters.
        activation_bits (int, optional): Inputs of Linears.
        message_bits (int, optional): What travels along the edges: source features, or messages.
        input_bits (int, optional): Features that enter the model's first layer.
        output_bits (int, optional): The last layer's output. (default: :obj:`None`, wide)
        edge_weight_bits (int, optional): Weights of edges that multiply quantized sources, such as
            those of GCN's normalisation: 2 to 8, with a scale for each target node, or 16 or 32 to
            leave them in floating point. Coefficients of attention always are. See
            :class:`~torch_geometric_qlr.quantizers.EdgeWeightQuant`. (default: :obj:`8`)
        truncation (str, optional): :obj:`None`, :obj:`"bt"` (bitwise truncation) or :obj:`"bt*"`
            (skewness-aware bitwise truncation). (default: :obj:`None`)
        granularity (str or dict, optional): One range per :obj:`"tensor"`, :obj:`"channel"`
            (weights), :obj:`"feature"` or :obj:`"node"` (activations), as one word for all or per
            role: :obj:`{"weight": ..., "activation": ..., "message": ..., "input": ...}`.
            (default: weights per channel, input features per node, the rest per tensor)
        points (str or tuple, optional): Places to quantize, a subset of
            :obj:`("input", "weight", "source", "edge_weight", "message", "linear_output",
            "aggregate", "output")`, or :obj:`"paper"` for the reference code's placement.
            (default: :obj:`("input", "weight", "source", "edge_weight", "message")`)
        hop_quantizers (str): Layers that propagate several times hold one quantizer
            :obj:`"per_hop"` or one :obj:`"shared"`. (default: :obj:`"per_hop"`)
        overrides (dict, optional): Ordered rules from a module to what differs there. A key is an
            exact module name, :obj:`"re:..."` (regular expression), a glob, or a layer type (class
            or class name); exact names win over regular expressions, then globs, then types, and
            within a kind the first rule wins. A value is a dict of fields, a config, or
            :obj:`None` to keep the module in floating point.
        input_gain (bool): Fold a gain of weak input features into the weight that meets them first,
            so that training does not depend on their scale: the parameter is the weight divided by
            a power of two, found at the first training batch, and the model computes the same.
            (default: :obj:`True`)
        method (str): What makes the codes, by its name: :obj:`"learned_range"`, a learned range
            (QLR), or :obj:`"lsq"`, a learned step, see
            :class:`~torch_geometric_qlr.quantizers.LearnedStepQuant`.
            (default: :obj:`"learned_range"`)
        momentum, zero_aligned, skewness_unit, skewness_rounding, search, gradient_scaling: See
            :class:`~torch_geometric_qlr.config.QuantizerConfig`.
        preset (str, optional): A named starting point for the fields not given: :obj:`"int8"`,
            :obj:`"int4"`, :obj:`"int2"`, :obj:`"int2-mixed"` (weights in 4 bits),
            :obj:`"int2-bt"`, :obj:`"int2-bt*"`, :obj:`"lsq"` or :obj:`"paper"`.

    Raises:
        ConfigError: If a field is unknown or out of range.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> config = qlr.QLRConfig(bits=2, overrides={"convs.1": {"weight_bits": 4}})
        >>> config.weight_bits, config.under("convs.1").weight_bits
        (2, 4)
        >>> qlr.QLRConfig.from_dict(config.to_dict()) == config
        True
    """

    bits: int | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None
    message_bits: int | None = None
    input_bits: int | None = None
    output_bits: int | None = None
    edge_weight_bits: int | None = None
    truncation: str | None = None
    granularity: str | Mapping[str, str] | None = None
    points: str | tuple[str, ...] | None = None
    hop_quantizers: str = "per_hop"
    input_gain: bool = True
    overrides: Mapping[Any, Any] = field(default_factory=dict)
    momentum: float = 0.1
    zero_aligned: bool = False
    skewness_unit: str = "code"
    skewness_rounding: bool = False
    search: bool = True
    gradient_scaling: bool = False
    method: str = DEFAULT_METHOD
    preset: str | None = None

    def __post_init__(self) -> None:
        set_field = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        given = {f.name for f in dataclasses.fields(self) if not _is_default(self, f)}
        if self.preset is not None:
            _check_choice("preset", self.preset, tuple(PRESETS))
            for name, value in PRESETS[self.preset].items():
                if name not in given:
                    set_field(name, value)
        object.__setattr__(self, "_given", frozenset(given))

        set_field("bits", 8 if self.bits is None else self.bits)
        for name in ("weight_bits", "activation_bits", "message_bits"):
            if getattr(self, name) is None:
                set_field(name, self.bits)
        if self.input_bits is None:
            set_field("input_bits", self.activation_bits)
        for name in ("bits", "weight_bits", "activation_bits", "message_bits", "input_bits"):
            _check_bits(name, getattr(self, name))
        if self.output_bits is not None:
            _check_bits("output_bits", self.output_bits)
        if self.edge_weight_bits is None:
            set_field("edge_weight_bits", DEFAULT_EDGE_WEIGHT_BITS)
        _check_bits("edge_weight_bits", self.edge_weight_bits, least=2)

        _check_flag("input_gain", self.input_gain)
        set_field("granularity", _normalize_granularity(self.granularity))
        set_field("points", _normalize_points(self.points))
        _check_choice("hop_quantizers", self.hop_quantizers, ("per_hop", "shared"))
        set_field("overrides", normalize_overrides(self.overrides, _override_fields))
        # Validates the fields that are only passed on.
        self.quantizer("activation")

    def __hash__(self) -> int:
        return hash(repr(self.to_dict()))

    def quantizes(self, point: str) -> bool:
        r"""Whether a place is among those to quantize."""
        assert self.points is not None
        return point in self.points

    def width(self, role: str) -> int:
        r"""Bits for a role: :obj:`"weight"`, :obj:`"activation"`, :obj:`"message"`,
        :obj:`"input"` or :obj:`"edge_weight"`."""
        bits = getattr(self, f"{role}_bits")
        assert isinstance(bits, int)
        return bits

    def quantizer(self, role: str, bits: int | None = None) -> QuantizerConfig:
        r"""The quantizer for a role: :obj:`"weight"`, :obj:`"activation"`, :obj:`"message"`,
        :obj:`"input"` or :obj:`"output"`.

        Args:
            role (str): What is quantized.
            bits (int, optional): Width, if not the role's own.
        """
        if bits is None:
            bits = getattr(self, f"{role}_bits")
        assert isinstance(self.granularity, Mapping)
        granularity = self.granularity.get(role, self.granularity["activation"])
        current = role == "weight" or granularity == "node"
        return QuantizerConfig(
            bits=8 if bits is None or bits in PASS_THROUGH_BITS else bits,
            truncation=self.truncation,
            granularity=granularity,
            statistics="current" if current else "running",
            momentum=self.momentum,
            zero_aligned=self.zero_aligned,
            skewness_unit=self.skewness_unit,
            skewness_rounding=self.skewness_rounding,
            search=self.search,
            gradient_scaling=self.gradient_scaling,
            method=self.method,
        )

    def rule_for(
        self, name: str, cls: type, ancestors: Sequence[tuple[str, type]] = ()
    ) -> str | None:
        r"""The override that holds for a module, or :obj:`None`.

        Args:
            name (str): Qualified name of the module.
            cls (type): Its class.
            ancestors (list): Names and classes of the modules around it, nearest first; their rules
                hold for what is inside them.
        """
        return match_override(self.overrides, [(name, cls), *ancestors])

    def under(self, rule: str | None) -> QLRConfig | None:
        r"""The config with one override applied: :obj:`None` if it keeps the module in floating
        point, and this config if :obj:`rule` is :obj:`None`."""
        if rule is None:
            return self
        changes = self.overrides[rule]
        if changes is None:
            return None
        # The rule's own bits come before widths that were given for the whole model.
        widths = dict.fromkeys(_WIDTHS, None) if "bits" in changes else {}
        return self.replace(**{**widths, **changes})

    def replace(self, **changes: Any) -> QLRConfig:
        r"""A copy with the given fields changed and the others as they were *asked for*, so that
        widths which follow :attr:`bits` follow the new one."""
        given = {name: getattr(self, name) for name in self._given}  # type: ignore[attr-defined]
        return QLRConfig(**{**given, **changes})

    def to_dict(self) -> dict[str, Any]:
        r"""The config as plain values, with its format version."""
        given = sorted(self._given)  # type: ignore[attr-defined]
        out: dict[str, Any] = {"version": CONFIG_VERSION}
        for name in given:
            value = getattr(self, name)
            if isinstance(value, Mapping):
                value = {k: dict(v) if isinstance(v, Mapping) else v for k, v in value.items()}
            out[name] = list(value) if isinstance(value, tuple) else value
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QLRConfig:
        r"""Inverse of :meth:`to_dict`.

        Args:
            values (dict): What :meth:`to_dict` returned.

        Raises:
            ConfigError: If the version or a field is unknown.
        """
        values = dict(values)
        version = values.pop("version", None)
        if version != CONFIG_VERSION:
            raise ConfigError(
                f"The config has format version {version!r}; this release reads version "
                f"{CONFIG_VERSION}. Save it again with the release that wrote it, or build it anew."
            )
        check_fields(values)
        if isinstance(values.get("points"), list):
            values["points"] = tuple(values["points"])
        return cls(**values)


def check_fields(values: Mapping[str, Any], where: str = "") -> None:
    """Refuses names that are no field of :class:`QLRConfig`, with the nearest ones."""
    from difflib import get_close_matches

    known = [f.name for f in dataclasses.fields(QLRConfig)]
    for name in values:
        if name not in known:
            near = get_close_matches(str(name), known, n=3)
            hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
            prefix = f"{where}: " if where else ""
            raise ConfigError(
                f"{prefix}{name!r} is not a config field.{hint} Known fields: {', '.join(known)}."
            )


def _override_fields(value: Any, where: str) -> dict[str, Any] | None:
    """The fields an override sets, checked by building the config they describe."""
    if isinstance(value, QLRConfig):
        value = {k: v for k, v in value.to_dict().items() if k != "version"}
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{where} is {value!r}; expected a dict of config fields, a config, or None to keep "
            f"the module in floating point."
        )
    check_fields(value, where)
    if value.get("overrides"):
        raise ConfigError(f"{where} has overrides of its own; list them side by side.")
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    QLRConfig(**fields)
    return fields


def _is_default(config: QLRConfig, f: dataclasses.Field[Any]) -> bool:
    value = getattr(config, f.name)
    if f.default_factory is not dataclasses.MISSING:
        return not value
    return bool(value == f.default)


def _normalize_granularity(value: str | Mapping[str, str] | None) -> Mapping[str, str]:
    if value is None:
        return dict(_DEFAULT_GRANULARITY)
    if isinstance(value, str):
        value = {role: value for role in _ROLES if value in _GRANULARITIES[role]} or {"": value}
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"granularity={value!r} is unknown; give a name, or a dict of names by role such as "
            f"{{'weight': 'tensor'}}."
        )
    merged = dict(_DEFAULT_GRANULARITY)
    for role, granularity in value.items():
        if role not in _ROLES:
            if role == "":
                choices = sorted({g for gs in _GRANULARITIES.values() for g in gs})
                _check_choice("granularity", granularity, tuple(choices))
            _check_choice("granularity role", role, _ROLES)
        _check_choice(f"granularity[{role!r}]", granularity, _GRANULARITIES[role])
        merged[role] = granularity
    return merged


def _normalize_points(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if value is None:
        return DEFAULT_POINTS
    if value == "paper":
        return PAPER_POINTS
    if not isinstance(value, (str, tuple, list, set, frozenset)):
        raise ConfigError(f"points={value!r} are none; give names, such as points=('weight',).")
    points = (value,) if isinstance(value, str) else tuple(value)
    for point in points:
        _check_choice("point", point, (*POINTS, "paper"))
    if not points:
        raise ConfigError(f"points is empty; choose at least one of {', '.join(POINTS)}.")
    return tuple(point for point in POINTS if point in points)
