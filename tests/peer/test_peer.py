"""Runs PyG's own tests of its layers with each layer quantized or converted. Takes many minutes.

    git clone --branch release/2.8 URL-OF-PYG FOLDER
    python -m pytest -m heavy tests/peer --peer-root FOLDER

The sources must be those of the installed version; they are not part of this repository.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch_geometric

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("conv", "aggr", "models")
pytestmark = pytest.mark.heavy


@pytest.fixture
def peer_root(request: pytest.FixtureRequest) -> Path:
    """The sources of PyG, from ``--peer-root`` or QLR_PEER_TESTS; skips where there are none."""
    name = request.config.getoption("--peer-root") or os.environ.get("QLR_PEER_TESTS")
    if not name:
        pytest.skip("needs PyG's sources: pass --peer-root FOLDER or set QLR_PEER_TESTS")
    if not (Path(name) / "test" / "nn").is_dir():
        pytest.fail(f"{name} has no test/nn: it is no checkout of PyG")
    return Path(name).resolve()


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("folder", FOLDERS)
def test_layers_of_pyg_pass_their_own_tests(folder: str, peer_root: Path, tmp_path: Path) -> None:
    tests = peer_root / "test" / "nn" / folder
    options = ["-p", "tests.peer.plugin", "-c", os.devnull, "--rootdir", str(peer_root)]
    quiet = ["-q", "-W", "ignore", "--tb", "no", "-p", "no:cacheprovider", "--timeout", "600"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *quiet, str(tests)],
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    table = done.stdout[done.stdout.find("= PyG's own tests") :]
    print(table)
    assert done.returncode == 0, f"PyG {torch_geometric.__version__}\n{table}{done.stderr[-2000:]}"
    assert re.search(r"^converted-8-node +[1-9]\d* ", table, flags=re.MULTILINE), table
