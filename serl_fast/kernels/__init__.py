"""Kernels: one file each, a plain PyTorch reference, a Triton kernel and the function that chooses."""
