"""Shared by all tests: one thread and no deadlines, for the same results on a shared machine."""

import os

import hypothesis
import torch

torch.set_num_threads(1)
# New examples are for those who develop; an automatic run gives the same answer every time.
hypothesis.settings.register_profile("shared", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("shared")
