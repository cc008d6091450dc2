"""A copy of the package, to which a test adds something, and programs that run with it."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "torch_geometric_qlr"
LIBRARY = "libqlr_cpu.so"


def _files(package: Path) -> dict[str, Path]:
    """All that counts of a tree, by where it lies."""
    every = (path for path in package.rglob("*") if path.is_file())
    kept = (path for path in every if "__pycache__" not in path.parts and path.name != LIBRARY)
    return {str(path.relative_to(package)): path for path in kept}


def run_python(*command: str, places: list[Path], cwd: Path, **environment: str) -> str:
    """What ``python COMMAND`` says, with `places` to import from; fails if it does."""
    path = os.pathsep.join(map(str, places))
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path, "QLR_BACKEND": "", **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class PackageCopy:
    """The package, and what was added to it.

    Args:
        home (Path): The folder to put it into.
        library (bool): Whether the compiled kernels come with it, if there are any.
    """

    def __init__(self, home: Path, *, library: bool = False) -> None:
        self.home, self.package = home, home / PACKAGE
        unwanted = shutil.ignore_patterns("__pycache__", *([] if library else [LIBRARY]))
        shutil.copytree(ROOT / PACKAGE, self.package, ignore=unwanted)
        self._added: set[str] = set()
        self._changed: set[str] = set()

    def add(self, name: str, text: str) -> None:
        """A new file."""
        path = self.package / name
        path.parent.mkdir(exist_ok=True)
        assert not path.exists()
        path.write_text(text)
        self._added.add(name)

    def add_line(self, name: str, line: str, *, after: str) -> None:
        """A line in a file, after the only one that contains a text."""
        path = self.package / name
        lines = path.read_text().splitlines()
        (place,) = (number for number, own in enumerate(lines) if after in own)
        path.write_text("\n".join([*lines[: place + 1], line, *lines[place + 1 :], ""]))
        self._changed.add(name)

    def run(self, *command: str, beside: Path | None = None, **environment: str) -> str:
        """What ``python COMMAND`` says, which imports the copy and what lies in `beside`."""
        places = [self.home] if beside is None else [self.home, beside]
        return run_python(*command, places=places, cwd=self.home, **environment)

    def assert_nothing_else_differs(self) -> None:
        """All files are as in the package, but for what this object was asked to add."""
        ours, theirs = _files(self.package), _files(ROOT / PACKAGE)
        assert set(ours) - set(theirs) == self._added
        assert set(theirs) <= set(ours)
        differ = {n for n in theirs if not filecmp.cmp(ours[n], theirs[n], shallow=False)}
        assert differ == self._changed
