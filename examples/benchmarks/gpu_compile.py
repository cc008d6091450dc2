"""Compiles the Triton kernels ahead of time, without a GPU, and counts what they are made of.

    python examples/benchmarks/gpu_compile.py --out compiled.json
    python examples/benchmarks/gpu_compile.py --quick
    python examples/benchmarks/gpu_compile.py --every-tile

For each kernel: registers, spills, shared memory, and the instructions of its main loop and of all
else, by the unit that they go to. Fails if a kernel does not compile, or if one of the main ones
spills registers into memory. ``--quick`` compiles these alone, ``--every-tile`` all that timing may
choose; without it, these are compiled for the main kernels only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from _gpu_code import Launch, compiled, inspect, recorded
from torch_geometric_qlr.ops import QParams, row_layout
from torch_geometric_qlr.ops.arguments import Arguments
from torch_geometric_qlr.ops.groups import Epilogue
from torch_geometric_qlr.ops.schemas import SIGNATURES
from torch_geometric_qlr.ops.triton import codes, floats, gather, linear
from torch_geometric_qlr.ops.triton.configurations import tiles
from torch_geometric_qlr.ops.triton.forms import Affine, Edges, Sums, Tile
from torch_geometric_qlr.ops.triton.launch import after_of, ending, out_of, rows_of
from torch_geometric_qlr.ops.triton.schedule import Bin

ARCHITECTURES = (80, 90)
#: Rows of a bin and of a matrix: enough of them that no row is shared without need.
_MANY = 1 << 17
_ROWS = 1 << 10
_NUMBER, _NUMBERS = torch.ones(()), torch.ones(16)


class Case(NamedTuple):
    """A kernel as it may be launched, and what is known of it beside its code."""

    name: str
    launch: Launch
    is_main: bool
    facts: dict[str, Any]


def _edges(mode: str) -> Edges:
    col = torch.zeros(16, dtype=torch.int32)
    weight: Tensor | None = None
    if mode in ("whole", "real", "heads"):
        weight = torch.zeros(16, dtype=torch.int8) if mode == "whole" else _NUMBERS
    return Edges(col, weight, None)


def gathers(
    sums: Sums, bits: int, cols: int, most: int, *, packed: bool, is_main: bool = False
) -> Iterator[Case]:
    """A sum or an extremum, with each of its tiles."""
    rows = rows_of(_ROWS, cols, bits)
    words = torch.zeros(16, dtype=torch.int32)
    one = gather.Gather(words, _edges(sums.mode), Affine(_NUMBERS, _NUMBERS), sums, rows)
    output = QParams(_NUMBER, _NUMBER, bits) if packed else None
    epilogue = None if sums.mode in ("max", "min") else Epilogue(bias=_NUMBERS, relu=True)
    if epilogue is not None and sums.mode == "whole":
        epilogue = epilogue._replace(row_scale=_NUMBERS)
    end = ending(_ROWS, cols, 0 if sums.by_source else -1, epilogue, output)
    out = out_of(torch.zeros(16, dtype=torch.uint8) if packed else _NUMBERS, output)
    part = Bin(*(words.new_empty(_MANY) for _ in range(3)), most)
    for number, tile in enumerate(tiles(sums, rows, most, _MANY)):
        with recorded() as launches:
            one.launch_as(tile, part, after_of(epilogue), out, end)
        name = f"{sums.mode}{', by source' if sums.by_source else ''}"
        facts = {
            "mode": name,
            "bits": bits,
            "cols": cols,
            "most": most,
            "packed": packed,
            "tile": tile._asdict(),
            "tile_number": number,
            "of_main": is_main,
            "row_bytes": rows.stride,
            "bytes_a_trip": _bytes_of_lane(tile),
        }
        label = f"{name}, INT{bits}, {cols} columns, up to {most} edges, tile {number}"
        yield Case(label, launches[0], is_main and number == 0, facts)


def _bytes_of_lane(tile: Tile) -> float:
    """What a lane reads of sources in one trip of the loop."""
    return tile.unroll * tile.rows * tile.groups * tile.words * 4 / (32 * tile.warps)


def _op(name: str, kernel: Any, label: str, *arguments: Any) -> Iterator[Case]:
    """The launches of an op that takes tensors of few rows as it takes those of many."""
    with recorded() as launches:
        kernel(Arguments.of(SIGNATURES[name], arguments, {}))
    yield Case(label, launches[-1], True, {"mode": name})


def others() -> Iterator[Case]:
    """Codes of values, and products."""
    for bits in (1, 2, 4, 8):
        x = torch.zeros(_ROWS, 128)
        given, rows = (x, _NUMBER, _NUMBER, bits), (x, _NUMBER, bits)
        yield from _op(
            "quantize_pack", codes.quantize_pack, f"quantize and pack, INT{bits}", *given
        )
        yield from _op(
            "quantize_rows", codes.quantize_rows, f"with ranges of rows, INT{bits}", *rows
        )
        packed = torch.zeros(_ROWS, row_layout(128, bits).stride, dtype=torch.uint8)
        yield from _op("unpack", codes.unpack, f"unpack, INT{bits}", packed, 128, bits)
    for bits, cols, outputs, out in (
        (2, 128, 128, 2),
        (4, 602, 128, 4),
        (8, 128, 128, 8),
        (1, 128, 40, 0),
    ):
        x = torch.zeros(_ROWS, row_layout(cols, bits).stride, dtype=torch.uint8)
        w = torch.zeros(outputs, row_layout(cols, 8).stride, dtype=torch.uint8)
        by_row = torch.ones(outputs, 1)
        call = (x, cols, bits, _NUMBER, _NUMBER, w, 8, by_row, by_row, torch.ones(outputs), True)
        label = f"product, {bits} by 8 bits, {cols} to {outputs} columns"
        output = (_NUMBER, _NUMBER, out) if out else ()
        yield from _op("packed_linear", linear.packed_linear, label, *call, *output)


def along_edges() -> Iterator[Case]:
    """Sums of floats, and long rows out of their pieces."""
    rowptr = torch.tensor([0, 3, 5000])
    col = torch.zeros(5000, dtype=torch.int32)
    with recorded() as launches:
        call = (rowptr, col, torch.zeros(16, 128), torch.ones(5000))
        floats.spmm(Arguments.of(SIGNATURES["spmm"], call, {}))
    yield Case("float sums, 128 columns", launches[0], True, {"mode": "spmm"})
    for bits in (2, 8):
        packed = torch.zeros(16, row_layout(128, bits).stride, dtype=torch.uint8)
        call = (rowptr, col, packed, 128, bits, _NUMBER, _NUMBER)
        after = {"bias": torch.ones(128), "relu": True, "out_bits": bits}
        after |= {"out_scale": _NUMBER, "out_zero_point": _NUMBER}
        with recorded() as launches:
            gather.packed_spmm(Arguments.of(SIGNATURES["packed_spmm"], call, after))
        yield Case(f"long rows, INT{bits}, 128 columns", launches[-1], True, {"mode": "merge"})


def cases(*, quick: bool, every_tile: bool) -> Iterator[Case]:
    """The main ones, and others."""
    for case in _all_cases(quick):
        first = case.facts.get("tile_number", 0) == 0
        if case.is_main or (not quick and (first or every_tile or case.facts.get("of_main"))):
            yield case


def _all_cases(quick: bool) -> Iterator[Case]:
    modes = ("count", "whole", "real")
    for mode in modes:
        for bits in (2, 4, 8):
            for most in (32, 512):
                yield from gathers(Sums(mode), bits, 128, most, packed=True, is_main=True)
    yield from others()
    yield from along_edges()
    if quick:
        return
    for mode in modes:
        for bits in (2, 4, 8):
            for cols in (64, 602):
                yield from gathers(Sums(mode), bits, cols, 512, packed=True)
        yield from gathers(Sums(mode), 1, 128, 512, packed=True)
        yield from gathers(Sums(mode), 2, 40, 2048, packed=False)
    for bits in (1, 2, 4, 8):
        yield from gathers(Sums("real", by_source=True), bits, 128, 128, packed=True)
        yield from gathers(Sums("heads", heads=8), bits, 64, 128, packed=False)
        yield from gathers(Sums("heads", True, 8, False), bits, 40, 128, packed=False)
        for mode in ("max", "min"):
            yield from gathers(Sums(mode), bits, 128, 128, packed=False)
        yield from gathers(Sums("max", by_source=True), bits, 40, 128, packed=False)


def _report(case: Case, arch: int) -> dict[str, Any]:
    found = inspect(compiled(case.launch, arch))
    found["loop"] = {unit: n for unit, n in found["loop"].items() if n}
    found["rest"] = {unit: n for unit, n in found["rest"].items() if n}
    return {"kernel": case.name, "is_main": case.is_main, "sm": arch, **case.facts, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the main kernels alone")
    parser.add_argument("--every-tile", action="store_true", help="all that may be chosen")
    parser.add_argument("--out", type=Path, help="a JSON file with all counts")
    parser.add_argument("--sm", type=int, nargs="*", default=ARCHITECTURES)
    args = parser.parse_args()
    records, wrong = [], []
    for arch in args.sm:
        for case in cases(quick=args.quick, every_tile=args.every_tile):
            try:
                record = _report(case, arch)
            except Exception as error:  # whatever the compiler raises: all others are tried as well
                wrong.append(f"sm_{arch}: {case.name}: {type(error).__name__}: {error}")
                print(wrong[-1], flush=True)
                continue
            records.append(record)
            spilled = record["spilled_bytes"]
            if spilled and case.is_main:
                wrong.append(f"sm_{arch}: {case.name}: spills {spilled} bytes")
            loop, rest = record["loop"].get("all", 0), record["rest"]["all"]
            line = f"{record['registers']:3} registers, {spilled} B spilled, {loop} + {rest}"
            print(f"sm_{arch} {line} instructions: {case.name}", flush=True)
    if args.out is not None:
        lines = ",\n".join(json.dumps(record) for record in records)
        versions = json.dumps({"triton": triton.__version__, "torch": torch.__version__})
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(f'{{"versions": {versions}, "kernels": [\n{lines}\n]}}\n')
    print(f"{len(records)} kernels compiled, {len(wrong)} problems")
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
