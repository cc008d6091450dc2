"""The back end of kernels in Triton: for GPUs, and on a CPU in Triton's interpreter."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Mapping

import torch

from torch_geometric_qlr.ops.backend import Backend, Kernel

__all__ = ["BACKEND"]

_INTERPRET = "TRITON_INTERPRET"


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _is_interpreted() -> bool:
    """Whether kernels are to run in the interpreter, on any device."""
    return os.environ.get(_INTERPRET, "").lower() in ("1", "true", "yes", "on", "y")


def _was_imported_to_compile() -> bool:
    """Whether Triton's own functions are compiled ones already."""
    language = getattr(sys.modules.get("triton"), "language", None)
    return type(getattr(language, "zeros", None)).__name__ == "JITFunction"


class _Triton(Backend):
    name = "triton"

    def missing(self, name: str) -> str:
        if not _is_installed():
            return (
                "triton is not installed. On Linux: pip install triton, or "
                'pip install "torch-geometric-qlr[triton]".'
            )
        if _is_interpreted():
            late = _was_imported_to_compile()
            return f"{_INTERPRET} is set, but not before Python was started." if late else ""
        if not torch.cuda.is_available():
            return (
                f"torch finds no CUDA device. Install a torch with CUDA on a machine with a GPU, "
                f"or set {_INTERPRET}=1 before Python starts, to try kernels on a CPU, slowly."
            )
        return ""

    def answers_on(self, device_type: str) -> bool:
        return device_type == "cuda" or (device_type == "cpu" and _is_interpreted())

    def is_default_on(self, device_type: str) -> bool:
        return device_type == "cuda"

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        # Triton may be missing, and takes half a second.
        from torch_geometric_qlr.ops.triton import codes, fake_quantize, floats, gather, linear

        return {
            "quantize_pack": codes.quantize_pack,
            "quantize_rows": codes.quantize_rows,
            "unpack": codes.unpack,
            "packed_spmm": gather.packed_spmm,
            "packed_extremum": gather.packed_extremum,
            "packed_attention": gather.packed_attention,
            "packed_linear": linear.packed_linear,
            "spmm": floats.spmm,
            **fake_quantize.KERNELS,
        }


BACKEND = _Triton()
