"""Writers that are killed in the middle of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_alone(script: str, *args: str) -> None:
    """Runs a script in a process of its own, from the top of the repository."""
    command = [sys.executable, "-W", "ignore", "-c", script, *args]
    subprocess.run(command, check=True, cwd=ROOT)


def kill_writers(
    folder: str,
    name: str,
    times: int,
    write: Callable[[str], None],
    read: Callable[[str], object],
) -> None:
    """Whenever a process that writes is killed, the old file or the new one is there, whole."""
    random.seed(times)
    path, took = os.path.join(folder, name), 0.0
    for _ in range(3):
        began = time.perf_counter()
        write(path)
        took = max(took, time.perf_counter() - began)
    good = Path(path).read_bytes()
    for i in range(times):
        if i % 3 == 2 and os.path.exists(path):
            os.unlink(path)
        existed = os.path.exists(path)
        child = os.fork()
        if child == 0:
            while True:
                write(path)
        time.sleep(random.random() * (0.05 + 3 * took))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if not existed and not os.path.exists(path):
            continue
        assert Path(path).read_bytes() == good, i
        read(path)
        assert len(os.listdir(folder)) <= 2, os.listdir(folder)  # at most what the last one left
    write(path)
    assert os.listdir(folder) == [name], os.listdir(folder)
