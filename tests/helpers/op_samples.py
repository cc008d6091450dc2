"""Arguments that each op takes."""

from __future__ import annotations

import torch

from tests.helpers.kernel_cases import problem
from torch_geometric_qlr.ops import QParams, reference


def integers(count: int) -> torch.Tensor:
    """Weights of edges that are codes."""
    return torch.randint(-128, 128, (count,), dtype=torch.int8)


def samples() -> dict[str, list[tuple]]:
    """Arguments of every op, with and without a quantized output."""
    case = problem(1, cols=40, bits=4)
    edges, packed = case.col.numel(), case.packed
    x = torch.randn(12, 40)
    output = (torch.tensor(0.5), torch.tensor(7.0), 3, True, torch.tensor(2.0))
    x_hat, mask = reference.fake_quantize(x, QParams(case.scale, case.zero_point, 4))
    gather = (case.rowptr, case.col, *packed)
    # As many targets as sources, for hops that follow each other.
    square = problem(2, targets=12, cols=40, bits=4)
    hops = (square.rowptr, square.col, *square.packed, torch.rand(2) + 0.1, torch.rand(2), 4)
    weight = torch.rand(square.col.numel())
    factor = (reference.pack(case.codes[:5], 4), 4, case.scale, case.zero_point)
    linear, grid = (*packed, *factor), (torch.tensor(0.5), torch.tensor(7.0), 3)
    return {
        "quantize_pack": [(x, case.scale, case.zero_point, 3)],
        "quantize_rows": [(x, torch.tensor(0.9), 3), (x, torch.rand(1), 4, True, True, output[4])],
        "csr": [(torch.stack([case.col[:5].long(), torch.tensor([3, 0, 3, 2, 0])]), 12, 4)],
        "quantize_edges": [
            (case.rowptr, case.col, torch.rand(edges)),
            (case.rowptr, case.col, torch.randn(edges), 4, torch.rand(12)),
        ],
        "edge_softmax": [
            (case.rowptr, case.col, torch.randn(12, 4)),
            (
                *(case.rowptr, case.col, torch.randn(12, 3)),
                *(torch.randn(case.rowptr.numel() - 1, 3), torch.randn(edges, 3), 0.1),
            ),
        ],
        "pack": [(case.codes, 4)],
        "unpack": [packed[:3]],
        "dequantize_packed": [packed],
        "index_select": [(packed[0], torch.tensor([3, 1, 1]))],
        "packed_spmm": [
            gather,
            (*gather, integers(edges), None, torch.rand(case.rowptr.numel() - 1)),
            (*gather, torch.rand(edges), None, None, None, None, 1.0, "mean", True, *output),
        ],
        "packed_propagate": [
            hops,
            (*hops, True, torch.rand(2), integers(weight.numel()), torch.rand(12)),
            (*hops, True, torch.rand(2), weight, None, 0.9, x, 0.1, *output),
        ],
        "packed_smp": [
            (square.rowptr, square.col, x, *hops[-3:]),
            (*(square.rowptr, square.col, x, *hops[-3:]), False, None, weight, torch.rand(12)),
            (*(square.rowptr, square.col, x, *hops[-3:]), True, torch.rand(2)),
        ],
        "packed_extremum": [gather, (*gather, False)],
        "packed_attention": [
            (*gather, torch.rand(edges, 4)),
            (*gather, torch.rand(edges, 4), None, True, *output),
        ],
        "packed_linear": [linear, (*linear, torch.rand(5), True, *output)],
        "quantize_linear": [
            (x, *grid, False, False, None, *factor),
            (x, torch.tensor(0.9), None, 4, True, True, None, *factor),
            (x, *grid, True, False, output[4], *factor, torch.rand(5), True),
        ],
        "spmm": [(case.rowptr, case.col, x)],
        "fake_quantize": [
            (x.clone().requires_grad_(), torch.tensor(0.3, requires_grad=True), output[1], 4)
        ],
        "fake_quantize_backward": [(x, x, x_hat, mask, axis) for axis in (-1, 0, 1)],
        "observed_quantize": [
            (x, torch.tensor(0.9), *output[:1], output[1], -1, 3),
            (x, torch.rand(40), None, None, 1, 4, True, True, 0.3, 0.1),
            (x, torch.tensor(0.9), None, None, 0, 2),
        ],
        "observed_quantize_backward": [
            (x, x, x_hat, mask, *(torch.rand(shape) + 0.1 for _ in range(2)), 0.5)
            for shape in ((), (12, 1), (1, 40))
        ],
    }
