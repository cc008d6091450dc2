"""Smoothness-aware message propagation: APPNP with a bound on what a layer may change."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj, OptTensor
from torch_geometric.utils import spmm

from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.nn.propagation._common import (
    check_features,
    drop_edges,
    num_entries,
)
from torch_geometric_qlr.nn.propagation._step import (
    MultiplierState,
    Primal,
    Projection,
    check_options,
)
from torch_geometric_qlr.ops.smoothing import (
    accumulation_dtype,
    constrained_step,
    gradient_step,
    initial_multiplier,
)
from torch_geometric_qlr.sparse import propagation_adjacency

# No ``__all__``: PyG's template takes the type names of this module by ``import *``, and without
# them falls back, without a word, to the generic ``propagate``.


class SMPHistory(NamedTuple):
    r"""What happened in one forward pass of :class:`~torch_geometric_qlr.nn.SMP`, detached.

    Args:
        states (tuple): The representation after each step, ``K`` tensors ``[N, F]``.
        energy (torch.Tensor): :math:`\frac{1}{2} \|\mathbf{H} - \mathbf{H}_0\|^2 +
            \frac{\mu}{2} \mathrm{tr}(\mathbf{H}^{\top} \mathbf{L} \mathbf{H})` of the
            representation that each step *starts* from, ``[K]``.
        trace (torch.Tensor, optional): The layer-wise change :math:`\mathrm{tr}(\mathbf{G}^{\top}
            \mathbf{L} \mathbf{G})` of each step, ``[K]``; :obj:`None` without correction.
        multiplier (torch.Tensor, optional): :math:`\lambda` after each step, ``[K]``.
        slack (torch.Tensor, optional): :math:`s` after each step, ``[K]``.
    """

    states: tuple[Tensor, ...]
    energy: Tensor
    trace: Tensor | None
    multiplier: Tensor | None
    slack: Tensor | None


class SMP(MessagePassing):
    r"""The smoothness-aware message propagation from the `"Low-bit Quantization for Deep Graph
    Neural Networks with Smoothness-aware Message Propagation"
    <https://arxiv.org/abs/2308.14949>`_ paper

    .. math::
        \mathbf{H}^{\prime} &= (1 - (1 + \mu) \eta) \mathbf{H} + \mu \eta \mathbf{\tilde{A}}
        \mathbf{H} + \eta \mathbf{H}_0

        \mathbf{G} &= \mathbf{H}^{\prime} - \mathbf{H}

        \mathbf{H}^{+} &= \mathbf{H}^{\prime} + 2 \eta \lambda \mathbf{\tilde{A}} \mathbf{G}

        s^{+} &= s + 2 \eta_s \lambda s

        \lambda^{+} &= \lambda + \eta_{\lambda} \left( \tau |\mathcal{E}| - (s^{+})^2 -
        \mathrm{tr}(\mathbf{G}^{\top} \mathbf{L} \mathbf{G}) \right),

    :math:`K` times, where :math:`\mathbf{\tilde{A}}` is the normalised adjacency with self loops,
    :math:`\mathbf{L} = \mathbf{I} - \mathbf{\tilde{A}}` and :math:`|\mathcal{E}|` the number of
    entries of :math:`\mathbf{\tilde{A}}`. The first line is a gradient step that pulls neighbours
    together, the others are the differential multiplier method for the constraint
    :math:`\mathrm{tr}(\mathbf{G}^{\top} \mathbf{L} \mathbf{G}) \leq \tau |\mathcal{E}|`
    on the change that one layer makes.

    With :math:`\eta = 1 / (1 + \mu)` and ``correction=False`` this *is*
    ``APPNP(K, alpha=eta)``. Every step calls :meth:`propagate` twice, with
    :math:`\mathbf{H}` and then with :math:`\mathbf{G}` as ``x`` (once without correction), and
    costs :math:`O(|\mathcal{E}| F)`: the trace is
    :math:`\langle \mathbf{G}, \mathbf{G} - \mathbf{\tilde{A}} \mathbf{G} \rangle`.

    The sign convention makes a *negative* :math:`\lambda` the one that enforces the constraint;
    the published code projects neither way.

    Args:
        K (int, optional): Number of steps. (default: :obj:`10`)
        mu (float, optional): Weight :math:`\mu` of smoothness. (default: :obj:`9.0`)
        eta (float, optional): Step size :math:`\eta`. (default: :obj:`0.1`)
        tau (float, optional): Bound :math:`\tau` on the change, per entry of the adjacency; the
            paper uses :obj:`1e-5` to :obj:`0.2`. (default: :obj:`1e-3`)
        eta_lambda (float, optional): Step size of the multiplier. (default: :obj:`1e-5`)
        eta_slack (float, optional): Step size of the slack variable. (default: :obj:`1e-5`)
        init_lambda (float, optional): First multiplier. (default: :obj:`1e-3`)
        init_slack (float, optional): First slack variable. (default: :obj:`1e-3`)
        correction (bool, optional): Whether to do more than the first line.
            (default: :obj:`True`)
        primal (str, optional): What moves the representation, :math:`\mathbf{\tilde{A}}
            \mathbf{G}` as published (:obj:`"paper"`), or the gradient of the Lagrangian,
            :math:`\mathbf{G} - \mathbf{\tilde{A}} \mathbf{G}` (:obj:`"lagrangian"`).
            (default: :obj:`"paper"`)
        multiplier_state (str, optional): Whether :math:`\lambda` and :math:`s` start anew in every
            call (:obj:`"forward"`), or go on from one training step to the next and are saved as
            buffers (:obj:`"persistent"`; evaluation reads and leaves them).
            (default: :obj:`"forward"`)
        projection (str, optional): Keeps :math:`\lambda` on one side of zero,
            :obj:`"nonnegative"` or :obj:`"nonpositive"`. (default: :obj:`None`)
        detach_multiplier (bool, optional): Whether the multiplier is a constant for backward, which
            then keeps less in memory. (default: :obj:`False`)
        dropout (float, optional): Dropout probability of edges in each step during training, as in
            :class:`~torch_geometric.nn.APPNP`, but drawn from all edges each time (there the steps
            drop from what earlier ones left). Both products of a step see the same edges.
            (default: :obj:`0.0`)
        feature_dropout (float, optional): Dropout probability of the representation between steps
            during training, as in the published code. (default: :obj:`0.0`)
        cached (bool, optional): Whether to keep the normalised adjacency of the first call for all
            others. Only for transductive learning. (default: :obj:`False`)
        add_self_loops (bool, optional): Whether normalising adds self loops.
            (default: :obj:`True`)
        normalize (bool, optional): Whether to normalise the adjacency. (default: :obj:`True`)
        **kwargs (optional): Further arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F)`,
          edge indices :math:`(2, |\mathcal{E}|)`
          or sparse matrix :math:`(|\mathcal{V}|, |\mathcal{V}|)`,
          edge weights :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** node features :math:`(|\mathcal{V}|, F)`

    Raises:
        ConfigError: If an option has no such value.

    Example:
        >>> from torch_geometric_qlr.nn.propagation import SMP
        >>> x, edge_index = torch.eye(3), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> SMP(K=2)(x, edge_index).shape
        torch.Size([3, 3])
        >>> out, history = SMP(K=2)(x, edge_index, return_history=True)
        >>> history.trace.shape
        torch.Size([2])
    """

    _cached_edge_index: tuple[Tensor, OptTensor] | None

    def __init__(
        self,
        K: int = 10,
        mu: float = 9.0,
        eta: float = 0.1,
        tau: float = 1e-3,
        eta_lambda: float = 1e-5,
        *,
        eta_slack: float = 1e-5,
        init_lambda: float = 1e-3,
        init_slack: float = 1e-3,
        correction: bool = True,
        primal: Primal = "paper",
        multiplier_state: MultiplierState = "forward",
        projection: Projection | None = None,
        detach_multiplier: bool = False,
        dropout: float = 0.0,
        feature_dropout: float = 0.0,
        cached: bool = False,
        add_self_loops: bool = True,
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("aggr", "add")
        super().__init__(**kwargs)
        if not isinstance(K, int) or K < 0:
            raise ConfigError(f"SMP: K is {K!r}; the number of steps is an integer, 0 or more.")
        self.K = K
        self.mu = mu
        self.eta = eta
        self.tau = tau
        self.eta_lambda = eta_lambda
        self.eta_slack = eta_slack
        self.init_lambda = init_lambda
        self.init_slack = init_slack
        self.correction = correction
        self.primal = primal
        self.multiplier_state = multiplier_state
        self.projection = projection
        self.detach_multiplier = detach_multiplier
        self.dropout = dropout
        self.feature_dropout = feature_dropout
        self.cached = cached
        self.add_self_loops = add_self_loops
        self.normalize = normalize
        check_options("SMP", self)
        self._cached_edge_index = None
        if multiplier_state == "persistent":
            self.register_buffer("multiplier", torch.tensor(init_lambda))
            self.register_buffer("slack", torch.tensor(init_slack))

    def reset_parameters(self) -> None:
        r"""Forgets the cached adjacency, and starts a persistent multiplier anew."""
        super().reset_parameters()
        self._cached_edge_index = None
        if self.multiplier_state == "persistent":
            self.multiplier.fill_(self.init_lambda)
            self.slack.fill_(self.init_slack)

    def forward(
        self,
        x: Tensor,
        edge_index: Adj,
        edge_weight: OptTensor = None,
        return_history: bool = False,
    ) -> Tensor | tuple[Tensor, SMPHistory]:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): The node features.
            edge_index (torch.Tensor or EdgeIndex or SparseTensor): The edges, or the (transposed)
                adjacency matrix in any sparse format.
            edge_weight (torch.Tensor, optional): The edge weights. (default: :obj:`None`)
            return_history (bool, optional): If set to :obj:`True`, will additionally return a
                :class:`SMPHistory`. (default: :obj:`False`)

        Raises:
            InputError: If ``x`` is not a matrix of floats, or the adjacency does not fit it.
        """
        check_features(self, x)
        edge_index, edge_weight = self._adjacency(x, edge_index, edge_weight)
        bound = self.tau * num_entries(edge_index)
        state = self._initial_multiplier(x)
        teleport = self.eta * x
        records: list[tuple[Tensor, ...]] = []
        h = x
        for step in range(self.K):
            if step > 0 and self.feature_dropout > 0:
                h = F.dropout(h, p=self.feature_dropout, training=self.training)
            p = self.dropout if self.training else 0.0
            adj, weight = drop_edges(edge_index, edge_weight, p)
            # propagate_type: (x: Tensor, edge_weight: OptTensor)
            a_h = self.propagate(adj, x=h, edge_weight=weight)
            record = (self._energy(x, h, a_h),) if return_history else ()
            previous, h = h, gradient_step(self, h, a_h, teleport)
            if self.correction:
                change = h - previous
                # propagate_type: (x: Tensor, edge_weight: OptTensor)
                a_change = self.propagate(adj, x=change, edge_weight=weight)
                h, state, trace = constrained_step(self, h, change, a_change, state, bound)
                record = (*record, trace, *state)
            if return_history:
                records.append((h.detach(), *(value.detach() for value in record)))
        self._keep_multiplier(*state)
        return (h, _history(records, x, self.correction)) if return_history else h

    def _adjacency(
        self, x: Tensor, edge_index: Adj, edge_weight: OptTensor
    ) -> tuple[Tensor, OptTensor]:
        if self._cached_edge_index is not None:
            return self._cached_edge_index
        prepared = propagation_adjacency(
            edge_index,
            edge_weight,
            x.size(0),
            normalize=self.normalize,
            add_self_loops=self.add_self_loops,
            flow=self.flow,
            dtype=x.dtype,
        )
        if self.cached:
            self._cached_edge_index = prepared
        return prepared

    def _initial_multiplier(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.multiplier_state == "persistent":
            # Copies: backward needs the values that this call started with.
            return self.multiplier.clone(), self.slack.clone()
        return initial_multiplier(self, x)

    def _keep_multiplier(self, multiplier: Tensor, slack: Tensor) -> None:
        if self.multiplier_state == "persistent" and self.training and self.correction:
            self.multiplier.copy_(multiplier.detach())
            self.slack.copy_(slack.detach())

    def _energy(self, x: Tensor, h: Tensor, a_h: Tensor) -> Tensor:
        x, h, a_h = x.detach(), h.detach(), a_h.detach()
        fidelity = torch.sum((h - x).square(), dtype=accumulation_dtype(x))
        smoothness = torch.sum(h * (h - a_h), dtype=accumulation_dtype(x))
        return 0.5 * fidelity + 0.5 * self.mu * smoothness

    def message(self, x_j: Tensor, edge_weight: OptTensor) -> Tensor:
        return x_j if edge_weight is None else edge_weight.view(-1, 1) * x_j

    def message_and_aggregate(self, adj_t: Adj, x: Tensor) -> Tensor:
        return spmm(adj_t, x, reduce=self.aggr)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}(K={self.K}, mu={self.mu}, eta={self.eta}, tau={self.tau})"
        )


def _history(records: list[tuple[Tensor, ...]], x: Tensor, correction: bool) -> SMPHistory:
    columns = list(zip(*records, strict=True)) or [()] * 5
    states, *scalars = columns
    empty = x.new_zeros(0)
    series = [torch.stack(values) if values else empty for values in scalars]
    if not correction:
        return SMPHistory(states, series[0], None, None, None)
    return SMPHistory(states, *series[:4])
