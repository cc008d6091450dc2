"""Works out a plan: which layers of a model are quantized, at which places, with how many bits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from torch_geometric_qlr.config import (
    DEFAULT_METHOD,
    PASS_THROUGH_BITS,
    QLRConfig,
    QuantizerConfig,
)
from torch_geometric_qlr.errors import (
    ConfigError,
    NothingToQuantizeError,
    UnsupportedLayerError,
)
from torch_geometric_qlr.layers.layer_spec import REWRITTEN, LayerSpec
from torch_geometric_qlr.layers.state import unwrapped_class
from torch_geometric_qlr.nn.checks import (
    check_model,
    check_modules,
    check_names,
    check_weights,
    is_uninitialized,
)
from torch_geometric_qlr.nn.edge_weights import edge_weight_argument
from torch_geometric_qlr.nn.plan import Plan
from torch_geometric_qlr.nn.read_back import smooth_recipes
from torch_geometric_qlr.nn.recipe import (
    EdgeWeights,
    LayerRecipe,
    Point,
    PointRecipe,
    Ranges,
    Recipe,
)
from torch_geometric_qlr.nn.registry import find_spec, is_registered
from torch_geometric_qlr.overrides import check_all_matched, match_override
from torch_geometric_qlr.quantizers import check_method

__all__ = ["make_plan", "readers_of_input"]

_MIN_LOGIT_BITS = 8
_CONVS = ("copy", "attention", "edge")


def make_plan(model: nn.Module, config: QLRConfig) -> Plan:
    r"""Works out what a config does to a model, without touching it.

    Args:
        model (torch.nn.Module): The model.
        config (QLRConfig): What to quantize.

    Raises:
        UnsupportedLayerError, AlreadyQuantizedError, LazyModuleError, InputError, ConfigError,
        NothingToQuantizeError: If the model cannot be quantized like this.
    """
    check_model(model)
    layout = _ModuleTree(model)
    check_modules(layout.named)
    layers: dict[str, LayerRecipe] = {}
    kept: dict[str, str] = {}
    for name in layout.named:
        done = _plan_module(name, layout, config)
        if isinstance(done, LayerRecipe):
            layers[name] = done
        else:
            kept[name] = done
    layers |= _parents(layers, kept, layout)
    in_order = tuple(layers[name] for name in layout.named if name in layers)
    recipe = Recipe(in_order, smooth_recipes(model), kept=kept)
    plan = Plan.of(model, recipe, _counted_rules(config, layout))
    if not layers:
        raise NothingToQuantizeError(_nothing(plan))
    return plan


def _parents(
    layers: Mapping[str, LayerRecipe], kept: Mapping[str, str], layout: _ModuleTree
) -> dict[str, LayerRecipe]:
    """Modules that would go around their quantized children: they go through them instead."""
    quantized = {id(layout.named[name]) for name in layers}
    out = {}
    for name, module in layout.named.items():
        spec = layout.specs[name]
        if name in layers or spec is None or not spec.parent_kind:
            continue
        if any(id(inner) in quantized for inner in module.modules()):
            out[name] = LayerRecipe(
                name, unwrapped_class(module).__name__, spec.parent_kind, note=kept[name]
            )
    return out


def _counted_rules(config: QLRConfig, layout: _ModuleTree) -> dict[str, int]:
    """How many modules each rule matches; refuses one that would change nothing."""
    matched = {
        rule: [n for n, m in layout.named.items() if match_override([rule], layout.names_of(m))]
        for rule in config.overrides
    }
    check_all_matched(
        config.overrides, {rule: len(names) for rule, names in matched.items()}, layout.all_names
    )
    counts = {}
    for rule, names in matched.items():
        acting = [n for n in names if any(_within(r, n) for r in layout.rewritten)]
        if not acting and config.overrides[rule] is not None:
            raise ConfigError(
                f"override {rule!r} matches only {', '.join(names[:3])}, which stays in floating "
                f"point whatever its bits are. Drop the rule, or name a layer that qlr.plan(model) "
                f"lists as quantized."
            )
        counts[rule] = len(acting or names)
    return counts


def _nothing(plan: Plan) -> str:
    name = plan.model
    kept = "; ".join(f"{e.name or e.layer}: {e.note}" for e in plan.entries[:3] if e.note)
    if any(e.family in REWRITTEN for e in plan.entries):
        return (
            f"{name}: every layer stays in floating point, so there is nothing to quantize "
            f"({kept}). Lower bits=..., or drop the override that keeps the layers float."
        )
    found = f" ({kept})" if kept else ""
    return (
        f"{name} has no Linear, no MessagePassing and no registered layer, so there is nothing to "
        f"quantize{found}. Pass the model that contains the graph layers, or register your layer "
        f"with qlr.register_conv(...) or qlr.register_linear(...)."
    )


# What is known of a model before anything is decided ##############################################


class _ModuleTree:
    """Names, registry rows and positions of the modules of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.named = dict(model.named_modules())
        self.specs = {name: find_spec(module) for name, module in self.named.items()}
        self._aliases: dict[int, list[str]] = defaultdict(list)
        for name, module in model.named_modules(remove_duplicate=False):
            self._aliases[id(module)].append(name)
        self.all_names = [name for names in self._aliases.values() for name in names]
        self._owners = Counter(
            id(p) for module in self.named.values() for p in module._parameters.values()
        )
        self.first, self.last = self._ends()
        #: Modules that their parent reads as a tensor: anywhere, or in its forward only.
        self.read_anywhere = dict(self._read_by("reads_anywhere"))
        self.read_in_forward = dict(self._read_by("reads_in_forward"))

    def names_of(self, module: nn.Module) -> list[tuple[str, type]]:
        """All names of a module that is used in several places, with its class."""
        return [(name, type(module)) for name in self._aliases[id(module)]]

    def lineage(self, module: nn.Module) -> list[tuple[str, type]]:
        """The module and those around it, nearest first, under all of its names."""
        out = self.names_of(module)
        for name, _ in tuple(out):
            while name:
                name = name.rpartition(".")[0]
                out += [(name, type(self.named[name]))] if name in self.named else []
        return out

    def has_own_weight(self, module: nn.Module) -> bool:
        """Whether no other module has the parameter that a Linear multiplies by."""
        weight = module._parameters.get("weight")
        return weight is not None and self._owners[id(weight)] == 1

    @property
    def rewritten(self) -> list[str]:
        """Names of the layers that can become quantized objects."""
        return [
            n for n, spec in self.specs.items() if spec is not None and spec.family in REWRITTEN
        ]

    def sees_input(self, name: str) -> bool:
        """Whether a Linear multiplies the model's own input features: the first Linear of each
        branch of a first layer."""
        for unit in self.first:
            if name == unit:
                return True
            if _inside(name, unit):
                child = name.removeprefix(f"{unit}.").partition(".")[0]
                spec = self.specs[unit]
                if spec is not None and child not in (spec.input_children or (child,)):
                    return False
                first = next((n for n in self._linears() if _within(n, f"{unit}.{child}")), "")
                return name in self._beside(first)
        return False

    def _beside(self, name: str) -> set[str]:
        """A module and those beside it, one per node or edge type: ``HeteroConv``, ``to_hetero``
        and the like keep them in a ``ModuleDict``."""
        parent = name.rpartition(".")[0]
        if not isinstance(self.named.get(parent), nn.ModuleDict):
            return {name}
        return {n for n in self.named if n.rpartition(".")[0] == parent}

    def _linears(self) -> Iterator[str]:
        return (n for n, spec in self.specs.items() if spec is not None and spec.family == "linear")

    def _ends(self) -> tuple[set[str], set[str]]:
        """Names of the first and last layers, convs or Linears, with what runs beside them."""
        units: list[str] = []
        for name, spec in self.specs.items():
            is_unit = spec is not None and spec.family in (*_CONVS, "linear")
            if is_unit and not any(_inside(name, unit) for unit in units):
                units.append(name)
        if not units:
            return set(), set()

        # A bare layer is not a model: it does not know whether its input is a hidden one.
        first = set() if units[0] == "" else self._beside(units[0])
        return first & {*units}, self._beside(units[-1]) & {*units}

    def _read_by(self, fact: str) -> Iterator[tuple[str, str]]:
        for name, spec in self.specs.items():
            child = "" if spec is None else getattr(spec, fact)
            if child:
                path, cls = f"{name}.{child}" if name else child, type(self.named[name]).__name__
                yield from ((n, cls) for n in self.named if _within(n, path))


