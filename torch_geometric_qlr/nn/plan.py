"""The dry run: for every module what happens, at which points, with how many bits, or why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.dense.linear import is_uninitialized_parameter

from torch_geometric_qlr.config import PASS_THROUGH_BITS, QLRConfig, QuantizerConfig
from torch_geometric_qlr.errors import (
    AlreadyQuantizedError,
    InputError,
    LazyModuleError,
    NothingToQuantizeError,
    UnsupportedLayerError,
)
from torch_geometric_qlr.nn.layer import QuantLayer
from torch_geometric_qlr.nn.registry import READ_AS_TENSOR, REWRITTEN, LayerSpec, find_spec
from torch_geometric_qlr.overrides import check_all_matched, match_override

__all__ = ["Plan", "PlanEntry", "make_plan"]

_MIN_LOGIT_BITS = 8


@dataclass(frozen=True)
class PlanEntry:
    r"""What happens to one module.

    Args:
        name (str): Qualified name; :obj:`""` is the model itself.
        layer (str): Its class.
        family (str): Its message family, :obj:`"linear"`, :obj:`"weights"` or :obj:`"-"`.
        points (dict): Where it is quantized, and to how many bits.
        parameters (int): Number of values in its own parameters.
        quantized_parameters (int): How many of those are quantized.
        note (str): Why something stays in floating point, and other remarks.
    """

    name: str
    layer: str
    family: str
    points: Mapping[str, int]
    parameters: int
    quantized_parameters: int
    note: str

    @property
    def bits(self) -> str:
        """Widths as weight/activation/message, with a dash where nothing is quantized."""
        if not self.points:
            return "-"
        widths = [
            [b for p, b in self.points.items() if p.partition(":")[0] in kinds]
            for kinds in (("weight",), ("input", "linear_output", "output"), ("source", "message"))
        ]
        return "/".join(str(min(w)) if w else "-" for w in widths)


@dataclass
class Site:
    """A module that is going to be rewritten, with the quantizers it will hold."""

    name: str
    layer: nn.Module
    spec: LayerSpec
    points: dict[str, QuantizerConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    r"""The result of :func:`torch_geometric_qlr.plan`: prints as a table.

    Args:
        model (str): Class of the model.
        entries (tuple): One :class:`PlanEntry` per module with parameters or messages.
        rules (dict): How many modules each override matched.
    """

    model: str
    entries: tuple[PlanEntry, ...]
    rules: Mapping[str, int]
    sites: tuple[Site, ...] = field(repr=False, compare=False, default=())

    @property
    def parameters(self) -> int:
        """Values in all parameters, each counted once."""
        return sum(e.parameters for e in self.entries)

    @property
    def quantized_parameters(self) -> int:
        """Values in quantized parameters."""
        return sum(e.quantized_parameters for e in self.entries)

    def to_dict(self) -> dict[str, Any]:
        r"""The plan as plain values."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "quantized_parameters": self.quantized_parameters,
            "rules": dict(self.rules),
            "modules": [
                {
                    "name": e.name,
                    "layer": e.layer,
                    "family": e.family,
                    "points": dict(e.points),
                    "parameters": e.parameters,
                    "quantized_parameters": e.quantized_parameters,
                    "note": e.note,
                }
                for e in self.entries
            ],
        }

    def __str__(self) -> str:
        head = ("module", "layer", "family", "quantized at", "bits (w/a/m)", "note")
        rows = [
            (e.name or "(model)", e.layer, e.family, _listed(e.points), e.bits, e.note)
            for e in self.entries
        ]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        ]
        share = 100 * self.quantized_parameters / max(1, self.parameters)
        sends = [e for e in self.entries if e.family in ("copy", "attention", "edge")]
        kinds = ("source", "message")
        quantized = sum(any(p.partition(":")[0] in kinds for p in e.points) for e in sends)
        total = f"quantized: {share:.1f} % of {self.parameters:,} parameters"
        if sends:
            total += f"; messages of {quantized} of {len(sends)} layers"
        for rule, count in self.rules.items():
            total += f"; rule {rule!r} matched {count} module{'s' if count != 1 else ''}"
        return "\n".join([*lines, total])


def _listed(points: Mapping[str, int]) -> str:
    """Points for a reader: the usual argument or parameter of a point goes without saying."""
    short = {"source:x": "source", "weight:weight": "weight"}
    return ", ".join(short.get(p, p.removeprefix("weight:")) for p in points) or "-"


