"""Runs functions in several processes that train together."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

__all__ = ["Scenario", "run_together"]

#: Is given the rank and the number of processes.
Scenario = Callable[[int, int], Any]

_PATIENCE = datetime.timedelta(seconds=60)


def run_together(scenarios: list[Scenario], world: int, folder: Path) -> dict[str, list[Any]]:
    r"""What each scenario has returned in each process, by its name; an exception as its text. All
    run one after the other in the same processes, for to start these takes longest.

    Args:
        scenarios (list): Functions of a module.
        world (int): How many processes.
        folder (Path): An empty one, for what they exchange.
    """
    # Imported once, in a process without threads, of which the others are forked.
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        [__name__, *_modules(scenarios)]
    )
    args = (world, str(folder), scenarios)
    mp.start_processes(_work, args=args, nprocs=world, start_method="forkserver")
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
    return {name: [rank.get(name, "did not run") for rank in ranks] for name in ranks[0]}


def _modules(scenarios: list[Scenario]) -> set[str]:
    return {scenario.__module__ for scenario in scenarios}


def _work(rank: int, world: int, folder: str, scenarios: list[Scenario]) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", meet, timeout=_PATIENCE, rank=rank, world_size=world)
    results: dict[str, Any] = {}
    for scenario in scenarios:
        try:
            torch.manual_seed(0)
            results[scenario.__name__] = scenario(rank, world)
        except Exception:
            results[scenario.__name__] = traceback.format_exc()
            break  # the others may be anywhere by now
    torch.save(results, f"{folder}/{rank}.pt")
    # Without the destructor of the group: it holds the interpreter while it waits for a thread of
    # gloo's, and that thread may be waiting for the interpreter.
    os._exit(0)
