"""What tests need that the extra ``test`` cannot bring, with the command that can."""

from __future__ import annotations

from typing import NoReturn

import pytest
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE

BUILD_TORCH_SPARSE = 'python -m pip install --no-build-isolation -e ".[sparse]"'

needs_torch_sparse = pytest.mark.skipif(
    not WITH_TORCH_SPARSE, reason=f"needs torch-sparse: {BUILD_TORCH_SPARSE}"
)

needs_sampler = pytest.mark.skipif(
    not (WITH_PYG_LIB or WITH_TORCH_SPARSE),
    reason=f"sampled neighbours need pyg-lib or torch-sparse: {BUILD_TORCH_SPARSE}",
)


def skip_for(name: str, error: ImportError) -> NoReturn:
    """Skips a test of something that PyG says it misses a package for."""
    remedy = BUILD_TORCH_SPARSE if "torch-sparse" in str(error) else "PyG's installation page"
    pytest.skip(f"{name} needs a package: {error}: {remedy}")
