"""Granularities and statistics, with the number of ranges that a matrix of 8 x 6 has."""

from __future__ import annotations

PLACES: list[tuple[str, str, int]] = [
    ("tensor", "running", 1),
    ("tensor", "current", 1),
    ("feature", "running", 6),
    ("channel", "current", 8),
    ("node", "current", 1),
]
