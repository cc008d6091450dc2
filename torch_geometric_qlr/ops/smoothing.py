"""The arithmetic of one smoothness-aware step, for every layer and op that takes such steps."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "StepOptions",
    "accumulation_dtype",
    "constrained_step",
    "gradient_step",
    "initial_multiplier",
]


class StepOptions(Protocol):
    """What a step is made with; see :class:`~torch_geometric_qlr.nn.SMP` for their meaning."""

    @property
    def mu(self) -> float: ...
    @property
    def eta(self) -> float: ...
    @property
    def eta_lambda(self) -> float: ...
    @property
    def eta_slack(self) -> float: ...
    @property
    def init_lambda(self) -> float: ...
    @property
    def init_slack(self) -> float: ...
    @property
    def primal(self) -> str: ...
    @property
    def projection(self) -> str | None: ...
    @property
    def detach_multiplier(self) -> bool: ...


def accumulation_dtype(x: Tensor) -> torch.dtype:
    r"""A sum over all nodes and features leaves the range of half precision.

    Args:
        x (torch.Tensor): What is summed.
    """
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def initial_multiplier(options: StepOptions, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""The multiplier and the slack that a forward pass starts with.

    Args:
        options (StepOptions): Options of the step.
        x (torch.Tensor): What is propagated.
    """
    dtype = accumulation_dtype(x)
    multiplier = torch.full((), options.init_lambda, dtype=dtype, device=x.device)
    return multiplier, torch.full((), options.init_slack, dtype=dtype, device=x.device)


def gradient_step(options: StepOptions, h: Tensor, a_h: Tensor, teleport: Tensor) -> Tensor:
    r""":math:`(1 - (1 + \mu) \eta) \mathbf{H} + \mu \eta \mathbf{P} \mathbf{H} + \eta
    \mathbf{H}_0`.

    Args:
        options (StepOptions): Options of the step.
        h (torch.Tensor): :math:`\mathbf{H}`.
        a_h (torch.Tensor): :math:`\mathbf{P} \mathbf{H}`.
        teleport (torch.Tensor): :math:`\eta \mathbf{H}_0`.
    """
    out = torch.add(teleport, a_h, alpha=options.mu * options.eta)
    keep = 1 - (1 + options.mu) * options.eta
    # At the usual step size 1 / (1 + mu) nothing of H is kept but rounding errors.
    return out if abs(keep) < 1e-12 else torch.add(out, h, alpha=keep)


def constrained_step(
    options: StepOptions,
    h: Tensor,
    change: Tensor,
    a_change: Tensor,
    state: tuple[Tensor, Tensor],
    bound: float,
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    r"""Corrects a step for the bound on its change, and moves the multiplier and the slack.

    Args:
        options (StepOptions): Options of the step.
        h (torch.Tensor): What the gradient step gave.
        change (torch.Tensor): What it changed, :math:`\mathbf{G}`.
        a_change (torch.Tensor): :math:`\mathbf{P} \mathbf{G}`.
        state (tuple): The multiplier and the slack.
        bound (float): :math:`\tau |\mathcal{E}|`.

    Returns:
        The representation, the new state, and the trace of the change.
    """
    multiplier, slack = state
    residual = change - a_change  # L G
    direction = residual if options.primal == "lagrangian" else a_change
    h = torch.addcmul(h, direction, (2 * options.eta * multiplier).to(h.dtype))
    if options.detach_multiplier:
        change, residual = change.detach(), residual.detach()
    trace = torch.sum(change * residual, dtype=accumulation_dtype(change))
    slack = slack + 2 * options.eta_slack * multiplier * slack
    multiplier = multiplier + options.eta_lambda * (bound - slack.square() - trace)
    if options.projection == "nonnegative":
        multiplier = multiplier.clamp(min=0)
    elif options.projection == "nonpositive":
        multiplier = multiplier.clamp(max=0)
    return h, (multiplier, slack), trace
