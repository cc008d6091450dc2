"""The zoo of convs and the forms of a graph are shared with the tests of other folders."""

import sys
from pathlib import Path

_TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(_TESTS / "nn"), str(_TESTS / "sparse")]
