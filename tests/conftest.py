"""Shared by all tests: one thread, so that a shared machine gives the same sums every time."""

import torch

torch.set_num_threads(1)
