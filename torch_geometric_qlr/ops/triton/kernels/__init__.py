"""What runs on the device. Triton compiles these files, nothing else here imports it.

Constants come in the groups of :mod:`~torch_geometric_qlr.ops.triton.forms`, tensors likewise; one
that is absent is :obj:`None`, for which no code is made.
"""
