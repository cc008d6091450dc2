"""What several tests share: layers, models, graphs, arguments of kernels, and what is skipped."""
