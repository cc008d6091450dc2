"""A loss that a float twin teaches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.expect import expect_tensor

__all__ = ["distill"]


def distill(out: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""How far the answers of a model are from those of its float twin, to add to the loss of a
    training loop (`"Distilling the Knowledge in a Neural Network"
    <https://arxiv.org/abs/1503.02531>`_):

    .. math::
        T^2 \, \frac{1}{N} \sum_{i=1}^{N} \mathrm{KL} \left( \mathrm{softmax}(\mathbf{t}_i / T)
        \, \Vert \, \mathrm{softmax}(\mathbf{y}_i / T) \right)

    It needs no labels, so pass the answers on *all* nodes, not only on those to train with. The
    teacher gets no gradient.

    Args:
        out (torch.Tensor): Logits of the model.
        teacher (torch.Tensor): Those of the float model.
        temperature (float): :math:`T > 0`; above one, small answers count for more.
            (default: :obj:`1.0`)

    Shapes:
        - **out, teacher:** :math:`(N, C)`, or more dimensions before the classes
        - **output:** :math:`()`; zero where there is no node

    Raises:
        InputError: If shapes differ or the temperature is not positive.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> qlr.distill(teacher, teacher).item()
        0.0
        >>> loss = qlr.distill(torch.zeros(2, 2, requires_grad=True), teacher)
        >>> loss.backward()
    """
    expect_tensor(out, "distill: out")
    expect_tensor(teacher, "distill: teacher")
    if not (out.is_floating_point() and teacher.is_floating_point()):
        raise InputError(
            f"distill: the answers are {out.dtype}, those of the teacher {teacher.dtype}; both are "
            f"logits, floats of shape [N, C], and not classes."
        )
    if out.shape != teacher.shape or out.dim() < 2:
        raise InputError(
            f"distill: the answers have shape {list(out.shape)}, those of the teacher "
            f"{list(teacher.shape)}; both are [N, C], of the same nodes."
        )
    if not isinstance(temperature, (int, float)) or not temperature > 0.0:
        raise InputError(
            f"distill: temperature={temperature!r} is out of range; choose more than 0"
        )
    learned, taught = (
        F.log_softmax(logits.reshape(-1, logits.size(-1)).float() / temperature, dim=-1)
        for logits in (out, teacher.detach())
    )
    total = F.kl_div(learned, taught, reduction="sum", log_target=True)
    return temperature**2 * total / max(1, learned.size(0))
