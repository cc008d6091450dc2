"""Formulas as MathML, which browsers draw by themselves: no script, and nothing from a network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

_LOGGER = logging.getLogger(__name__)


def _drawn(node: nodes.math | nodes.math_block, display: str) -> str:
    """The element of a formula; the formula itself, and a warning, where there is none."""
    try:
        return convert(node.astext(), display=display)
    except Exception as error:  # its classes have nothing in common
        why = str(error) or type(error).__name__
        _LOGGER.warning("no MathML for %r: %s", node.astext(), why, location=node)
        return f"<code>{node.astext()}</code>"


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_drawn(node, "inline"))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    # A wide formula is scrolled, not the page.
    self.body.append(f'<div class="formula">{_drawn(node, "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
