"""Whether a tensor comes straight from dropout, as autograd noted it.

In training dropout divides what it keeps by the share :math:`k` that it keeps; in evaluation it
does nothing. A range that is learned on such values is :math:`1 / k` times too wide for those of
evaluation, of which two bits then round most to zero. A quantizer that knows :math:`k` rounds
:math:`k \\mathbf{x}` and divides the result by :math:`k`: dropout after rounding, so that the
range is that of evaluation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.quantizers.torch_state import is_recomputing, may_be_recomputed

__all__ = ["kept_share"]


def kept_share(x: Tensor) -> float | None:
    r"""The share of values that dropout kept on average, if it made this tensor in training. Where
    autograd may compute the tensor again (checkpointing) nobody can tell.

    Args:
        x (torch.Tensor): A tensor that autograd follows; of others nothing is known.

    Example:
        >>> hidden = torch.rand(8, 8, requires_grad=True)
        >>> kept_share(torch.nn.functional.dropout(hidden, p=0.2)), kept_share(2 * hidden)
        (0.8, None)
    """
    node: Any = None if torch.compiler.is_compiling() else x.grad_fn
    if node is None or is_recomputing() or may_be_recomputed():
        return None
    name = node.name()
    if name == "NativeDropoutBackward0":
        p = node._saved_p
        return 1.0 - p if node._saved_train and 0.0 < p < 1.0 else None
    # On a CPU it is a product with noise of zeros and of one number above one.
    noise = node._saved_other if name == "MulBackward0" else None
    if not isinstance(noise, Tensor) or noise.requires_grad or not noise.is_cpu:
        return None
    if noise.shape != x.shape or noise.numel() == 0 or not noise.is_floating_point():
        return None
    lowest, highest = noise.aminmax()
    factor = float(highest)
    if float(lowest) != 0.0 or not factor > 1.0:
        return None
    is_mask = torch.equal(noise * noise, noise * highest)
    return 1.0 / factor if is_mask else None
