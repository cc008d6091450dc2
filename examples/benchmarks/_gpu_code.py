"""Kernels compiled ahead of time, without a GPU, and what their machine code is made of."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

#: The unit of a multiprocessor that an instruction goes to.
UNITS = {
    "alu": r"LOP3|PLOP3|IADD3|IADD|VIADD|SHF|PRMT|LEA|ISETP|SEL|IMNMX|VIMNMX|FMNMX|FSETP|FSEL|SGXT"
    r"|IABS|BMSK|ICMP|I2FP|FCHK|VIADDMNMX",
    "dp4a": r"IDP",
    "imad": r"IMAD|MOV|CS2R",
    "fma": r"FFMA|FMUL|FADD|HFMA2",
    "load": r"LDG",
    "store": r"STG",
    "shared": r"LDS|STS|LDSM|SHFL|BAR",
    "convert": r"I2F|F2I|F2F|MUFU|I2I",
    "tensor": r"IMMA|IGMMA|HMMA|HGMMA|WARPGROUP|WGMMA",
}
_CLASSES = {name: re.compile(rf"({words})(\.|$)") for name, words in UNITS.items()}
_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)\s*(.*)")


class Launch(NamedTuple):
    """What a kernel would have been launched with."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Inside, kernels are not launched but written down."""
    launches: list[Launch] = []

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append(Launch(kernel, arguments, options))

    original, JITFunction.run = JITFunction.run, run
    try:
        yield launches
    finally:
        JITFunction.run = original


def compiled(launch: Launch, arch: int) -> Any:
    """Machine code of a launch, as the launch itself would have had it compiled."""
    target = GPUTarget("cuda", arch, 32)
    backend, kernel = make_backend(target), launch.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*launch.arguments, **launch.options)
    packed = kernel._pack_args(backend, options, bound, specialization, options)
    options, signature, constants, attributes = packed
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=options.__dict__)


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _count(part: list[tuple[str, str]]) -> dict[str, int]:
    counts = {name: sum(bool(c.match(op)) for op, _ in part) for name, c in _CLASSES.items()}
    return {**counts, "all": len(part)}


def _main_loop(lines: list[tuple[str, str]], labels: dict[str, int]) -> tuple[int, int]:
    """The longest loop that reads memory or multiplies matrices."""
    found = (0, 0)
    for end, (op, rest) in enumerate(lines):
        label = re.search(r"\.L_x_\d+", rest)
        begin = labels.get(label[0], end + 1) if label and op.startswith("BRA") else end + 1
        body = lines[begin:end]
        works = any(op.startswith(("LDG", "LDGSTS", "IMMA", "IGMMA")) for op, _ in body)
        if works and end - begin > found[1] - found[0]:
            found = begin, end + 1
    return found


def inspect(binary: Any) -> dict[str, Any]:
    """Registers, spills, shared memory; instructions of the main loop, and of all else."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        text = _tool("nvdisasm", "-c", file.name)
    lines: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if found := _LABEL.match(line):
            labels[found[1]] = len(lines)
        elif found := _INSTRUCTION.match(line):
            lines.append((found[1], found[2]))
    while lines and lines[-1][0] in ("NOP", "BRA"):
        lines.pop()
    begin, end = _main_loop(lines, labels)
    number = {key: int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "LOCAL", "STACK")}
    return {
        "registers": number["REG"],
        "spilled_bytes": max(number["LOCAL"], number["STACK"]),
        "shared_bytes": binary.metadata.shared,
        "loop": _count(lines[begin:end]),
        "rest": _count(lines[:begin] + lines[end:]),
        "flushes_denormals": sum("FTZ" in op for op, _ in lines[begin:end]),
    }
