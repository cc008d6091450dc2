"""Runs of a benchmark: in processes of their own, written down as JSON lines, never made twice."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

__all__ = [
    "Job",
    "Record",
    "add_run_options",
    "mean_std",
    "pyplot",
    "recorded",
    "run_all",
    "run_asked",
    "show",
    "write_rows",
]

#: What tells one run from another, as plain values; and the same with what came out.
Job = Mapping[str, Any]
Record = Mapping[str, Any]


def run_all(
    jobs: Sequence[Job], work: Callable[[Job], Record], out: Path | None, workers: int = 1
) -> list[Record]:
    """What `work` returns for every job, in order; jobs that `out` holds are not run again.

    A line is written as soon as its run is done, so that an interrupted benchmark goes on where it
    stopped. Each process computes with one thread.
    """
    done = {_key(line["job"]): line["result"] for line in _lines(out)}
    todo = [job for job in jobs if _key(job) not in done]
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc="runs", disable=None) as bar:
        for job, result in _results(todo, work, workers):
            done[_key(job)] = result
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps({"job": job, "result": result}) + "\n")
            bar.update()
    return [{**job, **done[_key(job)]} for job in jobs]


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of :func:`run_asked` and :func:`write_rows`."""
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON lines of the runs")
    parser.add_argument("--recorded", action="store_true", help="only what --out holds")
    parser.add_argument("--json", type=Path, help="what is printed, as plain values")
    parser.add_argument("--markdown", type=Path, help="the table, as a file")


def run_asked(
    args: argparse.Namespace, jobs: Sequence[Job], work: Callable[[Job], Record]
) -> list[Record]:
    """:func:`run_all` as the options say."""
    todo = recorded(jobs, args.out) if args.recorded else jobs
    return run_all(todo, work, args.out, args.workers)


def write_rows(args: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    """What a table was made of, if it was asked for."""
    if args.json is not None:
        args.json.write_text(json.dumps({"epochs": args.epochs, "rows": rows}, indent=1) + "\n")


def recorded(jobs: Sequence[Job], out: Path) -> list[Job]:
    """Those of the jobs that the file holds."""
    done = {_key(line["job"]) for line in _lines(out)}
    return [job for job in jobs if _key(job) in done]


def _key(job: Job) -> str:
    return json.dumps(job, sort_keys=True)


def _lines(out: Path | None) -> Iterable[dict[str, Any]]:
    if out is None or not out.exists():
        return []
    return [json.loads(line) for line in out.read_text().splitlines() if line.strip()]


def _results(
    jobs: Sequence[Job], work: Callable[[Job], Record], workers: int
) -> Iterable[tuple[Job, Record]]:
    if workers == 1:
        yield from ((job, work(job)) for job in jobs)
        return
    # Forked children would inherit the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def mean_std(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation; the latter is 0 for one value."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def show(head: Sequence[str], rows: Iterable[Sequence[str]], markdown: Path | None = None) -> None:
    """Prints a Markdown table, and writes it to a file if there is one."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    text = "\n".join(lines)
    print(text)
    if markdown is not None:
        markdown.write_text(text + "\n")


def pyplot() -> Any:
    """matplotlib, on a canvas without a display; only what draws needs it."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(
            'The picture is drawn with matplotlib: python -m pip install -e ".[examples]"'
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
