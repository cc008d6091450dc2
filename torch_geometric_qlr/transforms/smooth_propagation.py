"""From any model to one whose layers take smoothness-aware steps where they propagate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from torch_geometric.nn import MessagePassing

from torch_geometric_qlr.errors import UnsupportedLayerError
from torch_geometric_qlr.nn.checks import check_model
from torch_geometric_qlr.nn.copying import copy_of
from torch_geometric_qlr.nn.propagation.smooth import (
    SmoothMessagePassing,
    SmoothOptions,
    SmoothState,
    smooth_layer,
)
from torch_geometric_qlr.nn.registry import find_spec
from torch_geometric_qlr.overrides import check_all_matched, match_override
from torch_geometric_qlr.text import aligned

__all__ = ["SmoothEntry", "SmoothPlan", "SmoothPropagation"]

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class SmoothEntry:
    r"""What happens to the propagation of one layer.

    Args:
        name (str): Qualified name; :obj:`""` is the model itself.
        layer (str): Its class.
        hops (int): How often it propagates in a forward.
        reason (str): Why it is left as it is; :obj:`""` if it is smoothed.
    """

    name: str
    layer: str
    hops: int
    reason: str


@dataclass(frozen=True)
class SmoothPlan:
    r"""The result of :meth:`SmoothPropagation.plan()
    <torch_geometric_qlr.transforms.SmoothPropagation.plan>`: prints as a table.

    Args:
        model (str): Class of the model.
        entries (tuple): One :class:`SmoothEntry` per layer that propagates.
    """

    model: str
    entries: tuple[SmoothEntry, ...]

    @property
    def smoothed(self) -> tuple[SmoothEntry, ...]:
        """The layers that will be smoothed."""
        return tuple(entry for entry in self.entries if not entry.reason)

    def to_dict(self) -> dict[str, Any]:
        r"""The plan as plain values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = [("module", "layer", "hops", "propagation")]
        for e in self.entries:
            what = f"as it is: {e.reason}" if e.reason else "smoothed"
            rows.append((e.name or "(model)", e.layer, str(e.hops), what))
        return "\n".join(
            [*aligned(rows), f"smoothed: {len(self.smoothed)} of {len(self.entries)} layers"]
        )


