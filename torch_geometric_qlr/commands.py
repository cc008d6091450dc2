"""What can be done from a shell: pack features into a file, and look into one."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from torch_geometric_qlr.errors import QLRError
from torch_geometric_qlr.files.tensor_file import format_of
from torch_geometric_qlr.io.reading import read_file
from torch_geometric_qlr.loader import PackedFeatureStore
from torch_geometric_qlr.loader.file_format import FORMAT as FEATURES
from torch_geometric_qlr.loader.mapped import MappedFile
from torch_geometric_qlr.nn.recipe import Point, PointRecipe, Recipe, shown_point
from torch_geometric_qlr.text import aligned

__all__ = ["run_command"]


def run_command(argv: Sequence[str]) -> None:
    r"""Runs ``python -m torch_geometric_qlr`` with arguments.

    Args:
        argv (list): The arguments: a command, and its own.

    Raises:
        SystemExit: If they cannot be, or the command fails: with what is wrong.
    """
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (QLRError, OSError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torch_geometric_qlr",
        description="Without a command: versions, back ends and kernels.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    pack = commands.add_parser("pack", help="pack features into a file")
    pack.add_argument("features", help="a .npy file with a matrix of floats, a row per node")
    pack.add_argument("out", help="the file to write, a .safetensors")
    pack.add_argument("--bits", type=int, default=8, help="width of a code, 1 to 8 (default: 8)")
    pack.add_argument(
        "--granularity",
        default="node",
        choices=("node", "feature", "tensor"),
        help="what shares a range (default: node)",
    )
    pack.add_argument("--attr", default="x", help="the attribute of the nodes (default: x)")
    pack.add_argument("--quiet", action="store_true", help="no progress bar")
    pack.set_defaults(run=_pack)
    inspect = commands.add_parser(
        "inspect", help="what a file of packed features, or of qlr.save, holds"
    )
    inspect.add_argument("file")
    inspect.add_argument(
        "--verify", action="store_true", help="read all features and compare their checksums"
    )
    inspect.set_defaults(run=_inspect)
    return parser


def _pack(args: argparse.Namespace) -> None:
    PackedFeatureStore.write(
        args.out,
        args.features,
        bits=args.bits,
        granularity=args.granularity,
        attr=args.attr,
        progress=not args.quiet,
    )
    before, after = os.path.getsize(args.features), os.path.getsize(args.out)
    print(f"{args.out}: {after:,} bytes, of {before:,}")


def _inspect(args: argparse.Namespace) -> None:
    lines = _features(args) if format_of(args.file) == FEATURES else _model(args.file)
    print("\n".join(lines))


def _features(args: argparse.Namespace) -> list[str]:
    file = MappedFile(args.file)
    if args.verify:
        file.verify(progress=True)
    rows = [
        (e.name, f"{e.num_rows:,}", f"{e.num_cols:,}", str(e.bits), e.granularity, str(e.stride))
        for e in file.entries
    ]
    head = ("features", "rows", "columns", "bits", "range per", "bytes per row")
    checked = "verified" if args.verify else "not verified: --verify reads all of it"
    return [
        f"packed features, {_size(args.file)}, written by release {file.release}, {checked}",
        *aligned([head, *rows]),
    ]


def _model(path: str) -> list[str]:
    version, header, state = read_file(path)
    recipe = Recipe.from_dict(header)
    kind = "converted" if recipe.converted else "quantized"
    rows = [
        (layer.path or "(model)", layer.layer, ", ".join(map(_point, *zip(*found, strict=True))))
        for layer in recipe.layers
        if (found := list(layer.quantizers.items()))
    ]
    return [
        f"{kind} {header['model']}, {_size(path)}, format version {version}, {len(state)} tensors",
        *aligned([("module", "layer", "bits at"), *rows]),
    ]


def _point(point: Point, found: PointRecipe) -> str:
    one = found[0] if isinstance(found, tuple) else found
    return f"{shown_point(str(point))} {one.bits}"


def _size(path: str) -> str:
    return f"{os.path.getsize(path):,} bytes"
