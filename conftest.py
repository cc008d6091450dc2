"""What the docstring examples may use without importing it, and what is not collected."""

from __future__ import annotations

from typing import Any

import pytest
import torch

# These are run by Sphinx, which the tests do not need.
collect_ignore_glob = ["docs/conf.py", "docs/_ext/*", "docs/_build/*", "docs/generated/*"]


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace["torch"] = torch
    torch.manual_seed(0)  # the same values whichever tests ran before
