"""Other builds of the kernels, beside the library that is installed, and the tests run with one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "torch_geometric_qlr"
#: For builds of which a few tests are all that is asked; half of the time goes to these kernels.
WITHOUT_AVX512 = "-DQLR_NO_AVX512"
#: Kernels for AVX-VNNI that run on any processor with AVX2.
EMULATED_VNNI = "-DQLR_EMULATED_VNNI"
FLAGS = ("-std=c++17", "-fPIC", "-fopenmp", "-ffp-contract=off")


class Build(NamedTuple):
    """A folder with a copy of what the kernels and their tests need, and what to run it in."""

    home: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """What ``python COMMAND`` says in the copy; fails if it does."""
        result = subprocess.run(
            [sys.executable, *command],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
        )
        said = result.stdout[-4000:] + result.stderr[-4000:]
        assert result.returncode == 0, said
        return said

    def test(self, *names: str) -> None:
        """Passes the tests of ``tests/ops`` of these names."""
        tests = [f"test_{name}.py" for name in names]
        for test in tests:
            shutil.copy(ROOT / "tests" / "ops" / test, self.home)
        said = self.run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests)
        assert " passed" in said, said
        assert "skipped" not in said, said  # as they would be if the library had not been loaded


def build(home: Path, compiler: str, *flags: str) -> Build:
    """Builds the library with ``compiler``, so that the installed one stays as it is."""
    copy, helpers = home / PACKAGE, home / "tests" / "helpers"
    copy.mkdir()
    helpers.mkdir(parents=True)
    (copy / "__init__.py").touch()
    shutil.copy(ROOT / PACKAGE / "errors.py", copy)
    for folder in ("ops", "tensor"):
        shutil.copytree(ROOT / PACKAGE / folder, copy / folder)
    for name in (
        "__init__.py",
        "helpers/__init__.py",
        "helpers/kernel_cases.py",
        "helpers/fuzz_ops.py",
    ):
        shutil.copy(ROOT / "tests" / name, home / "tests" / name)
    sources = sorted((ROOT / PACKAGE / "csrc").rglob("*.cpp"))
    objects = [str(home / f"{number}.o") for number in range(len(sources))]

    def translate(source: Path, to: str) -> None:
        subprocess.run([compiler, *FLAGS, *flags, "-c", str(source), "-o", to], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(translate, sources, objects))
    library = copy / "libqlr_cpu.so"
    link = [compiler, *FLAGS, *flags, "-shared", *objects, "-ldl", "-o", str(library)]
    subprocess.run(link, check=True)
    environment = {**os.environ, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    return Build(home, environment)
