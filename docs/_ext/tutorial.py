"""``.. tutorial:: 01_first_gnn``, a script of ``examples/tutorials`` cell by cell.

Of each cell the page has the prose, the code, and what it printed when
``examples/tutorials/run.py --write`` ran it. If there are not as many
outputs as cells, the build warns.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "tutorials"


class Tutorial(SphinxDirective):
    """The page of a tutorial, below its title."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        runner = _runner()
        name = self.arguments[0]
        script, kept = EXAMPLES / f"{name}.py", runner.RESULTS / f"{name}.json"
        for file in (script, kept):
            self.env.note_dependency(str(file))
        cells, printed = runner.cells(script), json.loads(kept.read_text())
        if len(cells) != len(printed):
            message = (
                f"{kept.name} is of another {script.name}: run examples/tutorials/run.py --write"
            )
            raise self.error(message)
        text = [f"The script is ``examples/tutorials/{name}.py``.", ""]
        for cell, output in zip(cells, printed, strict=True):
            text += [cell.prose, "", *_block("python", cell.code), *_block("none", output)]
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def _block(language: str, text: str) -> list[str]:
    """A block of code or output; nothing where there is none."""
    if not text.strip():
        return []
    shown = [f"   {line}".rstrip() for line in text.rstrip().splitlines()]
    kind = ["   :class: output"] if language == "none" else []
    return [f".. code-block:: {language}", *kind, "", *shown, ""]


def _runner() -> ModuleType:
    """The module that knows what a cell is."""
    spec = importlib.util.spec_from_file_location("tutorial_runner", EXAMPLES / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("tutorial", Tutorial)
    return {"version": "1", "parallel_read_safe": True}
