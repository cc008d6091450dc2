"""Elastic message passing: propagation that may leave sharp borders between neighbours."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj, OptTensor
from torch_geometric.utils import spmm

from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.expect import expect_number
from torch_geometric_qlr.nn.propagation._common import check_features
from torch_geometric_qlr.sparse import (
    AdjacencyCache,
    Incidence,
    gcn_edges,
    in_form_of,
    symmetric_edges,
)

# No ``__all__``: PyG's template takes the type names of this module by ``import *``, and without
# them falls back, without a word, to the generic ``propagate``.

Norm = Literal["l21", "l1"]

_CACHE = AdjacencyCache()


class EMP(MessagePassing):
    r"""The elastic message passing layer from the `"Elastic Graph Neural Networks"
    <https://arxiv.org/abs/2107.06996>`_ paper

    .. math::
        \mathbf{Y} &= \gamma \mathbf{H}_0 + (1 - \gamma) \mathbf{\tilde{A}} \mathbf{H}

        \mathbf{\bar{H}} &= \mathbf{Y} - \gamma \mathbf{\Delta}^{\top} \mathbf{Z}

        \mathbf{Z}^{+} &= \mathrm{proj}_{\lambda_1} (\mathbf{Z} + \beta \mathbf{\Delta}
        \mathbf{\bar{H}})

        \mathbf{H}^{+} &= \mathbf{Y} - \gamma \mathbf{\Delta}^{\top} \mathbf{Z}^{+},

    :math:`K` times from :math:`\mathbf{H} = \mathbf{H}_0` and :math:`\mathbf{Z} = \mathbf{0}`, with
    :math:`\gamma = 1 / (1 + \lambda_2)` and :math:`\beta = 1 / (2 \gamma)`. These are proximal
    steps on

    .. math::
        \frac{1}{2} \| \mathbf{H} - \mathbf{H}_0 \|^2 + \frac{\lambda_2}{2} \mathrm{tr}
        (\mathbf{H}^{\top} \mathbf{L} \mathbf{H}) + \lambda_1 \| \mathbf{\Delta} \mathbf{H} \|,

    where :math:`\mathbf{\Delta}` is the normalised :class:`~torch_geometric_qlr.sparse.Incidence`
    operator. The graph is treated as undirected
    (:func:`~torch_geometric_qlr.sparse.symmetric_edges`); self loops count in
    :math:`\mathbf{\tilde{A}}` and not in :math:`\mathbf{\Delta}`. :math:`\mathbf{Z}` has a row for
    each undirected edge, so a step costs :math:`O(|\mathcal{E}| F)` time *and* memory.
    Finding the undirected edges waits for the device, once per adjacency object; under
    ``torch.compile(fullgraph=True)`` use ``cached=True`` and call the layer once before compiling.
    ``EMP(K, lambda1=0, lambda2)`` is ``APPNP(K, alpha=1 / (1 + lambda2))``.

    Args:
        K (int, optional): Number of steps. (default: :obj:`10`)
        lambda1 (float, optional): Weight :math:`\lambda_1` of the elastic term.
            (default: :obj:`3.0`)
        lambda2 (float, optional): Weight :math:`\lambda_2` of smoothness. (default: :obj:`3.0`)
        norm (str, optional): The norm of the elastic term, :obj:`"l21"` (whole rows become equal)
            or
            :obj:`"l1"` (single features do). (default: :obj:`"l21"`)
        dropout (float, optional): Dropout probability of the representation after each step during
            training, as in the published code. (default: :obj:`0.0`)
        cached (bool, optional): Whether to keep the prepared graph of the first call for all
            others. Only for transductive learning. (default: :obj:`False`)
        add_self_loops (bool, optional): Whether normalising adds self loops.
            (default: :obj:`True`)
        **kwargs (optional): Further arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F)`,
          edge indices :math:`(2, |\mathcal{E}|)`
          or sparse matrix :math:`(|\mathcal{V}|, |\mathcal{V}|)`,
          non-negative edge weights :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** node features :math:`(|\mathcal{V}|, F)`

    Raises:
        ConfigError: If a weight is negative or the norm unknown.

    Example:
        >>> from torch_geometric_qlr.nn.propagation import EMP
        >>> x, edge_index = torch.eye(3), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> EMP(K=2, lambda1=0.1, lambda2=3.0)(x, edge_index).shape
        torch.Size([3, 3])
    """

    _cached_graph: tuple[Tensor, OptTensor, Incidence] | None

    def __init__(
        self,
        K: int = 10,
        lambda1: float = 3.0,
        lambda2: float = 3.0,
        norm: Norm = "l21",
        *,
        dropout: float = 0.0,
        cached: bool = False,
        add_self_loops: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("aggr", "add")
        super().__init__(**kwargs)
        if norm not in get_args(Norm):
            raise ConfigError(f"EMP: norm is {norm!r}; choose one of {list(get_args(Norm))}.")
        if not isinstance(K, int) or K < 0:
            raise ConfigError(f"EMP: K is {K!r}; the number of steps is an integer, 0 or more.")
        expect_number(lambda1, "EMP: lambda1", 0)
        expect_number(lambda2, "EMP: lambda2", 0)
        self.K = K
        self.lambda1 = lambda1
        self.lambda2 = lambda2
        self.norm = norm
        self.dropout = dropout
        self.cached = cached
        self.add_self_loops = add_self_loops
        self._cached_graph = None

    def reset_parameters(self) -> None:
        r"""Forgets the cached graph."""
        super().reset_parameters()
        self._cached_graph = None

    def forward(self, x: Tensor, edge_index: Adj, edge_weight: OptTensor = None) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): The node features.
            edge_index (torch.Tensor or EdgeIndex or SparseTensor): The edges, or the (transposed)
                adjacency matrix in any sparse format.
            edge_weight (torch.Tensor, optional): The edge weights. (default: :obj:`None`)

        Raises:
            InputError: If ``x`` is not a matrix of floats, the adjacency does not fit it, or an
                edge weight is negative.
        """
        check_features(self, x)
        adj, weight, incidence = self._graph(x, edge_index, edge_weight)
        gamma = 1 / (1 + self.lambda2)
        teleport = gamma * x
        z = x.new_zeros(incidence.num_edges, x.size(-1))
        divergence: OptTensor = None
        h = x
        for _ in range(self.K):
            y = teleport
            if self.lambda2 > 0:
                # propagate_type: (x: Tensor, edge_weight: OptTensor)
                a_h = self.propagate(adj, x=h, edge_weight=weight)
                y = torch.add(teleport, a_h, alpha=1 - gamma)
            h = y
            if self.lambda1 > 0:
                # The divergence of the Z that a step ends with is the one the next begins with.
                h_bar = y if divergence is None else torch.sub(y, divergence, alpha=gamma)
                z = self._project(torch.add(z, incidence.difference(h_bar), alpha=0.5 / gamma))
                divergence = incidence.divergence(z)
                h = torch.sub(y, divergence, alpha=gamma)
            h = F.dropout(h, p=self.dropout, training=self.training)
        return h

    def _graph(
        self, x: Tensor, edge_index: Adj, edge_weight: OptTensor
    ) -> tuple[Tensor, OptTensor, Incidence]:
        if self._cached_graph is not None:
            return self._cached_graph

        def build() -> tuple[Tensor, OptTensor, Incidence]:
            return _undirected_graph(
                edge_index, edge_weight, x.size(0), self.add_self_loops, x.dtype
            )

        key = ("elastic", x.size(0), self.add_self_loops, x.dtype)
        graph = _CACHE.get(edge_index, (*key, edge_weight is None), build, edge_weight)
        if self.cached:
            self._cached_graph = graph
        return graph

    def _project(self, z: Tensor) -> Tensor:
        if self.norm == "l1":
            return z.clamp(-self.lambda1, self.lambda1)
        length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        return z * (self.lambda1 / length.clamp(min=self.lambda1))

    def message(self, x_j: Tensor, edge_weight: OptTensor) -> Tensor:
        return x_j if edge_weight is None else edge_weight.view(-1, 1) * x_j

    def message_and_aggregate(self, adj_t: Adj, x: Tensor) -> Tensor:
        return spmm(adj_t, x, reduce=self.aggr)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}(K={self.K}, lambda1={self.lambda1}, "
            f"lambda2={self.lambda2}, norm={self.norm!r})"
        )


def _undirected_graph(
    adj: Adj, edge_weight: OptTensor, num_nodes: int, add_self_loops: bool, dtype: torch.dtype
) -> tuple[Tensor, OptTensor, Incidence]:
    """The normalised adjacency (a CSR matrix for a matrix) and the incidence operator."""
    edge_index, weight = symmetric_edges(adj, edge_weight, num_nodes)
    weight = weight.to(dtype)
    incidence = Incidence.from_edges(edge_index, weight, num_nodes, add_self_loops=add_self_loops)
    edge_index, weight = gcn_edges(
        edge_index, weight, num_nodes, add_self_loops=add_self_loops, dtype=dtype
    )
    return *in_form_of(adj, edge_index, weight, num_nodes), incidence
