"""Shared by all tests: one thread and no deadlines, for the same results on a shared machine."""

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")
