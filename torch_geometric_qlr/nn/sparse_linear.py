"""A linear layer on a sparse matrix whose values have a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.quantizers.sparse_values import entries, with_values

__all__ = ["sparse_linear"]


def sparse_linear(x: Tensor, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    r""":math:`\mathbf{X} \mathbf{W}^{\top} + \mathbf{b}` where the values of the sparse
    :math:`\mathbf{X}` have a gradient.

    :func:`torch.nn.functional.linear` makes a dense matrix of the shape of :math:`\mathbf{X}` for
    that gradient; here it is computed for the stored values alone.

    Args:
        x (torch.Tensor): Where the values are: a matrix in coalesced COO, CSR or CSC layout.
        values (torch.Tensor): The values, in order.
        weight (torch.Tensor): Weights ``[F_out, F_in]``.
        bias (torch.Tensor, optional): Bias ``[F_out]``.

    Example:
        >>> eye = torch.eye(2).to_sparse()
        >>> sparse_linear(eye, 2 * eye.values(), torch.ones(1, 2), None)
        tensor([[2.],
                [2.]])
    """
    out: Tensor = _Product.apply(values, weight, x.detach())
    return out if bias is None else out + bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, pattern: Tensor) -> Tensor:
        x = with_values(pattern, values)
        ctx.save_for_backward(weight, x)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, x = ctx.saved_tensors
        of_values = of_weight = None
        if ctx.needs_input_grad[0]:
            of_values = _product_at(x, grad, weight)
        if ctx.needs_input_grad[1]:
            of_weight = (x.t() @ grad).t()
        return of_values, of_weight, None


def _product_at(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """The entries of ``grad @ weight`` where the matrix has values."""
    if x.layout == torch.sparse_csr and (x.is_cuda or torch.backends.mkl.is_available()):
        return torch.sparse.sampled_addmm(x, grad.contiguous(), weight, beta=0.0).values()
    row, col = entries(x)
    return torch.einsum("ef,ef->e", grad[row], weight.t().contiguous()[col])
