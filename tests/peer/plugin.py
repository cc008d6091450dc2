"""PyG's own tests, run on quantized and converted layers: a plugin of pytest.

    python -m pytest -p tests.peer.plugin -c /dev/null --rootdir FOLDER FOLDER/test/nn/conv ...

Each test runs once for every variant. What no other arithmetic can pass is an expected failure; a
table at the end says what failed, by kind.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest import outcomes

from tests.peer.treatment import VARIANTS, Variant, Watch, watching
from tests.peer.verdict import Verdict, verdict

_SEED = 12345
_WATCH = pytest.StashKey[Watch]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--peer-report", type=Path, help="write what failed to this file, as JSON")
    parser.addoption("--peer-variants", default="", help="run variants whose name has this in it")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Report(config), "peer-report")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = metafunc.config.getoption("--peer-variants")
    chosen = [v for v in VARIANTS if v.bits is None or wanted in v.name]
    metafunc.parametrize("_variant", chosen, ids=[v.name for v in chosen], indirect=True)


@pytest.fixture(autouse=True)
def _variant(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.manual_seed(_SEED)
    with watching(request.param) as watch:
        request.node.stash[_WATCH] = watch
        yield


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Every test that quantizes runs twice: the first time, its layers learn their ranges."""
    names = pyfuncitem._fixtureinfo.argnames
    given = {name: pyfuncitem.funcargs[name] for name in names}
    watch = pyfuncitem.stash[_WATCH]
    # A layer that is a parameter of several tests must not be quantized for all of them.
    pyfuncitem.funcargs.update(_copied(given))
    if watch.variant.bits is not None:
        with watch.rehearsal(), contextlib.suppress(Exception, outcomes.OutcomeException):
            pyfuncitem.obj(**_copied(given))
        torch.manual_seed(_SEED)
    return (yield)


def _copied(arguments: dict[str, Any]) -> dict[str, Any]:
    layers = (torch.nn.Module, list, tuple, dict)
    return {k: copy.deepcopy(v) if isinstance(v, layers) else v for k, v in arguments.items()}


class _Report:
    """Turns failures into expected ones where they are, and counts."""

    def __init__(self, config: pytest.Config) -> None:
        self.root = config.rootpath
        self.path: Path | None = config.getoption("--peer-report")
        self.float_failures: set[str] = set()
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.kinds: dict[Verdict, list[str]] = defaultdict(list)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        watch = item.stash.get(_WATCH, None)
        if report.when != "call" or watch is None:
            return report
        test, variant = item.nodeid.replace(watch.variant.name, ""), watch.variant
        if report.failed and call.excinfo is not None:
            found = self._verdict(test, call.excinfo, watch)
            self.kinds[found].append(item.nodeid)
            self.counts[variant.name]["expected" if found.expected else "failed"] += 1
            if found.expected:
                report.outcome, report.wasxfail = "skipped", found.kind
        else:
            self.counts[variant.name][self._passed(report, variant, watch)] += 1
        return report

    def _verdict(
        self, test: str, excinfo: pytest.ExceptionInfo[BaseException], watch: Watch
    ) -> Verdict:
        if watch.variant.bits is None:
            self.float_failures.add(test)
        if test in self.float_failures:
            return Verdict("fails in floating point as well", True)
        return verdict(test, excinfo, self.root, watch)

    @staticmethod
    def _passed(report: pytest.TestReport, variant: Variant, watch: Watch) -> str:
        if report.skipped:
            return "skipped"
        return "passed" if watch.treated or variant.bits is None else "nothing to quantize"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("PyG's own tests, by variant")
        columns = ("passed", "nothing to quantize", "skipped", "expected", "failed")
        terminalreporter.write_line(f"{'':<20}" + "".join(f"{name:>21}" for name in columns))
        for name, counts in self.counts.items():
            cells = "".join(f"{counts[column]:>21}" for column in columns)
            terminalreporter.write_line(f"{name:<20}{cells}")
        for expected, title in ((True, "expected failures"), (False, "failures")):
            terminalreporter.section(f"{title}, by kind")
            chosen = [(k, v) for k, v in self.kinds.items() if k.expected is expected]
            for found, nodes in sorted(chosen, key=lambda pair: -len(pair[1])):
                terminalreporter.write_line(f"{len(nodes):>6} x {found.kind}  ({nodes[0]})")
        if self.path is not None:
            rows = [
                {"kind": found.kind, "expected": found.expected, "tests": nodes}
                for found, nodes in self.kinds.items()
            ]
            self.path.write_text(json.dumps({"counts": self.counts, "kinds": rows}, indent=1))
