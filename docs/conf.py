"""How the documentation is built: ``sphinx-build -W docs docs/_build/html``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from sphinx.application import Sphinx  # noqa: E402

import torch_geometric_qlr as qlr  # noqa: E402

project = "torch_geometric_qlr"
author = "torch_geometric_qlr contributors"
copyright = f"%Y, {author}"
version = release = qlr.__version__

extensions = [
    "myst_parser",  # the changelog is Markdown
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "conv_status",
    "mathml",
    "tutorial",
]
exclude_patterns = ["_build", "_ext", "_templates", "results"]
templates_path = ["_templates"]

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings name the types, as PyG's do
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what PyG says of its own methods is in its own pages
autodoc_preserve_defaults = True
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes"]

html_theme = "furo"
html_math_renderer = "mathml"
copybutton_prompt_text = r">>> |\.\.\. |\$ "  # what is copied runs: no prompts, and no output
copybutton_prompt_is_regexp = True
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"QLR for PyG {release}"
pygments_style = "friendly"
pygments_dark_style = "github-dark"  # the default underlines names of modules


def _skip(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out fields of named tuples, which their parameters describe, and private classes."""
    numbered = (getattr(member, "__doc__", None) or "").startswith("Alias for field number")
    private = isinstance(member, type) and member.__name__.startswith("_")
    return True if numbered or private else None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-skip-member", _skip)
