"""``.. conv-status::``, a table of every convolution and how it is quantized.

The rows are read from the registry that ``quantize`` itself uses, so the page cannot drift from the
code. A convolution of PyG that is missing from the registry is shown as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch_geometric
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from torch_geometric_qlr.nn.registry import LayerSpec, conv_specs

HEADER = ("Layer", "Family", "Quantized per node or edge", "Its own weights", "Remark")


class ConvStatus(SphinxDirective):
    """The table, in the order of PyG's own list."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(lines(conv_specs())))


def lines(specs: dict[str, LayerSpec]) -> Iterator[str]:
    """The table as reStructuredText, under a sentence that counts the rows."""
    names = sorted({*torch_geometric.nn.conv.__all__, *specs} - {"MessagePassing"}, key=str.lower)
    handled = [name for name in names if name in specs and specs[name].family != "float"]
    release = torch_geometric.__version__
    yield (
        f"{len(handled)} of {len(names)} convolutions are quantized: those of PyG {release}, and "
        "``SMP`` and ``EMP`` of this package."
    )
    yield ""
    yield ".. list-table::"
    yield "   :header-rows: 1"
    yield ""
    yield from row(HEADER)
    for name in names:
        yield from row(cells(name, specs.get(name)))


def cells(name: str, spec: LayerSpec | None) -> tuple[str, ...]:
    """What the registry says of one convolution."""
    if spec is None:
        return f"``{name}``", "edge", "messages", "", "not in the registry: read off its class"
    where = {
        "copy": f"source: {code(spec.sources)}",
        "attention": f"source: {code(spec.sources)}",
        "edge": "messages",
    }.get(spec.family, "")
    if spec.logit_sources:
        where += f"; at 8 bits or more: {code(spec.logit_sources)}"
    weights = code(spec.weights)
    if spec.logit_weights:
        precise = f"at 8 bits or more: {code(spec.logit_weights)}"
        weights = "; ".join(filter(None, [weights, precise]))
    return f"``{name}``", spec.family, where, weights, spec.note


def code(names: Any) -> str:
    return ", ".join(f"``{name}``" for name in names)


def row(texts: tuple[str, ...]) -> Iterator[str]:
    for i, text in enumerate(texts):
        yield f"   {'*' if i == 0 else ' '} - {text}".rstrip()


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("conv-status", ConvStatus)
    return {"version": "1", "parallel_read_safe": True}