class SmoothPropagation:
    r"""Rewrites a copy of a model so that every propagation in it is a step of the
    `"Low-bit Quantization for Deep Graph Neural Networks with Smoothness-aware Message Propagation"
    <https://arxiv.org/abs/2308.14949>`_ paper. With :math:`\mathbf{P}` the layer's *own* operator,
    what it propagates, :math:`\mathbf{H}`, becomes

    .. math::
        \mathbf{H}^{\prime} &= (1 - (1 + \mu) \eta) \mathbf{H} + \mu \eta \mathbf{P} \mathbf{H}
        + \eta \mathbf{H}_0

        \mathbf{G} &= \mathbf{H}^{\prime} - \mathbf{H}

        \mathbf{H}^{+} &= \mathbf{H}^{\prime} + 2 \eta \lambda \mathbf{P} \mathbf{G},

    where :math:`\mathbf{H}_0` is what the layer propagates first in a forward, and
    :math:`\lambda` follows the constraint as in :class:`~torch_geometric_qlr.nn.SMP`. So
    ``SGConv(K=K)`` propagates like ``SMP(K)``. Composes with
    :class:`~torch_geometric_qlr.transforms.Quantize` in either order, to the same model.

    A layer qualifies if its operator is linear in the features and has normalised weights, which
    its row in the registry says:

    * symmetrically normalised: :class:`~torch_geometric.nn.GCNConv`, :obj:`GCN2Conv`,
      :obj:`TAGConv`, :obj:`SGConv`, :obj:`SSGConv`, :obj:`APPNP`, :obj:`LGConv`,
      :obj:`MixHopConv`, :obj:`PDNConv`, unless they were built with :obj:`normalize=False`.
      :obj:`APPNP` and :obj:`SSGConv` still add their own teleport after each step;
    * averages: :obj:`SAGEConv`, :obj:`GraphConv` (given no edge weights) and :obj:`SimpleConv`
      with :obj:`aggr="mean"`;
    * attention that is computed *before* features are propagated: :obj:`GATConv`,
      :obj:`GATv2Conv`, :obj:`AGNNConv`. Their rows add up to one, and with the coefficients held
      they are linear; both products of a step use the same coefficients.

    Averages and attention are not symmetric, so that :math:`\mathrm{tr}(\mathbf{G}^{\top}
    (\mathbf{I} - \mathbf{P}) \mathbf{G})` is no energy there: the bound is the paper's formula, and
    no more. Other layers (sums, maxima, messages computed per edge, attention within the messages,
    several relations) stay as they are; :meth:`plan` and :func:`torch_geometric_qlr.plan` say why.

    A layer that propagates once starts from :obj:`init_lambda` each time. For its multiplier to
    follow the constraint, use :obj:`multiplier_state="persistent"`, where it moves from one
    training step to the next.

    Args:
        mu (float, optional): Weight :math:`\mu` of smoothness. (default: :obj:`9.0`)
        eta (float, optional): Step size :math:`\eta`. (default: :obj:`0.1`)
        tau (float, optional): Bound :math:`\tau` on the change, per edge. (default: :obj:`1e-3`)
        exclude (sequence, optional): Layers to leave as they are: names, globs, :obj:`"re:..."` or
            types, as in the overrides of :class:`~torch_geometric_qlr.QLRConfig`.
            (default: :obj:`()`)
        **options (optional): :obj:`eta_lambda`, :obj:`eta_slack`, :obj:`init_lambda`,
            :obj:`init_slack`, :obj:`correction`, :obj:`primal`, :obj:`multiplier_state`,
            :obj:`projection` and :obj:`detach_multiplier` of
            :class:`~torch_geometric_qlr.nn.SMP`.

    Raises:
        ConfigError: If an option has no such value.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> import torch_geometric_qlr as qlr
        >>> smooth = qlr.transforms.SmoothPropagation(tau=0.01)
        >>> model = GCN(8, 16, num_layers=2, out_channels=4)
        >>> print(smooth.plan(model))
        module   layer    hops  propagation
        convs.0  GCNConv  1     smoothed
        convs.1  GCNConv  1     smoothed
        smoothed: 2 of 2 layers
        >>> type(qlr.quantize(smooth(model), bits=2).convs[0]).__name__
        'SmoothQuantGCNConv'
    """

    def __init__(
        self,
        mu: float = 9.0,
        eta: float = 0.1,
        tau: float = 1e-3,
        *,
        exclude: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.options = SmoothOptions(mu=mu, eta=eta, tau=tau, **options)
        self.exclude = tuple(exclude)

    def plan(self, model: nn.Module) -> SmoothPlan:
        r"""A dry run: which layers are smoothed, and why the others are not.

        Args:
            model (torch.nn.Module): Any model; it is not changed.

        Raises:
            UnsupportedLayerError: If it is no module, or a compiled one.
            ConfigError: If something to exclude is not there.
        """
        check_model(model)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, MessagePassing)}
        hit = {name: match_override(self.exclude, [(name, type(layers[name]))]) for name in layers}
        counts = {rule: sum(found == rule for found in hit.values()) for rule in self.exclude}
        check_all_matched(self.exclude, counts, list(layers))
        entries = [
            SmoothEntry(
                name,
                type(layer).__name__,
                _spec(layer).hops(layer),
                f"excluded by {hit[name]!r}" if hit[name] is not None else _reason(layer),
            )
            for name, layer in layers.items()
        ]
        return SmoothPlan(type(model).__name__, tuple(entries))

    def __call__(self, model: M) -> M:
        r"""A copy of the model with smoothed propagation.

        Args:
            model (torch.nn.Module): The model, quantized or not.

        Raises:
            UnsupportedLayerError: If no layer qualifies, or one is smooth already.
            ConfigError: If something to exclude is not there.
        """
        plan = self.plan(model)
        if not plan.smoothed:
            found = "; ".join(f"{e.name or e.layer}: {e.reason}" for e in plan.entries[:3])
            raise UnsupportedLayerError(
                f"{plan.model}: no layer has a propagation that can be smoothed"
                f"{f' ({found})' if found else ', since none propagates'}. Pass a model with "
                f"normalised, linear propagation, such as GCN or GraphSAGE with mean aggregation."
            )
        out = copy_of(model)
        for entry in plan.entries:
            layer = out.get_submodule(entry.name)
            assert isinstance(layer, MessagePassing)
            if entry.reason:
                layer._qlr_smooth = SmoothState(None, "", f"not smoothed: {entry.reason}")
            else:
                (source,) = _spec(layer).sources
                smooth_layer(layer, source, self.options, f"smoothed: {self._summary()}")
        return out

    def _summary(self) -> str:
        return f"mu={self.options.mu}, eta={self.options.eta}, tau={self.options.tau}"

    def __repr__(self) -> str:
        default = SmoothOptions()
        given = [
            f"{f.name}={getattr(self.options, f.name)!r}"
            for f in dataclasses.fields(SmoothOptions)
            if getattr(self.options, f.name) != getattr(default, f.name)
        ]
        given += [f"exclude={list(self.exclude)!r}"] if self.exclude else []
        return f"SmoothPropagation({', '.join(given)})"


def _spec(layer: MessagePassing) -> Any:
    return find_spec(layer)


def _reason(layer: MessagePassing) -> str:
    if isinstance(layer, SmoothMessagePassing):
        return "it is smooth already"
    spec = find_spec(layer)
    assert spec is not None  # every MessagePassing layer has a row, if only one read off its class
    if spec.family not in ("copy", "attention", "edge") or len(spec.sources) > 1:
        return "it is not known to propagate features"
    return spec.rough(layer)
