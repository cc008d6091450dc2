"""Whole models."""

from __future__ import annotations

from torch_geometric_qlr.nn.models.smp_gnn import SMPGNN

__all__ = ["SMPGNN"]
