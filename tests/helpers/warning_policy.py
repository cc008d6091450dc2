"""Which warnings are errors here: those of this package and its tests. The others are counted.

A dependency may deprecate something at any time, and nobody can release a fix of ours for it; so
its warnings fail nothing, and none is hidden: the end of the run lists them.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from warnings import WarningMessage

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Said by compiled code, which names the line of Python that called it as the place: ours, though
# the layout comes from users or PyG, or the feature was asked for by a dependency.
TOLERATED = (
    "Sparse CSR tensor support is in beta state",
    "Sparse invariant checks are implicitly disabled",
)


class Source(NamedTuple):
    """Warnings that are one line of the summary."""

    package: str
    category: str
    message: str


def own_modules() -> str:
    """A regular expression of the modules whose warnings are errors.

    A module of the examples goes by its bare name, a page or script by ``__main__``.
    """
    names = sorted({path.stem for path in (ROOT / "examples").rglob("*.py")})
    bare = "|".join([*names, "conftest", "__main__", "<string>"])
    return rf"((torch_geometric_qlr|tests)(\.|$)|({bare})$)"


def filters() -> list[str]:
    """The lines of ``filterwarnings``; a later one goes before an earlier one."""
    return [
        "default",
        f"error:::{own_modules()}",
        # Wherever they are attributed: our own, and what pytest found in threads and destructors.
        "error::torch_geometric_qlr.errors.QLRWarning",
        "error::pytest.PytestWarning",
        *(f"default:{message}:UserWarning" for message in TOLERATED),
    ]


def pytest_configure(config: pytest.Config) -> None:
    for line in filters():
        config.addinivalue_line("filterwarnings", line)
    config.pluginmanager.register(_Summary(), "warnings-of-dependencies")


class _Summary:
    """Counts what was recorded, and says so in a few lines."""

    def __init__(self) -> None:
        self.seen: Counter[Source] = Counter()

    def pytest_warning_recorded(self, warning_message: WarningMessage) -> None:
        self.seen[source_of(warning_message)] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.seen:
            terminalreporter.section("warnings of dependencies (no errors)")
            terminalreporter.write_line("\n".join(lines(self.seen)))


def source_of(warning: WarningMessage) -> Source:
    """Where a warning comes from: the installed package, or the path."""
    parts = Path(warning.filename).parts
    installed = [i for i, part in enumerate(parts) if part in ("site-packages", "dist-packages")]
    package = parts[installed[-1] + 1] if installed else warning.filename
    message = re.sub(r"\s+", " ", str(warning.message)).strip()
    return Source(package, warning.category.__name__, message)


def lines(seen: Counter[Source], width: int = 160) -> list[str]:
    """One line for each message, the most frequent first."""
    rows = [
        f"{count:>6} x {source.package}: {source.category}: {source.message}"
        for source, count in seen.most_common()
    ]
    return [row if len(row) <= width else row[: width - 3] + "..." for row in rows]
