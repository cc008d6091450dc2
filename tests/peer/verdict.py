"""Why a test of PyG may fail with other arithmetic, told from what a failure shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.peer.treatment import Watch


class Verdict(NamedTuple):
    """The kind of a failure, and whether it was to be expected."""

    kind: str
    expected: bool


class Pattern(NamedTuple):
    """Failures of one kind: what is given is found in the line, the error, the test's name."""

    kind: str
    line: str = ""
    error: str = ""
    test: str = ""
    converted: bool = False


# Each is a property of the float layer that no other arithmetic can have.
EXPECTED = (
    Pattern(
        "no data, so no range to convert with",
        error="has no range yet|has never seen data",
        converted=True,
    ),
    Pattern("converted models are for inference", error="is for inference", converted=True),
    Pattern("converted models are for inference", "allclose", test="dropout", converted=True),
    # One of them rounds sources, the other messages.
    Pattern("two classes round in two places", "allclose", test="rgcn_conv_equality"),
    Pattern("takes what PyG refuses", error="DID NOT RAISE", converted=True),
    Pattern("packed weights are not reset", error="Reset the float model", converted=True),
    Pattern("TorchScript", line=r"\bjit\b|is_full_test"),
    Pattern("TorchScript", error=r"torch\.jit|TorchScript|[Ss]cript(ed|ing)"),
    Pattern("text of a layer", line=r"\bstr\(|\brepr\(|__repr__|summary"),
    Pattern("names in a state_dict", line=r"state_dict|named_parameters"),
    Pattern("its own class", line=r"__class__|__module__|\btype\(|isinstance"),
    Pattern("number of parameters", line=r"\.parameters\(\)|num_params"),
    Pattern(
        "no gradients of packed codes",
        line=r"\.backward\(|\.grad\b|gradcheck",
        converted=True,
    ),
    Pattern(
        "no gradients of packed codes",
        error="does not require grad|codes have no gradient",
        converted=True,
    ),
    Pattern(
        "float weights are packed", error=r"has no attribute '(weight|bias|lin\w*)'", converted=True
    ),
)
VALUES = re.compile(r"allclose|assert_close|torch\.equal|tolist\(|approx\(|assertEqual|==|<=?|>=?")
FORM = re.compile(r"\.size\(|\.shape|len\(|is not|\bin\b|\.dtype|\.device")
#: Two codes of a result, where a sum in another order falls on the other side of a tie.
TIE = 2.0


def verdict(
    test: str, excinfo: pytest.ExceptionInfo[BaseException], root: Path, watch: Watch
) -> Verdict:
    """What a failure in a test below ``root`` means."""
    line, error = statement(excinfo, root), f"{excinfo.typename}: {excinfo.value}"
    for pattern in EXPECTED:
        if _fits(pattern, test, line, error, watch.variant.converted):
            return Verdict(pattern.kind, True)
    if excinfo.errisinstance(AssertionError) and VALUES.search(line) and not FORM.search(line):
        return _of_values(watch)
    return Verdict(_shortened(error, line), False)


def _fits(pattern: Pattern, test: str, line: str, error: str, converted: bool) -> bool:
    if pattern.converted and not converted:
        return False
    looks = ((pattern.line, line), (pattern.error, error), (pattern.test, test))
    return all(not wanted or re.search(wanted, found) for wanted, found in looks)


def _of_values(watch: Watch) -> Verdict:
    """Values may differ from floats by rounding; two forms of one input by a tie alone."""
    seen, bits = watch.comparison, watch.variant.bits
    if seen is None or bits is None:
        return Verdict("value of the float layer", True)
    step = 1.0 / (2**bits - 1)
    if seen.both_outputs:
        tie = seen.distance <= TIE * step
        return Verdict("two calls, beside a tie" if tie else "two calls disagree", tie)
    # What many roundings may add up to; at two bits nothing can be told.
    far = bits == 8 and not seen.distance <= 0.25
    return Verdict("value is far off" if far else "value of the float layer", not far)


def statement(excinfo: pytest.ExceptionInfo[BaseException], root: Path) -> str:
    """The statement of PyG's test (or of its helpers for tests) that failed."""
    for entry in reversed(excinfo.traceback):
        path = str(entry.path)
        if path.startswith(str(root)) or "torch_geometric/testing" in path:
            return " ".join(str(entry.statement).split())
    return ""


def _shortened(error: str, line: str) -> str:
    first = error.splitlines()[0] if error.strip() else error
    first = re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "N", first)
    return first[:120] if not first.startswith("AssertionError") else f"assert: {line[:100]}"
