"""Runs tutorials cell by cell, and keeps what each cell printed for the pages that show it.

    python examples/tutorials/run.py [NAME ...] [--root FOLDER] [--quick] [--write]

A tutorial is also a script of its own, and its blocks can be pasted into a Python one by one. This
program gives it another folder for its data, fewer epochs, or a generated graph.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent.parent / "docs" / "results" / "tutorials"

# What stands for the constants of a tutorial in CI.
QUICK = {"EPOCHS": 3, "SEEDS": 1, "BUDGETS": (2.1,), "COMPILED": False, "ROUNDS": 2}


@dataclass(frozen=True)
class Cell:
    """What is said, in reStructuredText, and the code below it, either of which may be empty."""

    prose: str
    code: str


def tutorials() -> list[Path]:
    """The scripts, in their order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def cells(path: Path) -> list[Cell]:
    """The cells of a script: each begins with ``# %%``, and its first comment is its prose."""
    found = []
    for text in re.split(r"^# %%\n", path.read_text(), flags=re.MULTILINE)[1:]:
        lines = text.strip("\n").splitlines()
        count = next((i for i, line in enumerate(lines) if line[:1] != "#"), len(lines))
        prose = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:count])
        found.append(Cell(prose, "\n".join(lines[count:]).strip("\n")))
    return found


def with_constants(code: str, constants: Mapping[str, Any]) -> str:
    """The code with other values of constants such as ``EPOCHS = 100``."""
    for name, value in constants.items():
        code = re.sub(rf"^{name} = .*$", f"{name} = {value!r}", code, flags=re.MULTILINE)
    return code


def run(path: Path, constants: Mapping[str, Any]) -> list[str]:
    """Runs a tutorial and returns what each of its cells printed."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for number, cell in enumerate(cells(path)):
        place = f"{path.name}, cell {number}"
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(with_constants(cell.code, constants), place, "exec"), names)
        printed.append(out.getvalue())
        sys.stdout.write(printed[-1])
    return printed


@contextlib.contextmanager
def generated_data() -> Iterator[None]:
    """Small generated graphs in place of the data sets that the tutorials load."""
    sys.path.append(str(HERE.parent))
    from _data import bibliography_graph, citation_like_graph

    class Generated(list):
        num_classes = 7

    def planetoid(root: str, name: str, split: str = "public", *, transform: Any) -> Generated:
        return Generated([transform(citation_like_graph(num_nodes=700, num_words=300))])

    def dblp(root: str, transform: Any = None) -> Generated:
        return Generated([bibliography_graph()])

    datasets = "torch_geometric.datasets"
    with mock.patch(f"{datasets}.Planetoid", planetoid), mock.patch(f"{datasets}.DBLP", dblp):
        yield


@contextlib.contextmanager
def in_folder(path: Path) -> Iterator[None]:
    """Works in a folder, where a tutorial leaves its files."""
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="such as 01_first_gnn (default: all)")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--quick", action="store_true", help="a few epochs on generated graphs")
    parser.add_argument("--write", action="store_true", help="keep the output for the pages")
    args = parser.parse_args()
    chosen = [path for path in tutorials() if not args.names or path.stem in args.names]
    unknown = set(args.names) - {path.stem for path in chosen}
    if unknown:
        parser.error(f"no tutorial {', '.join(sorted(unknown))}")
    constants = {"ROOT": str(args.root.resolve()), **(QUICK if args.quick else {})}
    for path in chosen:
        with contextlib.ExitStack() as stack:
            if args.quick:
                stack.enter_context(generated_data())
            stack.enter_context(in_folder(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
            print(f"--- {path.stem}")
            printed = run(path, constants)
            if args.write:
                RESULTS.mkdir(exist_ok=True)
                (RESULTS / f"{path.stem}.json").write_text(json.dumps(printed, indent=1) + "\n")
                for figure in Path.cwd().glob("*.png"):
                    (RESULTS / figure.name).write_bytes(figure.read_bytes())


if __name__ == "__main__":
    main()
