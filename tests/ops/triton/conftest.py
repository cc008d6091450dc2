"""Collects what is here only where kernels run in Triton's interpreter, which a process decides
before it imports Triton: see tests/ops/test_triton.py, which starts such processes."""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
