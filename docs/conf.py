"""How the documentation is built: ``sphinx-build -W docs docs/_build/html``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import torch_geometric_qlr as qlr  # noqa: E402

project = "torch_geometric_qlr"
author = "torch_geometric_qlr contributors"
copyright = f"%Y, {author}"
version = release = qlr.__version__

extensions = [
    "myst_parser",  # the changelog is Markdown
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "conv_status",
]
exclude_patterns = ["_build", "_ext", "_templates", "results"]
templates_path = ["_templates"]

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings name the types, as PyG's do
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes"]

html_theme = "furo"
html_title = f"QLR for PyG {release}"
pygments_style = "friendly"
