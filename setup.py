"""Builds the optional CPU kernels: one shared library behind a plain C interface.

The library includes no header of torch or Python, and finds what it needs of torch when it is
loaded: one build serves every version of both, and nothing but a C++17 compiler is needed. Without
one the install succeeds, the package says which kernels are missing when one would have been used,
and the reference implementation answers.
Everything else about the package is in `pyproject.toml`.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    from wheel.bdist_wheel import bdist_wheel

CSRC = Path("torch_geometric_qlr") / "csrc"
SOURCES = sorted(CSRC.rglob("*.cpp"))
HEADERS = sorted(p for pattern in ("*.h", "*.inl") for p in CSRC.rglob(pattern))
HEADERS.append(Path("torch_geometric_qlr") / "ops" / "schemas.inc")


def compile_flags() -> tuple[list[str], list[str]]:
    """Flags for the compiler and for the linker."""
    if sys.platform == "win32":
        return ["/std:c++17", "/O2", "/fp:precise", "/openmp"], []
    compile_args = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-g0"]
    # Codes are defined by separately rounded operations; a contracted one would differ.
    compile_args += ["-ffp-contract=off"]
    # GCC 12 takes the undefined upper halves of its own intrinsics for a mistake of ours.
    compile_args += ["-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
    compile_args += ["-Wno-unknown-warning-option"]  # Clang does not know the last one
    # Apple's compiler comes without OpenMP; the kernels then run on one thread.
    linux = sys.platform.startswith("linux")
    openmp = ["-fopenmp"] if linux else []
    return compile_args + openmp, openmp + (["-ldl"] if linux else [])


class BuildLibrary(build_ext):
    """Builds a library that is loaded by path, so its name carries no Python tag."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + (".dll" if sys.platform == "win32" else ".so")

    def build_extensions(self) -> None:
        """Compiles the files side by side: each instruction set takes half a minute."""
        compile_files = self.compiler.compile

        def compile_at_once(sources: list[str], *args: Any, **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                done = pool.map(lambda source: compile_files([source], *args, **options), sources)
                return [name for names in done for name in names]

        self.compiler.compile = compile_at_once
        super().build_extensions()

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return list(ext.export_symbols)  # there is no PyInit_ function


class PlatformWheel(bdist_wheel):
    """Tags the wheel by platform only: the library does not depend on the Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


compile_args, link_args = compile_flags()
setup(
    ext_modules=[
        Extension(
            "torch_geometric_qlr.libqlr_cpu",
            sources=[str(p) for p in SOURCES],
            depends=[str(p) for p in HEADERS],
            language="c++",
            extra_compile_args=compile_args,
            extra_link_args=link_args,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
