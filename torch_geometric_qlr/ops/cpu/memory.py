"""What the kernels keep of memory for coming results (csrc/torch/memory.h)."""

from __future__ import annotations

from torch_geometric_qlr.ops.cpu.library import load_library

__all__ = ["idle_memory", "release_memory"]


def release_memory() -> None:
    r"""Gives the memory that is kept for coming results back to the system.

    Example:
        >>> release_memory()
    """
    library, _ = load_library()
    if library is not None:
        library.qlr_release_memory()


def idle_memory() -> tuple[int, int]:
    r"""How many mappings are kept, and their bytes.

    Example:
        >>> release_memory()
        >>> idle_memory()
        (0, 0)
    """
    library, _ = load_library()
    if library is None:
        return 0, 0
    return library.qlr_idle_mappings(), library.qlr_idle_bytes()
