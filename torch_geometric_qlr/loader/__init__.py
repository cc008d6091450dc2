"""Packed features for loaders that sample: a store in memory or in a file, and what gathers."""

from torch_geometric_qlr.loader.gather import GatherFeatures
from torch_geometric_qlr.loader.processes import register as _register
from torch_geometric_qlr.loader.store import PackedFeatureStore

_register()

__all__ = ["GatherFeatures", "PackedFeatureStore"]
