"""Which tile is fastest on a GPU: timed where that is asked for, and kept in a file.

The first tile is a good one by counts of instructions and bytes, and is taken unless another has
been timed. All give the same bits, so a choice may change from one call to the next.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from torch_geometric_qlr._version import __version__
from torch_geometric_qlr.ops.triton.forms import Tile

__all__ = ["Choices", "chosen", "fastest"]

#: Set to 1, each new kind of launch is timed once.
_ASK = "QLR_TRITON_TUNE"
_MOST_CHOICES = 4096
_REPEATS = 5


class Choices:
    r"""The numbers of tiles that were chosen, by what for.

    Args:
        path (Path): The file that keeps them. A file that cannot be read or written is none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Choices(Path(folder) / "choices.json").keep("sums of 2 bits", 1)
        ...     Choices(Path(folder) / "choices.json").of("sums of 2 bits")
        1
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._known = self._read()

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(what): int(number) for what, number in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def of(self, what: str) -> int | None:
        """What was chosen, if anything was."""
        return self._known.get(what)

    def __len__(self) -> int:
        return len(self._known)

    def keep(self, what: str, number: int) -> None:
        """Adds a choice, beside those that other processes have made since."""
        with self._lock:
            known = {**self._read(), **self._known, what: number}
            self._known = dict(list(known.items())[-_MOST_CHOICES:])
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                # Whole or not at all: another process may be reading.
                with tempfile.NamedTemporaryFile(
                    "w", dir=self._path.parent, delete=False, encoding="utf-8"
                ) as file:
                    json.dump(self._known, file, indent=0)
                os.replace(file.name, self._path)
            except OSError:
                pass  # what is not kept is timed again


@functools.cache
def _choices_for(gpu: str) -> Choices:
    import triton

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    versions = f"{gpu} triton {triton.__version__} qlr {__version__}"
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in versions)
    return Choices(home / "torch_geometric_qlr" / f"{name}.json")


def fastest(tiles: Sequence[Tile], seconds: Callable[[Tile], float]) -> int:
    r"""The number of the tile that takes the least time.

    Args:
        tiles (list): The tiles.
        seconds (callable): Times one.
    """
    times = [seconds(tile) for tile in tiles]
    return times.index(min(times))


def _timed(run: Callable[[Tile], None], tile: Tile) -> float:
    """The least time of several runs, after one that compiles."""
    run(tile)
    times = []
    for _ in range(_REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(tile)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return min(times)


def chosen(
    what: tuple[Any, ...], tiles: Sequence[Tile], run: Callable[[Tile], None], device: torch.device
) -> Tile:
    r"""The tile for a launch.

    Args:
        what (tuple): All that its time depends on.
        tiles (list): Those to choose from.
        run (callable): Launches with one of them; it may be called several times.
        device (torch.device): Where.
    """
    if device.type != "cuda" or len(tiles) == 1:
        return tiles[0]
    choices = _choices_for(torch.cuda.get_device_name(device))
    asked = os.environ.get(_ASK) == "1"
    if not asked and not choices:
        return tiles[0]
    number = choices.of(str(what))
    if number is None and asked and not torch.cuda.is_current_stream_capturing():
        number = fastest(tiles, lambda tile: _timed(run, tile))
        choices.keep(str(what), number)
    return tiles[number] if number is not None and 0 <= number < len(tiles) else tiles[0]
