"""Mixed precision under a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from torch_geometric_qlr.calibration import Forward, runs_of
from torch_geometric_qlr.config import QLRConfig, check_fields
from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.search.choice import BitChoice, BitRow
from torch_geometric_qlr.search.knapsack import choose
from torch_geometric_qlr.search.measures import MEASURES, Option, totals
from torch_geometric_qlr.search.sensitivity import Sensitivity, measure_model
from torch_geometric_qlr.search.units import Unit, check_config, check_widths, units_of

__all__ = ["search_bits"]

#: How many budgets there are between the least and the most.
_STEPS = 16


def search_bits(
    model: nn.Module,
    data: Any,
    budget: float,
    forward: Forward | None = None,
    bits: Iterable[int] = (2, 4, 8),
    *,
    measure: str = "bytes",
    method: str = "mse",
    share: float = 0.9999,
    progress: bool = True,
    config: QLRConfig | None = None,
    **kwargs: Any,
) -> BitChoice:
    r"""Chooses the width of each weight, activation and message of a trained model, so that its
    output suffers least within a budget.

    Each place :math:`g` is measured at each width :math:`b` alone, with everything else in floating
    point and ranges from :func:`~torch_geometric_qlr.calibrate`: its cost

    .. math::
        \epsilon_{gb} = \frac{\sum_n \| \hat{\mathbf{Y}}_n^{(g, b)} - \mathbf{Y}_n \|^2}
        {\sum_n \| \mathbf{Y}_n \|^2}

    is the squared error of the output over batches :math:`n`, and :math:`-10 \log_{10}
    \epsilon_{gb}` its SQNR. Errors of places that round independently add up, so the best choice is

    .. math::
        \min_{b} \sum_g \epsilon_{g b_g} \quad \text{s. t.} \quad \mathrm{cost}(b) \le B,

    a multiple-choice knapsack problem, which is solved exactly by :func:`scipy.optimize.milp`.

    **What a budget counts.** Places are those of :func:`~torch_geometric_qlr.plan`. Weights of
    edges, and an output with :obj:`output_bits`, keep their width and are not counted, nor is what
    stays in floating point.

    - :obj:`"bytes"`: of the packed weights as :func:`~torch_geometric_qlr.convert` makes them, with
      their scales and padding, and of the codes of all activations and messages of one batch, on
      average over batches. A source has one row of codes for each node, a message one for each
      edge. Widths of 3 and of 5 to 7 bits are stored in 4 and 8.
    - :obj:`"bitops"`: :math:`\sum \mathrm{MACs} \cdot b_1 \cdot b_2` over the products of one batch
      and the widths of their operands: inputs and weights of Linears; sources and the weights of
      edges, which are one bit where there are none, and 32 where they are floats, as coefficients
      of attention are. (Figures in the code of `MixQ-GNN <https://arxiv.org/abs/2505.09361>`_ are
      operations times the *mean* width of a layer's quantizers, and do not compare with these.)
    - :obj:`"average_bits"`: the mean width of the values of all weights, and of all activations and
      messages of one batch.

    Args:
        model (torch.nn.Module): A trained float model; it is not changed.
        data (Any): Batches as :func:`~torch_geometric_qlr.calibrate` takes them.
        budget (float): How much may be spent.
        forward (callable, optional): Called with the model and a batch; it returns the output.
        bits (tuple): Widths to choose from. (default: :obj:`(2, 4, 8)`)
        measure (str): What the budget counts. (default: :obj:`"bytes"`)
        method, share (optional): How ranges follow from the data, as for
            :func:`~torch_geometric_qlr.calibrate`.
        progress (bool): Whether a bar tells how far it is. (default: :obj:`True`)
        config (QLRConfig, optional): What to quantize and how, without widths. An override may keep
            a layer in floating point.
        **kwargs: Fields of :class:`~torch_geometric_qlr.QLRConfig`; they win over :obj:`config`.

    Raises:
        ConfigError: If the budget is below the least that can be spent (the message says how much
            is possible), if there is no batch or its output says nothing, or an argument is wrong.
        QLRError: Whatever :func:`~torch_geometric_qlr.quantize` and
            :func:`~torch_geometric_qlr.calibrate` raise.
        ImportError: If scipy is not installed.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.nn import GCN
        >>> model = GCN(8, 16, num_layers=2, out_channels=4)
        >>> x, edge_index = torch.rand(3, 8), torch.tensor([[0, 1], [1, 2]])
        >>> choice = qlr.search_bits(
        ...     model, (x, edge_index), budget=4, measure="average_bits", progress=False)
        >>> choice.spent <= 4
        True
        >>> sorted(choice.overrides["convs.0.lin"])
        ['input_bits', 'weight_bits']
        >>> qmodel = qlr.quantize(model, overrides=choice.overrides)
    """
    check_fields(kwargs)
    config = (QLRConfig() if config is None else config).replace(**kwargs)
    check_config(config)
    widths = check_widths(bits)
    _check_budget(budget, measure)
    units = units_of(model, config)
    runs = runs_of(data, forward, "search_bits")
    ranges = {"method": method, "share": share}
    found = measure_model(model, runs, config, units, widths, ranges, progress)
    return _chosen(found, budget, measure, config)


def _check_budget(budget: float, measure: str) -> None:
    if measure not in MEASURES:
        raise ConfigError(
            f"search_bits: measure {measure!r} is unknown, choose from {', '.join(MEASURES)}"
        )
    is_number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
    if not is_number or math.isnan(budget):
        raise ConfigError(f"search_bits: budget is {budget!r}; expected a number of {measure}")


def _chosen(found: Sensitivity, budget: float, measure: str, config: QLRConfig) -> BitChoice:
    groups = MEASURES[measure].options(found)
    divisor = MEASURES[measure].divisor(found)
    least, most = totals(groups)
    best = _best(groups, budget * divisor)
    if best is None:
        raise ConfigError(
            f"search_bits: a budget of {budget:,} {measure} is too small: this model takes from "
            f"{least / divisor:,.6g} (the fewest bits everywhere) to {most / divisor:,.6g}. Raise "
            f"it, allow fewer bits, or shrink the model."
        )
    widths = {unit: bits for option in best for unit, bits in option.widths.items()}
    table = tuple(
        BitRow(u.module, str(u), b, found.nbytes[u, b], found.errors[u, b])
        for u, b in ((u, widths[u]) for u in found.units)
    )
    overrides = {**config.overrides, **_rules(found.units, widths)}
    return BitChoice(
        measure=measure,
        budget=budget,
        spent=_cost(best) / divisor,
        error=_error(best),
        table=table,
        pareto=_pareto(groups, divisor),
        config=config.replace(overrides=overrides),
    )


def _best(groups: Sequence[Sequence[Option]], budget: float) -> list[Option] | None:
    errors = [[option.error for option in options] for options in groups]
    costs = [[option.cost for option in options] for options in groups]
    found = choose(errors, costs, budget)
    return None if found is None else [o[i] for o, i in zip(groups, found, strict=True)]


def _pareto(groups: Sequence[Sequence[Option]], divisor: int) -> list[tuple[float, float]]:
    least, most = totals(groups)
    pairs: list[tuple[float, float]] = []
    for step in range(_STEPS + 1):
        best = _best(groups, least + (most - least) * step // _STEPS)
        assert best is not None
        pair = (_cost(best) / divisor, _error(best))
        if not pairs or pair[1] < pairs[-1][1]:
            pairs.append(pair)
    return pairs


def _rules(units: Sequence[Unit], widths: dict[Unit, int]) -> dict[str, dict[str, int]]:
    rules: dict[str, dict[str, int]] = {}
    for unit in units:
        rules.setdefault(unit.rule, {})[unit.field] = widths[unit]
    return rules


def _cost(options: Sequence[Option]) -> int:
    return sum(option.cost for option in options)


def _error(options: Sequence[Option]) -> float:
    return sum(option.error for option in options)
