"""The model of the paper: a small network on each node, then propagation of its answers."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import APPNP, Linear
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.inits import reset
from torch_geometric.typing import Adj, OptTensor
from torch_geometric.utils import is_torch_sparse_tensor

from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.expect import expect_number
from torch_geometric_qlr.nn.propagation import EMP, SMP
from torch_geometric_qlr.quantizers.sparse_values import with_values

__all__ = ["SMPGNN"]

Propagation = Literal["smp", "emp", "appnp"]


class SMPGNN(torch.nn.Module):
    r"""A multi-layer perceptron whose outputs are propagated over the graph, from the `"Low-bit
    Quantization for Deep Graph Neural Networks with Smoothness-aware Message Propagation"
    <https://arxiv.org/abs/2308.14949>`_ paper

    .. math::
        \mathbf{Y} = \mathrm{SMP}_K (\mathrm{MLP}(\mathbf{X}), \mathbf{A}),

    with dropout before and a ReLU between the linear layers. Depth is in the propagation, so
    :math:`K` may grow without a single parameter more.

    Args:
        in_channels (int): Size of each input sample, or :obj:`-1` to derive it from the first
            input.
        hidden_channels (int): Size of the hidden layers.
        out_channels (int): Size of each output sample.
        num_layers (int, optional): Number of linear layers. (default: :obj:`2`)
        K (int, optional): Number of propagation steps. (default: :obj:`10`)
        propagation (str, optional): The layer that propagates:
            :class:`~torch_geometric_qlr.nn.SMP` (:obj:`"smp"`),
            :class:`~torch_geometric_qlr.nn.EMP` (:obj:`"emp"`), or
            :class:`~torch_geometric.nn.APPNP` (:obj:`"appnp"`, with ``alpha=0.1`` unless given),
            the control that SMP has to beat. (default: :obj:`"smp"`)
        dropout (float, optional): Dropout probability of the inputs of the linear layers.
            (default: :obj:`0.5`)
        **propagation_kwargs (optional): Further arguments of the propagation layer.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F_{in})`, dense or a :obj:`torch.sparse`
          matrix (bags of words take a fraction of the time as one), and edges as
          :class:`~torch_geometric_qlr.nn.SMP` takes them
        - **output:** logits :math:`(|\mathcal{V}|, F_{out})`

    Raises:
        ConfigError: If there are no layers, or the propagation is unknown.

    Example:
        >>> from torch_geometric_qlr.nn.models import SMPGNN
        >>> model = SMPGNN(16, 32, 7, K=4, tau=0.01)
        >>> model(torch.randn(3, 16), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])).shape
        torch.Size([3, 7])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        K: int = 10,
        propagation: Propagation = "smp",
        dropout: float = 0.5,
        **propagation_kwargs: Any,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ConfigError(f"SMPGNN: num_layers is {num_layers}; it must be 1 or more.")
        expect_number(dropout, "SMPGNN: dropout", 0)
        if dropout > 1:
            raise ConfigError(f"SMPGNN: dropout is {dropout}; it is a probability, 0 to 1.")
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        self.out_channels = out_channels
        self.num_layers = num_layers
        self.K = K
        self.dropout = dropout
        sizes = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.lins = torch.nn.ModuleList(
            Linear(size, next_size) for size, next_size in zip(sizes, sizes[1:], strict=False)
        )
        self.propagation = _propagation(propagation, K, propagation_kwargs)

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        reset(self.lins)
        self.propagation.reset_parameters()

    def forward(self, x: Tensor, edge_index: Adj, edge_weight: OptTensor = None) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): The node features.
            edge_index (torch.Tensor or EdgeIndex or SparseTensor): The edges, or the (transposed)
                adjacency matrix in any sparse format.
            edge_weight (torch.Tensor, optional): The edge weights. (default: :obj:`None`)
        """
        for index, lin in enumerate(self.lins):
            if index > 0:
                x = x.relu()
            x = lin(self._dropout(x))
        return self.propagation(x, edge_index, edge_weight)

    def _dropout(self, x: Tensor) -> Tensor:
        if not is_torch_sparse_tensor(x):
            return F.dropout(x, p=self.dropout, training=self.training)
        if not self.training or self.dropout == 0.0:
            return x
        # Zeros stay zero under dropout, so that of the stored values is that of the matrix.
        x = x.coalesce() if x.layout == torch.sparse_coo else x
        return with_values(x, F.dropout(x.values(), p=self.dropout))

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.hidden_channels}, "
            f"{self.out_channels}, num_layers={self.num_layers}, propagation={self.propagation})"
        )


def _propagation(name: str, K: int, kwargs: dict[str, Any]) -> MessagePassing:
    if name == "smp":
        return SMP(K, **kwargs)
    if name == "emp":
        return EMP(K, **kwargs)
    if name == "appnp":
        return APPNP(K, **{"alpha": 0.1, **kwargs})
    raise ConfigError(
        f"SMPGNN: propagation is {name!r}; choose one of {list(get_args(Propagation))}."
    )
