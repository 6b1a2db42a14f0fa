"""Kernels in Triton, one in CUDA C++: one family a file, each beside the plain PyTorch that says what it computes.

Kernels write into buffers that they are given. Whatever changes with the sparsity is a run-time argument, so that no
sparsity needs a compilation.
"""
