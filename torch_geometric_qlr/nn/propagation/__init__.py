"""Propagation layers without weights, in the manner of :class:`torch_geometric.nn.APPNP`."""

from __future__ import annotations

from torch_geometric_qlr.nn.propagation.emp import EMP
from torch_geometric_qlr.nn.propagation.smp import SMP, SMPHistory

__all__ = ["EMP", "SMP", "SMPHistory"]
