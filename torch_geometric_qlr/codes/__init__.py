"""Arithmetic on packed codes: what a converted layer computes with, and a quantized one in eval."""
