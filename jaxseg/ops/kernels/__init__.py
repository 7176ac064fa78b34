"""Pallas kernels for NVIDIA GPUs of compute capability 9.0 and later (Mosaic GPU).

For each there is a function in `jaxseg.ops` with the same results, which is its reference and runs
on all other platforms. A kernel's module is imported only when a program that runs the kernel is
traced, so that no code for GPUs is loaded on other machines.
"""