def _inside(name: str, unit: str) -> bool:
    return name != unit and (unit == "" or name.startswith(f"{unit}."))


def _within(name: str, unit: str) -> bool:
    return name == unit or _inside(name, unit)


def readers_of_input(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    r"""Where a model's own input features are quantized first: layers by name, and the place.

    Args:
        model (torch.nn.Module): A quantized or converted model.
    """
    layout = _ModuleTree(model)
    for name, module in layout.named.items():
        spec = layout.specs[name]
        if spec is None:
            continue
        if spec.family == "linear" and (layout.sees_input(name) or name == ""):
            yield name, module, "input"
        if spec.propagates_input and (name in layout.first or name == ""):
            yield from ((name, module, f"source_{source}") for source in spec.sources)


# One module #######################################################################################


def _plan_module(name: str, layout: _ModuleTree, config: QLRConfig) -> LayerRecipe | str:
    """What is done to a module, or what there is to say about one that stays as it is."""
    module, spec = layout.named[name], layout.specs[name]
    if name in layout.read_anywhere:
        return f"kept float: {layout.read_anywhere[name]} reads it as a tensor"
    if spec is None or spec.family not in REWRITTEN:
        return _reason(module, spec)
    if type(module).__module__.startswith("brevitas."):
        return "kept as it is: quantized by Brevitas"
    if is_uninitialized(module):
        return "kept float: no data has reached it, so it has no weights yet (lazy)"
    if hasattr(module, "parametrizations"):
        return "kept float: parametrized; remove the parametrization to quantize it"
    if spec.family == "linear" and not set(spec.weights) <= set(module._parameters):
        return _without_weight(name, module, next(iter(spec.weights)))
    if is_registered(module):
        _check_registration(name, module, spec)
    (own_name, cls), *around = layout.lineage(module)
    rule = config.rule_for(own_name, cls, around)
    here = config.under(rule)
    if here is None:
        return f"kept float: override {rule!r}"

    points = _points(module, spec, here, name in layout.first, layout.sees_input(name))
    points |= _output(name, spec, here, layout, _names_output(rule, module, layout, config))
    notes = [spec.note] if spec.note else []
    if name in layout.read_in_forward:
        points = {point: asked for point, asked in points.items() if point.kind == "weight"}
        notes.insert(0, f"weight only: {layout.read_in_forward[name]} multiplies by it itself")
    wide = [str(point) for point, (_, bits) in points.items() if bits in PASS_THROUGH_BITS]
    if wide:
        notes.insert(0, f"wide: {', '.join(wide)}")
    points = {point: asked for point, asked in points.items() if str(point) not in wide}
    if not points:
        return "; ".join(notes)
    if here.method != DEFAULT_METHOD:
        notes.append(f"method {here.method!r}")
    if spec.family == "linear":
        check_weights(name, module, (point.name for point in points if point.kind == "weight"))
    check_names(name, module)
    layer = _Layer(name, module, spec, here)
    return LayerRecipe(
        name,
        layer=unwrapped_class(module).__name__,
        kind=spec.kind,
        weights=spec.weight_names,
        quantizers={point: layer.quantizer(point, *asked) for point, asked in points.items()},
        input_gain=here.input_gain and _may_have_gain(name, layout),
        note="; ".join(notes),
    )


def _may_have_gain(name: str, layout: _ModuleTree) -> bool:
    """Whether a gain of the model's features may be folded into the weight of a Linear."""
    module, spec = layout.named[name], layout.specs[name]
    return (
        spec is not None
        and spec.family == "linear"
        and layout.sees_input(name)
        and name not in layout.read_in_forward
        and layout.has_own_weight(module)
    )


def _check_registration(name: str, module: nn.Module, spec: LayerSpec) -> None:
    """Whether a layer has what was said of its class."""
    where, own = name or type(module).__name__, module._parameters
    missing = [n for n in spec.weight_names if n not in own and not hasattr(module, n)]
    if missing and spec.family != "linear":  # of which more is said elsewhere
        raise ConfigError(
            f"{where}: {type(module).__name__} is registered with the weights "
            f"{', '.join(missing)}, and has no such parameter (it has {', '.join(own) or 'none'}). "
            f"Register it again with the right names and replace=True."
        )
    hops = spec.hops(module)
    if isinstance(hops, bool) or not isinstance(hops, int) or hops < 1:
        raise ConfigError(
            f"{where}: the hops that {type(module).__name__} is registered with give {hops!r}; "
            f"they give how often its forward calls propagate(), at least 1."
        )


def _points(
    module: nn.Module, spec: LayerSpec, config: QLRConfig, is_first: bool, sees_input: bool
) -> dict[Point, tuple[str, int]]:
    """Where the layer is quantized, in which role, with how many bits."""
    out: dict[Point, tuple[str, int]] = {}
    if spec.family == "linear":
        if config.quantizes("input"):
            role = "input" if sees_input else "activation"
            out[Point("input")] = (role, config.width(role))
        if config.quantizes("linear_output"):
            out[Point("linear_output")] = ("activation", config.width("activation"))
    if config.quantizes("weight"):
        for n in spec.weight_names:
            if isinstance(module._parameters.get(n), nn.Parameter):
                logit = n in spec.logit_weights
                bits = _logit_bits(config.width("weight")) if logit else config.width("weight")
                out[Point("weight", n)] = ("weight", bits)
    if spec.family in _CONVS:
        by_source = spec.family != "edge" and config.quantizes("source")
        if by_source:
            role = "input" if is_first and spec.propagates_input else "message"
            bits = config.width(role)
            out |= {Point("source", n): (role, bits) for n in spec.sources}
            out |= {Point("source", n): (role, _logit_bits(bits)) for n in spec.logit_sources}
            sent = tuple(p.name for p, (_, b) in out.items() if p.kind == "source" and b <= 8)
            if config.quantizes("edge_weight") and edge_weight_argument(module, sent):
                out[Point("edge_weight")] = ("edge_weight", config.width("edge_weight"))
        elif config.quantizes("message"):
            out[Point("message")] = ("message", config.width("message"))
        if config.quantizes("aggregate"):
            out[Point("aggregate")] = ("message", config.width("message"))
    return out


def _logit_bits(bits: int) -> int:
    return max(bits, _MIN_LOGIT_BITS)


def _output(
    name: str, spec: LayerSpec, config: QLRConfig, layout: _ModuleTree, asked: bool
) -> dict[Point, tuple[str, int]]:
    """The output stays wide at the end of a model unless ``output_bits`` says otherwise."""
    if config.output_bits is not None and (asked or name in layout.last):
        return {Point("output"): ("output", config.output_bits)}
    at_end = any(_within(name, unit) for unit in layout.last)
    if config.quantizes("output") and not at_end and spec.family != "weights":
        return {Point("output"): ("activation", config.width("activation"))}
    return {}


def _names_output(
    rule: str | None, module: nn.Module, layout: _ModuleTree, config: QLRConfig
) -> bool:
    """Whether an override asks for the output of this very module."""
    fields = config.overrides[rule] if rule is not None else None
    return (
        rule is not None
        and "output_bits" in (fields or {})
        and match_override([rule], layout.names_of(module)) is not None
    )


class _Layer(NamedTuple):
    """One layer, and what is asked of it."""

    name: str
    module: Any
    spec: LayerSpec
    config: QLRConfig

    def quantizer(self, point: Point, role: str, bits: int) -> PointRecipe:
        """What acts at a point: one, or one for each call of ``propagate``."""
        if point.kind == "edge_weight":
            return EdgeWeights(bits)
        asked = self.config.quantizer(role, bits)
        check_method(asked, point.path(self.name or type(self.module).__name__))
        channel_dim = self.spec.weights.get(point.name, 0) if point.kind == "weight" else 0
        if point.kind == "weight":
            weight = self.module.get_parameter(point.name)
            if weight.size(channel_dim) in (1, weight.numel()):
                # A vector has no channels: one range for all of it, not one per value.
                asked = replace(asked, granularity="tensor")
        groups = self.num_groups(point, asked, channel_dim)
        one = Ranges(asked, groups, channel_dim if asked.granularity == "channel" else -1)
        if not point.is_per_hop:
            return one
        shared = self.config.hop_quantizers == "shared"
        count = (self.spec.hop_kinds if shared else self.spec.hops)(self.module)
        return (one,) * count if count > 1 or point.kind == "source" else one

    def num_groups(self, point: Point, asked: QuantizerConfig, channel_dim: int) -> int:
        """How many ranges: output channels of a weight, features of an activation."""
        if asked.granularity == "channel":
            size: int = self.module.get_parameter(point.name).size(channel_dim)
            return size
        if asked.granularity != "feature":
            return 1
        channels = self.num_features(point)
        if isinstance(channels, (tuple, list)):
            channels = channels[0]
        if not isinstance(channels, int):
            where = self.name or type(self.module).__name__
            raise ConfigError(
                f"{where}.{point.name or point.kind}: granularity 'feature' needs the number of "
                f"features, which {type(self.module).__name__} does not tell. Choose 'tensor' or "
                f"'node' for it."
            )
        side_by_side = point.kind == "output" and getattr(self.module, "concat", False)
        return channels * int(getattr(self.module, "heads", 1)) if side_by_side else channels

    def num_features(self, point: Point) -> Any:
        """As the layer tells it, if it does."""
        spec = self.spec
        if spec.family != "linear":
            before = point.kind == "source" and spec.propagates_input
            return getattr(self.module, "in_channels" if before else "out_channels", None)
        if not spec.features_last:
            return None
        ((weight, channel_dim),) = spec.weights.items()
        input_dim = -1 if channel_dim == 0 else -2
        dim = input_dim if point.kind == "input" else channel_dim
        return self.module.get_parameter(weight).size(dim)


def _without_weight(name: str, module: nn.Module, weight: str) -> str:
    if hasattr(module, weight):
        return f"kept float: a hook computes its {weight}, as spectral_norm does"
    names = ", ".join(module._parameters) or "none"
    raise UnsupportedLayerError(
        f"{name or 'The model'}: {type(module).__name__} is registered as a linear layer and has "
        f"no parameter {weight!r} (it has {names}). Name it: register_linear(..., weight=...)."
    )


def _reason(module: nn.Module, spec: LayerSpec | None) -> str:
    if spec is not None:
        return f"kept float: {spec.note}" if spec.family == "float" else spec.note
    cls = type(module)
    in_norm = cls.__module__.startswith("torch_geometric.nn.norm")
    if in_norm or any("Norm" in base.__name__ for base in cls.__mro__):
        return "kept float: normalisation"
    if isinstance(module, (nn.ParameterDict, nn.ParameterList)):
        return "kept float: parameter container"
    if all(p.dim() < 2 for p in module.parameters(recurse=False)):
        return "kept float: scalars or a bias"
    return "kept float: no registered weights; see qlr.register_linear"
