"""What benchmarks on a GPU share: time by its own clock, memory that its cache does not hold.

Without one they run on a CPU as they are, as small as they get (``--device cpu --tiny``): what they
print then is no measurement, but shows that they work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _graphs import CSR, generate
from _timing import Times, environment, interleave
from torch_geometric_qlr.ops import available_on

__all__ = [
    "Candidates",
    "Rotated",
    "add_arguments",
    "copy_bandwidth",
    "finish",
    "fitting",
    "graph_on",
    "in_turn",
    "name_of_backend",
    "setting",
]

Candidates = dict[str, Callable[[], Any]]

#: Seconds that a candidate takes in its turn, at least.
_TURN = 2e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of every script."""
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a graph of a few nodes: a dry run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write what was measured here")


def name_of_backend(device: str) -> str:
    """Who computes: by name, so that nothing falls back to the CPU's kernels or the reference."""
    return next((name for name in available_on(device) if name == "triton"), "auto")


def setting(device: str) -> dict[str, Any]:
    """What decides a timing besides the code."""
    found = environment() | {"device": device, "backend": name_of_backend(device)}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "cuda": torch.version.cuda,
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "l2": properties.L2_cache_size,
        }
    return found


def graph_on(device: str, name: str, tiny: bool) -> CSR:
    """A graph of a shape, or one of a few nodes with a hub."""
    if tiny:
        rng = torch.Generator().manual_seed(0)
        degree = torch.randint(6, (40,), generator=rng)
        degree[0] = 50
        rowptr = torch.cat([torch.zeros(1, dtype=torch.long), degree.cumsum(0)])
        col = torch.randint(40, (int(rowptr[-1]),), generator=rng, dtype=torch.int32)
        return CSR(rowptr.to(device), col.to(device))
    return CSR(*(part.to(device) for part in generate(name)))


class Rotated:
    """Copies of a tensor that take turns, so many that none is in the cache when its turn comes.

    Args:
        tensor (torch.Tensor): The first of them.
    """

    def __init__(self, tensor: Tensor) -> None:
        count = 1
        if tensor.is_cuda:
            cache = torch.cuda.get_device_properties(tensor.device).L2_cache_size
            count = min(16, max(2, -(-3 * cache // max(1, tensor.nbytes))))
        self.copies = [tensor, *(tensor.clone() for _ in range(count - 1))]
        self._turns = itertools.cycle(self.copies)

    def next(self) -> Tensor:
        """The one whose turn it is."""
        return next(self._turns)


def in_turn(candidates: Candidates, rounds: int, device: str) -> Times:
    """Seconds per call of every candidate in every round, each round in a new random order."""
    if device != "cuda":
        return interleave(candidates, rounds, min_seconds=0.0)
    repeats = {name: _repeats(run) for name, run in candidates.items()}
    times: Times = {name: [] for name in candidates}
    for _ in range(rounds):
        for name in random.sample(list(candidates), len(candidates)):
            times[name].append(_seconds(candidates[name], repeats[name]))
    return times


def _repeats(run: Callable[[], Any]) -> int:
    for _ in range(3):  # compiles, and remembers what is remembered of a graph
        run()
    return max(1, int(_TURN / max(_seconds(run, 1), 1e-7)))


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    """Of one call, by events of the GPU, with nothing before it in the queue."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def copy_bandwidth(device: str, nbytes: int, rounds: int) -> float:
    """Bytes per second of a copy, read and written bytes both counted."""
    source = Rotated(torch.ones(max(1, nbytes // 4), device=device))
    target = torch.empty_like(source.copies[0])
    times = in_turn({"copy": lambda: target.copy_(source.next())}, rounds, device)
    return 2 * target.nbytes / statistics.median(times["copy"])


def finish(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Writes what was found, whole or not at all."""
    if args.json is None:
        return
    args.json.parent.mkdir(parents=True, exist_ok=True)
    part = args.json.with_suffix(".part")
    part.write_text(json.dumps({"setting": setting(args.device), **found}, indent=1))
    part.replace(args.json)


def fitting(candidates: Iterable[tuple[str, Callable[[], Any]]]) -> Candidates:
    """Those that this build of torch and this device have, each tried once."""
    found: Candidates = {}
    for name, run in candidates:
        try:
            run()
        except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
            print(f"left out: {name}: {str(error).splitlines()[0][:100]}", flush=True)
        else:
            found[name] = run
    return found
