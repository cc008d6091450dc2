"""What the docstring examples may use without importing it, what is not collected, what fails.

Brevitas and PyG are imported first, for what they say then is listed at the end of the run; the
package imports them quietly.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import brevitas  # noqa: F401
import pytest
import torch
import torch_geometric  # noqa: F401

from tests.helpers.devices import make_default

pytest_plugins = ("tests.helpers.warning_policy",)

# These are run by Sphinx, which the tests do not need.
collect_ignore_glob = ["docs/conf.py", "docs/_ext/*", "docs/_build/*", "docs/generated/*"]
if importlib.util.find_spec("triton") is None:  # what imports it has no examples
    _files = ("codes", "fake_quantize", "floats", "gather", "linear", "rows")
    _kernels = ("kernels/*", *(f"{name}.py" for name in _files))
    collect_ignore_glob += [f"torch_geometric_qlr/ops/triton/{name}" for name in _kernels]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--peer-root", help="a checkout of PyG, whose tests tests/peer runs")
    parser.addoption(
        "--device",
        default="cpu",
        help="where tests make their tensors, such as cuda; those marked cpu are skipped then",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Before any module of tests is imported: tensors in them lie on the device as well."""
    device = config.getoption("--device")
    if device != "cpu":
        make_default(device)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace["torch"] = torch
    torch.manual_seed(0)  # the same values whichever tests ran before