def make_plan(model: nn.Module, config: QLRConfig) -> Plan:
    r"""Works out what a config does to a model, without touching it.

    Args:
        model (torch.nn.Module): The model.
        config (QLRConfig): What to quantize.

    Raises:
        UnsupportedLayerError, AlreadyQuantizedError, LazyModuleError, InputError, ConfigError,
        NothingToQuantizeError: If the model cannot be quantized like this.
    """
    _check_model(model)
    named = dict(model.named_modules())
    specs = {name: find_spec(module) for name, module in named.items()}
    _check_modules(named)
    first, last = _ends(named, specs)

    counts = dict.fromkeys(config.overrides, 0)
    counted: set[int] = set()
    entries, sites = [], []
    for name, module in named.items():
        rule = config.rule_for(name, type(module), list(_ancestors(name, named)))
        for own_rule in counts:
            counts[own_rule] += match_override([own_rule], [(name, type(module))]) is not None
        site, reason = _plan_module(name, named, specs, config.under(rule), first, last)
        if rule is not None and config.overrides[rule] is None:
            reason = f"kept float: override {rule!r}"
        own = [(n, p) for n, p in module.named_parameters(recurse=False) if id(p) not in counted]
        counted.update(id(p) for _, p in own)
        if site is not None:
            sites.append(site)
        if site is not None or own or isinstance(module, MessagePassing):
            entries.append(_entry(name, module, specs[name], site, own, reason))
    check_all_matched(config.overrides, counts, list(named))
    if not sites:
        raise NothingToQuantizeError(_nothing(model, entries))
    return Plan(type(model).__name__, tuple(entries), counts, tuple(sites))


