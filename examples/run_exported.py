"""Runs a model that ``qlr.export`` wrote to a .pt2 file. Needs torch, and nothing else.

    python examples/run_exported.py libqlr_cpu.so model.pt2 inputs.pt

``inputs.pt`` is what :func:`torch.save` writes of a list of tensors: the inputs, and the answer
that is expected last.
"""

from __future__ import annotations

import ctypes
import sys

import torch


def main(kernels: str, model: str, inputs: str) -> None:
    # The kernels become operations of torch, which the model calls.
    if ctypes.CDLL(kernels).qlr_register_ops(None) != 0:
        raise SystemExit(f"{kernels} does not fit torch {torch.__version__}")
    run = torch._inductor.aoti_load_package(model)
    *given, expected = torch.load(inputs)
    with torch.no_grad():
        out = run(*given)
    assert "torch_geometric_qlr" not in sys.modules
    print(f"shape {list(out.shape)}, equal to the model's: {torch.equal(out, expected)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
