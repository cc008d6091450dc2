"""Compiles the kernels of training for a GPU that need not be here: ``python ... 90`` for sm_90.

Needs no driver: assembler and object dump are those of Triton's wheel. Says of each configuration
what it takes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs triton: pip install triton")
from torch_geometric_qlr.ops.triton.fake_quantize import tile_of  # noqa: E402
from torch_geometric_qlr.ops.triton.kernels import fake_quantize as kernels  # noqa: E402

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHAPE = (4096, 256)

NUMBERS = {"num_groups": "i32", "length": "i32", "pieces": "i32", "momentum": "fp32"}
NUMBERS |= {"factor": "fp32", "group_stride": "i32", "step": "i32"}
FLOATS = ("scale", "zero", "skew", "partial", "own_scale", "out", "gamma", "lows", "highs")
FLOATS += ("kept_lo", "kept_hi")


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], arch: int) -> Any:
    """`types` of what has a value when it runs; what is in neither is absent."""
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    given = {(i,): constants.get(name) for i, name in enumerate(names) if name not in types}
    pointers = [i for i, name in enumerate(names) if types.get(name, "").startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in pointers}
    source = triton.compiler.ASTSource(kernel, signature, constexprs=given, attrs=attributes)
    options = {"enable_fp_fusion": False}
    return triton.compile(
        source, target=triton.backends.compiler.GPUTarget("cuda", arch, 32), options=options
    )


def usage(binary: bytes) -> tuple[int, int]:
    """Registers, and bytes that did not fit into them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(BIN / "cuobjdump"), "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, local = (int(re.search(rf"{key}:(\d+)", said)[1]) for key in ("REG", "LOCAL"))  # type: ignore[index]
    return registers, local


def layout(axis: int) -> tuple[dict[str, Any], list[str]]:
    """Constants of a tile, and the numbers that are one, which Triton compiles for."""
    groups = tile_of(torch.empty(SHAPE, device="meta"), axis)
    strides = {"group_stride": groups.group_stride, "step": groups.step}
    ones = [name for name, stride in strides.items() if stride == 1]
    if axis == -1:
        ones.append("num_groups")
    return {**groups.constants, **dict.fromkeys(ones, 1)}, ones


def configurations() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    """Name, kernel, types and constants."""
    floats = dict.fromkeys(FLOATS, "*fp32")
    for axis in (-1, 0, 1):
        tile, ones = layout(axis)
        numbers = {name: kind for name, kind in NUMBERS.items() if name not in ones}
        for kind in ("fp32", "bf16"):
            values = dict.fromkeys(("x", "x_hat", "grad", "grad_x"), f"*{kind}") | {"mask": "*i8"}
            types = numbers | floats | values
            name = f"{kind}, axis {axis}"
            for truncate in (False, True):
                how = {"LEVELS": 15, "TRUNCATE": truncate, "SHARED": axis == -1}
                some = types if truncate else {n: t for n, t in types.items() if n != "skew"}
                yield f"fake_quantize, {name}", kernels.fake_quantize_kernel, some, tile | how
            yield f"gradient, {name}", kernels.gradient_kernel, types, tile | {"DOUBLE": False}
            yield f"span, {name}", kernels.span_kernel, types, tile
    for groups, pieces in ((1, 1024), (128, 8)):
        # Triton compiles for a number that is one.
        second = {"GROUPS": groups, "PIECES": pieces, "num_groups" if groups == 1 else "pieces": 1}
        numbers = {name: kind for name, kind in NUMBERS.items() if name not in second}
        for scaled in (False, True):
            types = numbers | floats
            constants = second | {"SCALED": scaled}
            yield f"gradient_sum, {groups}", kernels.gradient_sum_kernel, types, constants
        for kept in (False, True):
            own = {n: t for n, t in floats.items() if kept or not n.startswith("kept")}
            constants = second | {"LEVELS": 3, "TRUNCATE": kept, "ALIGNED": kept}
            constants |= {"FACTOR": kept, "ONE_GAMMA": groups == 1}
            yield f"grid, {groups}", kernels.grid_kernel, numbers | own, constants


def main() -> None:
    arch = int(sys.argv[1])
    for name, kernel, types, constants in configurations():
        taken = {n: kind for n, kind in types.items() if n in kernel.arg_names}
        registers, spilled = usage(compiled(kernel, taken, constants, arch).asm["cubin"])
        print(f"sm_{arch}: {name}: {registers} registers, {spilled} bytes spilled", flush=True)


if __name__ == "__main__":
    main()