# Checks ###########################################################################################


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise UnsupportedLayerError(
            f"Expected a torch.nn.Module (got {type(model).__name__}). Pass the model itself, not "
            f"its class or its state_dict."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedLayerError(
            f"{type(model).__name__} is a TorchScript module, which cannot be rewritten. Quantize "
            f"the original model."
        )
    if hasattr(model, "_orig_mod"):
        raise UnsupportedLayerError(
            "The model has been compiled with torch.compile. Quantize it first, then compile."
        )


def _check_modules(named: Mapping[str, nn.Module]) -> None:
    for name, module in named.items():
        where = f"{name or type(module).__name__}"
        if isinstance(module, QuantLayer):
            raise AlreadyQuantizedError(
                f"{where}: {type(module).__name__} is quantized already. Quantize the float model "
                f"once, with overrides={{...}} for what should differ between layers."
            )
        for key, p in module._parameters.items():
            if p is None:
                continue
            if is_uninitialized_parameter(p):
                raise LazyModuleError(
                    f"{where}: {type(module).__name__}.{key} is not initialized yet (lazy, "
                    f"in_channels=-1). Run one forward pass with a small batch first, then quantize."
                )
            if p.is_floating_point() and p.device.type != "meta" and not bool(p.isfinite().all()):
                raise InputError(
                    f"{where}: the parameter {key!r} holds NaN or Inf. Load or train the model "
                    f"again before it is quantized."
                )


def _nothing(model: nn.Module, entries: list[PlanEntry]) -> str:
    name = type(model).__name__
    if any(e.family in REWRITTEN for e in entries):
        return (
            f"{name}: the config leaves every layer in floating point, so there is nothing to "
            f"quantize. Lower bits=..., or drop the override that keeps the layers float."
        )
    return (
        f"{name} has no Linear, no MessagePassing and no registered layer, so there is nothing to "
        f"quantize. Pass the model that contains the graph layers, or register your layer with "
        f"qlr.register_conv(...) or qlr.register_linear(...)."
    )


# Where a model begins and ends ####################################################################


def _ancestors(name: str, named: Mapping[str, nn.Module]) -> Iterator[tuple[str, type]]:
    while name:
        name = name.rpartition(".")[0]
        if name in named:
            yield name, type(named[name])


def _ends(
    named: Mapping[str, nn.Module], specs: Mapping[str, LayerSpec | None]
) -> tuple[set[str], set[str]]:
    """Names of the first and last layers, convs or Linears, with what runs beside them."""
    units: list[str] = []
    for name, spec in specs.items():
        is_unit = spec is not None and spec.family in ("copy", "attention", "edge", "linear")
        if is_unit and not any(_inside(name, unit) for unit in units):
            units.append(name)
    if not units:
        return set(), set()

    def beside(unit: str) -> set[str]:
        # One layer per node or edge type: HeteroConv and to_hetero keep them in a ModuleDict.
        parent = unit.rpartition(".")[0]
        if unit and isinstance(named.get(parent), nn.ModuleDict):
            return {u for u in units if u.rpartition(".")[0] == parent}
        return {unit}

    # A bare layer is not a model: it does not know whether its input is a hidden one.
    first = set() if units[0] == "" else beside(units[0])
    return first, beside(units[-1])


def _inside(name: str, unit: str) -> bool:
    return name != unit and (unit == "" or name.startswith(f"{unit}."))


def _sees_input(name: str, first: set[str], specs: Mapping[str, LayerSpec | None]) -> bool:
    """Whether a Linear multiplies the model's own input features: the first Linear of each branch
    of a first layer."""
    for unit in first:
        if name == unit:
            return True
        if _inside(name, unit):
            branch = f"{unit}.{name.removeprefix(unit + '.').partition('.')[0]}"
            linears = [
                n
                for n, s in specs.items()
                if s is not None and s.family == "linear" and (n == branch or _inside(n, branch))
            ]
            return bool(linears) and linears[0] == name
    return False


# One module #######################################################################################


def _plan_module(
    name: str,
    named: Mapping[str, nn.Module],
    specs: Mapping[str, LayerSpec | None],
    config: QLRConfig | None,
    first: set[str],
    last: set[str],
) -> tuple[Site | None, str]:
    module, spec = named[name], specs[name]
    parent = name.rpartition(".")[0]
    reader = type(named[parent]).__name__ if name and parent in named else ""
    if READ_AS_TENSOR.get(reader) == name.rpartition(".")[2] and name:
        return None, f"kept float: {reader} reads it as a tensor"
    if spec is None or spec.family not in REWRITTEN:
        return None, _reason(module, spec)
    if type(module).__module__.startswith("brevitas."):
        return None, "kept as it is: quantized by Brevitas"
    if hasattr(module, "parametrizations"):
        return None, "kept float: parametrized; remove the parametrization to quantize it"
    if config is None:
        return None, ""

    points = _points(module, spec, config, name in first, _sees_input(name, first, specs))
    if name in last and config.output_bits is not None:
        points["output"] = ("output", config.output_bits)
    elif "output" in config.points and name not in last and spec.family != "weights":
        points["output"] = ("activation", config.activation_bits or 8)
    site = Site(name, module, spec)
    wide = [p for p, (_, bits) in points.items() if bits in PASS_THROUGH_BITS]
    site.points = {
        p: config.quantizer(role, bits) for p, (role, bits) in points.items() if p not in wide
    }
    note = spec.note
    if wide:
        note = f"wide: {', '.join(wide)}" + (f"; {note}" if note else "")
    return (site if site.points else None), note


def _points(
    module: nn.Module, spec: LayerSpec, config: QLRConfig, is_first: bool, sees_input: bool
) -> dict[str, tuple[str, int]]:
    """Point -> (role, bits). Points that name an argument or a parameter are "source:x"."""
    wanted = config.points
    assert config.weight_bits and config.activation_bits and config.message_bits and config.input_bits
    out: dict[str, tuple[str, int]] = {}
    if spec.family == "linear":
        if "input" in wanted:
            bits = config.input_bits if sees_input else config.activation_bits
            out["input"] = ("input" if sees_input else "activation", bits)
        if "linear_output" in wanted:
            out["linear_output"] = ("activation", config.activation_bits)
    if "weight" in wanted:
        for n in spec.weight_names:
            if isinstance(module._parameters.get(n), nn.Parameter):
                logit = n in spec.logit_weights
                bits = _logit_bits(config.weight_bits) if logit else config.weight_bits
                out[f"weight:{n}"] = ("weight", bits)
    if spec.family in ("copy", "attention", "edge"):
        by_source = spec.family != "edge" and "source" in wanted
        if by_source:
            first = is_first and spec.propagates_input
            bits = config.input_bits if first else config.message_bits
            role = "input" if first else "message"
            out |= {f"source:{n}": (role, bits) for n in spec.sources}
            out |= {f"source:{n}": (role, _logit_bits(bits)) for n in spec.logit_sources}
        elif "message" in wanted:
            out["message"] = ("message", config.message_bits)
        if "aggregate" in wanted:
            out["aggregate"] = ("message", config.message_bits)
    return out


def _logit_bits(bits: int) -> int:
    return max(bits, _MIN_LOGIT_BITS)


def _reason(module: nn.Module, spec: LayerSpec | None) -> str:
    if spec is not None:
        return f"kept float: {spec.note}" if spec.family == "float" else spec.note
    cls = type(module)
    names = {base.__name__ for base in cls.__mro__}
    if cls.__module__.startswith("torch_geometric.nn.norm") or any(
        "Norm" in name for name in names
    ):
        return "kept float: normalisation"
    if isinstance(module, (nn.ParameterDict, nn.ParameterList)):
        return "kept float: parameter container"
    return "kept float: no registered weights; see qlr.register_linear"


def _entry(  # noqa: PLR0913
    name: str,
    module: nn.Module,
    spec: LayerSpec | None,
    site: Site | None,
    own: list[tuple[str, nn.Parameter]],
    reason: str,
) -> PlanEntry:
    quantized = {p.partition(":")[2] for p in site.points if p.startswith("weight:")} if site else set()
    kept = [n for n, _ in own if n not in quantized]
    note = reason
    if site is not None and kept:
        note = f"{', '.join(kept)} kept float" + (f"; {reason}" if reason else "")
    rewritten = spec is not None and spec.family in REWRITTEN
    return PlanEntry(
        name=name,
        layer=type(module).__name__,
        family=spec.family if spec is not None and rewritten else "-",
        points={p: q.bits for p, q in site.points.items()} if site else {},
        parameters=sum(p.numel() for _, p in own),
        quantized_parameters=sum(p.numel() for n, p in own if n in quantized),
        note=note,
    )
