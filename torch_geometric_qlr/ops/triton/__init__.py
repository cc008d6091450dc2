"""Kernels in Triton for GPUs; on a CPU they run in Triton's interpreter, for tests."""
