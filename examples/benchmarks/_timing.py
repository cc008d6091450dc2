"""Interleaved timing: every candidate in every round, in a new random order."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment", "interleave", "markdown", "paired_ratio"]

Times = dict[str, list[float]]


def interleave(
    candidates: dict[str, Callable[[], Any]],
    rounds: int,
    *,
    min_seconds: float = 5e-3,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Seconds per call of every candidate in every round, by that clock.

    Whatever disturbs the machine for a while then disturbs all of them, and a ratio taken within a
    round is free of it. A candidate faster than `min_seconds` is repeated within its turn.
    `clock` is the time that passes, or that of the processor.
    """
    times: Times = {name: [] for name in candidates}
    repeats = {}
    for name, run in candidates.items():
        run()
        start = clock()
        run()
        repeats[name] = max(1, int(min_seconds / max(clock() - start, 1e-7)))
    for _ in range(rounds):
        for name in random.sample(list(candidates), len(candidates)):
            start = clock()
            for _ in range(repeats[name]):
                candidates[name]()
            times[name].append((clock() - start) / repeats[name])
    return times


def paired_ratio(times: Times, peer: str, ours: str) -> float:
    """The median over rounds of peer time over our time: above 1, we are faster."""
    pairs = zip(times[peer], times[ours], strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


def markdown(times: Times, peers: list[str]) -> str:
    """A table of medians, and of paired ratios over each peer."""
    header = ["candidate", "median ms", *[f"x {peer}" for peer in peers]]
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    for name, values in times.items():
        cells = [name, f"{statistics.median(values) * 1e3:.2f}"]
        cells += [f"{paired_ratio(times, peer, name):.2f}" for peer in peers]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def environment() -> dict[str, Any]:
    """What decides a timing besides the code."""
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    cpuinfo = Path("/proc/cpuinfo")
    model = "unknown"
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "cpu": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transparent_huge_pages": huge.read_text().strip() if huge.exists() else "unknown",
    }
