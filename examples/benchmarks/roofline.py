"""How near packed sums come to what memory allows, and where the codes of a row lie.

    python examples/benchmarks/roofline.py --graph arxiv --out roofline.png --markdown roofline.md
    python examples/benchmarks/roofline.py --layout rows.png

Two bounds are measured on the machine at hand. *Copy*: as many bytes as a sum has to move, its rows
once per edge, its indices and its result once, at the speed of a copy that leaves every cache.
*Gather*: the same rows, fetched in the same order, and added up to a single one, which takes two
instructions per 32 bytes and writes nothing. What a sum takes longer than the second it spends with
unpacking, weights, the ends of rows and results.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from _graphs import CSR, SHAPES, generate
from _runs import pyplot
from _timing import environment, interleave
from torch_geometric_qlr.ops import backend_info, row_layout
from torch_geometric_qlr.tensor import PackedTensor, edge_codes, spmm

#: Bytes that no cache holds.
COPIED = 1 << 28
COLORS = {"INT8": "#9ecae1", "INT4": "#4292c6", "INT2": "#084594", "INT1": "#08306b"}


class Row(NamedTuple):
    """One sum: what it takes, what a gather of the same rows takes, and what a copy would."""

    name: str
    row_bytes: int
    seconds: float
    gather: float
    copy: float


def copy_bandwidth() -> float:
    """Bytes per second of a copy, read and written bytes both counted."""
    source = torch.ones(COPIED // 4)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 2 * COPIED / min(times)


def gather_of(rows: Tensor, col: Tensor) -> Callable[[], Any]:
    """Fetches rows in the order of the edges, and adds all of them up as bytes."""
    data = rows if rows.dtype == torch.uint8 else rows.view(torch.uint8)
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    packed = PackedTensor(data, data.size(1), 8, one, zero)
    rowptr = torch.tensor([0, col.numel()])
    return lambda: spmm(rowptr, col, packed)


def measure(graph: CSR, features: int, bits: list[int], rounds: int) -> list[Row]:
    x = torch.randn(graph.num_nodes, features)
    edges = (graph.rowptr, graph.col)
    norm = (graph.rowptr.diff() + 1.0).rsqrt()
    weight = norm.repeat_interleave(graph.rowptr.diff()) * norm[graph.col.long()]
    codes, scale = edge_codes(*edges, weight)
    sums: dict[str, Callable[[], Any]] = {
        "float": lambda: torch.ops.qlr.spmm(*edges, x),
        "float, edge weights": lambda: torch.ops.qlr.spmm(*edges, x, weight),
    }
    gathers: dict[str, Callable[[], Any]] = {"float": gather_of(x, graph.col)}
    row_bytes = {"float": 4 * features}
    for width in bits:
        step = torch.tensor(6.0 / (2**width - 1))
        packed = PackedTensor.from_float(x, step, torch.tensor(2.0 ** (width - 1)), width)
        name = f"INT{width}"
        row_bytes[name] = packed.data.size(1)
        gathers[name] = gather_of(packed.data, graph.col)
        sums[name] = lambda p=packed: spmm(*edges, p)
        sums[f"{name}, edge weights"] = lambda p=packed: spmm(
            *edges, p, edge_weight=codes, row_scale=scale
        )
    both = {**{f"gather {k}": run for k, run in gathers.items()}, **sums}
    fastest = {name: min(times) for name, times in interleave(both, rounds).items()}
    bandwidth = copy_bandwidth()
    out = []
    for name in sums:
        kind, weighted = name.split(",")[0], "," in name
        moved = graph.num_edges * (row_bytes[kind] + 4)
        moved += graph.num_edges * weighted * (4 if kind == "float" else 1)
        moved += graph.num_nodes * (4 * features + 8)
        gather = fastest[f"gather {kind}"]
        out.append(Row(name, row_bytes[kind], fastest[name], gather, moved / bandwidth))
    return out


def table(rows: list[Row], edges: int) -> str:
    head = ["sum", "bytes a row", "ns an edge", "of the gather alone", "of a copy"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        shares = f"{row.gather / row.seconds:.0%}", f"{row.copy / row.seconds:.0%}"
        lines.append([row.name, str(row.row_bytes), f"{row.seconds / edges * 1e9:.1f}", *shares])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(path: Path, rows: list[Row], edges: int, title: str) -> None:
    figure, axis = pyplot().subplots(figsize=(8, 0.42 * len(rows) + 1.3), layout="constrained")
    for place, row in enumerate(reversed(rows)):
        ns = 1e9 / edges
        color = COLORS.get(row.name[:4], "#bdbdbd")
        axis.barh(place, row.seconds * ns, color=color, height=0.7)
        for bound, style in ((row.gather, "-"), (row.copy, ":")):
            axis.plot([bound * ns] * 2, [place - 0.42, place + 0.42], color="black", ls=style)
    axis.set_yticks(range(len(rows)), [row.name for row in reversed(rows)], fontsize=9)
    axis.plot([], [], color="black", label="the same rows gathered and added up to one")
    axis.plot([], [], color="black", ls=":", label="as many bytes copied")
    axis.legend(fontsize=8, loc="lower right")
    axis.set_xlabel("ns an edge")
    axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120)
    print(f"written: {path}")


def draw_layout(path: Path, columns: int = 40) -> None:
    """The bytes of a row, and the columns whose codes they hold."""
    widths = (8, 4, 2, 1)
    plt = pyplot()
    figure, axes = plt.subplots(len(widths), 1, figsize=(11, 6.2), layout="constrained")
    for axis, bits in zip(axes, widths, strict=True):
        layout = row_layout(columns, bits)
        shades = plt.get_cmap("Blues")
        for byte in range(layout.stride):
            for field in range(layout.fields):
                unit, inside = divmod(byte, layout.unit)
                column = unit * layout.codes_per_unit + field * layout.unit + inside
                is_there = column < columns
                color = shades(0.2 + 0.6 * column / columns) if is_there else "white"
                corner = (byte, field / layout.fields)
                axis.add_patch(
                    plt.Rectangle(corner, 1, 1 / layout.fields, facecolor=color, edgecolor="#888")
                )
                if is_there and bits > 1:
                    middle = (byte + 0.5, (field + 0.5) / layout.fields)
                    axis.text(*middle, str(column), ha="center", va="center", fontsize=7)
        axis.set_xlim(0, 64)
        axis.set_ylim(0, 1)
        axis.set_yticks([])
        axis.set_xticks(range(0, layout.stride + 1, 16))
        axis.set_ylabel(f"{bits} bit{'s' if bits > 1 else ''}", rotation=0, ha="right", va="center")
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    axes[0].set_title(
        f"A row of {columns} codes: bytes from left to right, the low bits of each at the bottom",
        fontsize=10,
    )
    axes[-1].set_xlabel("byte; numbers are columns, white is padding")
    figure.savefig(path, dpi=120)
    print(f"written: {path}")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graph", choices=sorted(SHAPES), default="arxiv")
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 2, 1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="draw the bounds here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--json", type=Path, help="write what was measured here")
    parser.add_argument("--layout", type=Path, help="draw packed rows here, and measure nothing")
    args = parser.parse_args()
    if args.layout is not None:
        return draw_layout(args.layout)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    graph = generate(args.graph)
    rows = measure(graph, args.features, args.bits, args.rounds)
    setting = {**environment(), "kernels": backend_info()["selected"]}
    title = f"Sums of {args.features} columns, {args.graph} shape, {args.threads} thread"
    print("\n".join(f"- {key}: {value}" for key, value in setting.items()))
    print(f"\n### {title}\n\n{table(rows, graph.num_edges)}")
    if args.markdown is not None:
        args.markdown.write_text(table(rows, graph.num_edges) + "\n")
    if args.json is not None:
        found = {"environment": setting, "title": title, "rows": [row._asdict() for row in rows]}
        args.json.write_text(json.dumps(found, indent=1))
    if args.out is not None:
        draw(args.out, rows, graph.num_edges, title)
    return None


if __name__ == "__main__":
    main()
