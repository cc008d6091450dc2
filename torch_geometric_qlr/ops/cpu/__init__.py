"""The C++ kernels, which torch's dispatcher calls directly, and what they leave to Python."""
