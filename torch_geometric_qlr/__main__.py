"""`python -m torch_geometric_qlr`: versions, kernels and a check of them, for a bug report; or a
command."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import brevitas
import torch
import torch_geometric

import torch_geometric_qlr
from torch_geometric_qlr.commands import run_command
from torch_geometric_qlr.ops import backend_info, kernels_on
from torch_geometric_qlr.ops.schemas import NAMES
from torch_geometric_qlr.self_check import Checked, self_check

_OPTIONAL = ("torch_sparse", "pyg_lib", "triton")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> dict[str, str]:
    """The GPUs that were found, and what computes on them; or why there is none."""
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        return {"GPU": f"none: torch {'finds none' if built else 'was built without CUDA'}"}
    rows = {}
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        memory, arch = found.total_memory / 2**30, f"sm_{found.major}{found.minor}"
        rows[f"GPU {index}"] = f"{found.name}, {arch}, {memory:.0f} GiB"
    names, reason = kernels_on("cuda")
    count = f"for {len(names)} of {len(NAMES)} operations: {', '.join(names)}"
    return {**rows, "GPU kernels": f"none: {reason}" if reason else count}


def _in_words(found: Checked) -> str:
    if found.wrong:
        return f"WRONG: {'; '.join(found.wrong)}"
    return f"passed: {found.calls} results as the reference computes them"


def main() -> None:
    """Prints what computes here, and why, and whether it computes what it should.

    Raises:
        SystemExit: If it does not, with status 1.
    """
    checked = self_check()
    info = backend_info()
    rows = {
        "torch_geometric_qlr": torch_geometric_qlr.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        # A build of torch says more of itself than its metadata, such as its version of CUDA.
        **{package.__name__: package.__version__ for package in (torch, torch_geometric, brevitas)},
        **{package: _version(package) for package in _OPTIONAL},
        "threads": str(torch.get_num_threads()),
        "CPU kernels": str(info["library"] or f"none: {info['reason']}"),
        "CPU back end": f"{info['selected']} (of {', '.join(info['available'])})",
        **{f"back end {name}": f"none: {reason}" for name, reason in info["unavailable"].items()},
        "VNNI, OpenMP": f"{'yes' if info['vnni'] else 'no'}, {'yes' if info['openmp'] else 'no'}",
        **_gpus(),
        **{f"check of {found.backend}": _in_words(found) for found in checked},
    }
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    if any(found.wrong for found in checked):
        raise SystemExit(1)


if __name__ == "__main__":
    if sys.argv[1:]:
        run_command(sys.argv[1:])
    else:
        main()
