"""Bits under a budget: what each width of each place costs, and the best choice."""

from torch_geometric_qlr.search.choice import BitChoice, BitRow
from torch_geometric_qlr.search.search_bits import search_bits

__all__ = ["BitChoice", "BitRow", "search_bits"]
